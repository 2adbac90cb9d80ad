"""MLflow's and Optuna's own pages on this workspace, served to this machine only."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlparse

from segsweep.errors import ResourceError
from segsweep.models.databases import demand_database, public
from segsweep.workspace import Workspace

HOST = "127.0.0.1"
# How often it is looked whether both servers still run, and how long one may take to end (seconds).
LOOK_EVERY, PATIENCE = 0.5, 5.0
ENDS = (signal.SIGTERM, signal.SIGHUP)

# Every user of a machine may read its list of processes, so addresses, which may hold passwords, travel in the environment.
# The dashboard makes no tables: without the first line, a workspace in which nothing was ever tuned would end it.
DASHBOARD = """
import os, sys
import optuna
sys.argv.insert(1, os.environ["SEGSWEEP_STUDIES"])
optuna.storages.get_storage(sys.argv[1])
from optuna_dashboard._cli import main
main()
"""
# Nothing is sent anywhere, no pickle is opened, and MLflow starts none of its background jobs (it serves runs and models here).
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}


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

    Where the tracking server is one that runs by itself, only the dashboard is started. Raises ResourceError when a port is taken or
    a database does not answer.
    """
    elsewhere = urlparse(workspace.tracking_uri).scheme in ("http", "https")
    for number in (port + 1,) if elsewhere else (port, port + 1):
        demand_free(HOST, port=number)
    demand_database(workspace.tracking_uri, variable="MLFLOW_TRACKING_URI")
    demand_database(workspace.studies_uri, variable="SEGSWEEP_STUDIES")
    dashboard = ["-c", DASHBOARD, "--host", HOST, "--port", str(port + 1)]
    mlflow = ["-m", "mlflow", "server", "--workers", "1", "--host", HOST, "--port", str(port)]
    commands = {"optuna-dashboard": dashboard} if elsewhere else {"MLflow": mlflow, "optuna-dashboard": dashboard}
    addresses = {
        "MLflow": public(workspace.tracking_uri) if elsewhere else f"http://{HOST}:{port}",
        "optuna-dashboard": f"http://{HOST}:{port + 1}",
    }
    environment = {
        "MLFLOW_BACKEND_STORE_URI": workspace.tracking_uri,
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": workspace.artifacts.as_uri(),
        "SEGSWEEP_STUDIES": workspace.studies_uri,
    }
    with running(commands, environment=environment) as processes:
        yield Servers(processes=processes, addresses=addresses)


@contextmanager
def running(
    commands: Mapping[str, Sequence[str]], *, environment: Mapping[str, str]
) -> Iterator[dict[str, subprocess.Popen]]:
    """Python with these arguments and this added to the environment, by name, for the time of a `with` block.

    SIGTERM, and the end of the terminal unless that is ignored, end the block as Ctrl-C does. Afterwards nothing that they started
    runs either.
    """
    before = {number: signal.getsignal(number) for number in ENDS if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, signal.default_int_handler)
    processes: dict[str, subprocess.Popen] = {}
    try:
        for name, line in commands.items():
            # A session of its own: Ctrl-C in a terminal reaches this process alone, which ends them in order.
            processes[name] = subprocess.Popen(
                [sys.executable, *line], env={**os.environ, **QUIET, **environment}, start_new_session=True
            )
        yield processes
    finally:
        for process in processes.values():
            _send(signal.SIGTERM, process)
        for process in processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
            _send(signal.SIGKILL, process)
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def demand_free(host: str, *, port: int) -> None:
    """Raise ResourceError unless one can listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise ResourceError(f"port {port} cannot be used ({error}); choose another with --port") from None


def _send(number: signal.Signals, process: subprocess.Popen) -> None:
    """To a process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
