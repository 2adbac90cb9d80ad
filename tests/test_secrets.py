"""What a sweep leaves behind holds no password, key or token of its environment, and the list of processes shows none meanwhile."""

import importlib
import os
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
COMMAND = "import sys; from segsweep.cli import main; sys.exit(main())"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_keeps_its_secrets_and_outlives_a_restart_of_its_databases(
    phantom_store: Path, postgres: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    project = importlib.import_module("toy").write_project(tmp_path / "project", epochs=2)
    for name in ("runs", "studies"):
        postgres.create(name)
    names = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN")
    canaries = {name: f"canary-{secrets.token_hex(16)}" for name in names}
    ray = Path("/tmp") / f"segsweep-{os.getpid()}"  # Ray's sockets need a short path
    environment = {
        **os.environ,
        **canaries,
        "RAY_AUTH_MODE": "token",
        "RAY_TMPDIR": str(ray),
        "MLFLOW_TRACKING_USERNAME": "ada",
        "MLFLOW_TRACKING_URI": postgres.network("runs"),
        "SEGSWEEP_STUDIES": postgres.network("studies"),
        "SEGSWEEP_PROJECT": str(project),
        "SEGSWEEP_WORKSPACE": str(tmp_path / "workspace"),
    }
    ray.mkdir()
    words = ("tune", "tiny", str(phantom_store), "trials=3", "concurrent=1", "register=1", "name=toy")
    output, seen = tmp_path / "output", set()
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *words], env=environment, cwd=tmp_path, stdout=stream, stderr=stream
        )
    restarted = False
    while process.poll() is None:
        seen |= set(subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, check=True).stdout.splitlines())
        if not restarted and list(tmp_path.glob("workspace/sweeps/toy/trial-*/result.json")):
            postgres.control("restart", "-m", "fast")
            restarted = True
        time.sleep(0.2)
    assert process.returncode == 0, output.read_text()
    assert restarted
    kept = {path: path.read_bytes() for path in (*tmp_path.rglob("*"), *ray.rglob("*")) if path.is_file()}
    for name in ("runs", "studies"):
        dump = [postgres.programs / "pg_dump", "-h", postgres.folder, "-p", str(postgres.port), name]
        kept[Path(name)] = subprocess.run(dump, capture_output=True, check=True).stdout
        assert len(kept[Path(name)]) > 10000
    assert len(kept) > 40
    for whose, canary in {**canaries, "database": postgres.password}.items():
        assert not [line for line in seen if canary.encode() in line], whose
        assert not [path for path, content in kept.items() if canary.encode() in content], whose
    shutil.rmtree(ray)
