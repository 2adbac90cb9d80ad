"""MLflow's and Optuna's own pages on this workspace, served to this machine only."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlparse

from segsweep.errors import ResourceError
from segsweep.models.tracking import public
from segsweep.workspace import Workspace

HOST = "127.0.0.1"
# How often it is looked whether both servers still run, and how long one may take to end (seconds).
LOOK_EVERY, PATIENCE = 0.5, 5.0

# The dashboard makes no tables: without this, a workspace in which nothing was ever tuned would end it.
DASHBOARD = """
import sys
import optuna
optuna.storages.get_storage(sys.argv[1])
from optuna_dashboard._cli import main
main()
"""
# Nothing is sent anywhere, and MLflow starts none of its background jobs (it serves runs and models here).
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


@dataclass(frozen=True, kw_only=True)
class Servers:
    """Running servers by name, and the addresses of all pages: a server that runs elsewhere has no process here."""

    processes: dict[str, subprocess.Popen]
    addresses: dict[str, str]

    def wait(self) -> None:
        """Until Ctrl-C. Raises ResourceError when a server ends by itself."""
        try:
            while True:
                for name, process in self.processes.items():
                    if process.poll() is not None:
                        raise ResourceError(
                            f"{name} ended by itself (exit code {process.returncode}); see its words above"
                        )
                time.sleep(LOOK_EVERY)
        except KeyboardInterrupt:
            pass


@contextmanager
def serve(workspace: Workspace, *, port: int) -> Iterator[Servers]:
    """MLflow on `port` and optuna-dashboard on the next one, for the time of a `with` block.

    Where the tracking server is one that runs by itself, only the dashboard is started. Raises ResourceError when a port is taken.
    """
    elsewhere = urlparse(workspace.tracking_uri).scheme in ("http", "https")
    for number in (port + 1,) if elsewhere else (port, port + 1):
        _demand_free(number)
    mlflow = ["-m", "mlflow", "server", "--backend-store-uri", workspace.tracking_uri]
    mlflow += ["--default-artifact-root", workspace.artifacts.as_uri(), "--workers", "1"]
    mlflow += ["--host", HOST, "--port", str(port)]
    dashboard = ["-c", DASHBOARD, workspace.studies_uri, "--host", HOST, "--port", str(port + 1)]
    commands = {"optuna-dashboard": dashboard} if elsewhere else {"MLflow": mlflow, "optuna-dashboard": dashboard}
    addresses = {
        "MLflow": public(workspace.tracking_uri) if elsewhere else f"http://{HOST}:{port}",
        "optuna-dashboard": f"http://{HOST}:{port + 1}",
    }
    environment = {**os.environ, **QUIET}
    processes = {name: subprocess.Popen([sys.executable, *line], env=environment) for name, line in commands.items()}
    try:
        yield Servers(processes=processes, addresses=addresses)
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


def _demand_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise ResourceError(f"port {port} cannot be used ({error}); choose another with --port") from None
