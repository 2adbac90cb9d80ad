"""MLflow's and Optuna's own pages on this workspace, served to this machine only."""

import subprocess
import sys

from segsweep.workspace import Workspace


def serve(workspace: Workspace, *, port: int) -> None:
    """Run both servers on 127.0.0.1 (MLflow on `port`, optuna-dashboard on the next) until they end or Ctrl-C."""
    mlflow = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", workspace.tracking_uri]
    mlflow += ["--default-artifact-root", workspace.artifacts.as_uri(), "--host", "127.0.0.1", "--port", str(port)]
    dashboard = "from optuna_dashboard._cli import main; main()"
    optuna = [sys.executable, "-c", dashboard, workspace.studies_uri, "--host", "127.0.0.1", "--port", str(port + 1)]
    servers = [subprocess.Popen(command) for command in (mlflow, optuna)]
    try:
        for server in servers:
            server.wait()
    except KeyboardInterrupt:
        pass
    finally:
        for server in servers:
            server.terminate()
            server.wait()
