"""The pages of `segsweep ui`: both answer on this machine, on an empty workspace too, and end with the block."""

import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from segsweep.errors import ResourceError
from segsweep.models.browsing import HOST, running, serve
from segsweep.workspace import Workspace


def free_port() -> int:
    """The first of two free ports in a row."""
    for port in range(20000, 30000, 7):
        if not any(answers(port + step) for step in range(2)):
            return port
    raise AssertionError("no free ports")


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def runs(status: Path) -> bool:
    """Whether a process does, by its status in /proc; one that has ended may wait there to be collected."""
    try:
        return "zombie" not in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def fetch(address: str, *, patience: float = 240.0) -> bytes:
    """A page, once its server has started."""
    end = time.monotonic() + patience
    while True:
        try:
            with urllib.request.urlopen(address, timeout=10) as page:
                return page.read()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def test_both_pages_answer_on_an_empty_workspace_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "SEGSWEEP_STUDIES"):
        monkeypatch.delenv(name, raising=False)
    port = free_port()
    with serve(Workspace(root=tmp_path), port=port) as servers:
        assert b"study_summaries" in fetch(f"http://{HOST}:{port + 1}/api/studies")
        assert b"<html" in fetch(f"http://{HOST}:{port}/")
        assert [process.poll() for process in servers.processes.values()] == [None, None]
        shown = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True).stdout
        assert f"--port {port + 1}" in shown
        assert str(tmp_path) not in shown, "an address, which may hold a password, is for everybody to see"
        assert list(servers.addresses.values()) == [f"http://{HOST}:{port}", f"http://{HOST}:{port + 1}"]
    assert all(process.poll() is not None for process in servers.processes.values())
    assert not answers(port) and not answers(port + 1)


def test_a_server_elsewhere_is_named_and_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEGSWEEP_STUDIES", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example:8443/team")
    port = free_port()
    with serve(Workspace(root=tmp_path), port=port) as servers:
        assert b"study_summaries" in fetch(f"http://{HOST}:{port + 1}/api/studies")
        assert list(servers.processes) == ["optuna-dashboard"]
        assert servers.addresses["MLflow"] == "https://mlflow.example:8443/team"
        assert not answers(port)


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    port = free_port()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the last test's server was there
        other.bind((HOST, port + 1))
        other.listen()
        complaint = rf"port {port + 1} cannot be used .*choose another with --port"
        with pytest.raises(ResourceError, match=complaint), serve(Workspace(root=tmp_path), port=port):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_ends_by_itself_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSWEEP_STUDIES", "no-such-database://x")
    complaint = r"optuna-dashboard ended by itself \(exit code 1\)"
    with pytest.raises(ResourceError, match=complaint), serve(Workspace(root=tmp_path), port=free_port()) as servers:
        servers.wait()


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_ends_us_ends_all_that_was_started(number: signal.Signals, tmp_path: Path) -> None:
    code = """if True:
        import os, pathlib, subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        partial = pathlib.Path(os.environ["FOLDER"], "partial")
        partial.write_text(str(child.pid))
        partial.rename(partial.with_name("child"))
        child.wait()
    """
    with (
        pytest.raises(KeyboardInterrupt),
        running({"a": ["-c", code]}, environment={"FOLDER": str(tmp_path)}) as processes,
    ):
        while not (tmp_path / "child").exists():
            assert processes["a"].poll() is None
            time.sleep(0.02)
        os.kill(os.getpid(), number)
        time.sleep(60)
    child, end = Path("/proc", (tmp_path / "child").read_text(), "status"), time.monotonic() + 60
    while runs(child):
        assert time.monotonic() < end
        time.sleep(0.02)
