"""A sweep that is interrupted at the terminal, killed, and gone on with: nothing twice, nothing lost."""

import dataclasses
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from optuna.trial import TrialState

import segsweep.search_spaces
import segsweep.trainables
from segsweep.data.lock import held
from segsweep.errors import RecipeError, ResourceError
from segsweep.models.catalogue import models
from segsweep.models.tracking import PARENT_TAG, TRIAL_TAG, connect
from segsweep.sweeps.tuning import tune
from segsweep.workspace import Workspace

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ARGUMENTS = ("trials=2", "concurrent=1", "register=2", "name=toy")
PATIENCE = 240


@pytest.fixture
def killing(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The benchmark that kills 20 drivers, and workers too."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("killed_drivers")
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # its children have its environment, and so this test's project


@contextmanager
def command(store: Path, *, project: Path, workspace: Workspace) -> Iterator[subprocess.Popen[str]]:
    """`segsweep tune` in its own process group, as a terminal starts it; killed when a test gives up on it."""
    code = "import sys; from segsweep.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "tune", "tiny", str(store), *ARGUMENTS],
        env={**os.environ, "SEGSWEEP_PROJECT": str(project), "SEGSWEEP_WORKSPACE": str(workspace.root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(folder: Path, *, pattern: str, process: subprocess.Popen[str]) -> None:
    """Until the folder holds such a file."""
    end = time.monotonic() + PATIENCE
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, f"no {pattern} in {folder}"
        time.sleep(0.1)


def runs(workspace: Workspace) -> dict[str, str]:
    """Status of each MLflow run by its trial's name; the sweep's own run is `sweep`."""
    client = connect(workspace)
    found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    (parent,) = [run for run in found if run.data.tags.get("segsweep.kind") == "sweep"]
    assert {run.data.tags.get(PARENT_TAG) for run in found} == {None, parent.info.run_id}
    return {run.data.tags.get(TRIAL_TAG, "sweep"): run.info.status for run in found}


# When a model is being registered, most can be done twice or lost.
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "phases",
    [("registering",), pytest.param(("starting", "training", "recovering", "ending"), marks=pytest.mark.slow)],
)
def test_a_sweep_that_is_interrupted_and_killed_goes_on_where_it_was(
    phases: tuple[str, ...],
    phantom_store: Path,
    workspace: Workspace,
    killing: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project = killing.write_project(tmp_path / "project", epochs=killing.EPOCHS)
    toy = killing.Toy(store=phantom_store, project=project, workspace=workspace, trials=2)
    with command(phantom_store, project=project, workspace=workspace) as process:
        wait_for(toy.sweep / "trial-0000" / "checkpoints", pattern="epoch-*", process=process)
        os.killpg(process.pid, signal.SIGINT)
        words, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, words
    assert "interrupted; give the same command again to go on" in words
    assert "Traceback" not in words
    assert [trial.state for trial in toy.study().trials] == [TrialState.RUNNING]
    assert runs(workspace) == {"sweep": "KILLED", "trial-0000": "KILLED"}
    assert models(workspace) == []

    moments = killing.seeded(len(phases), seed=1, phases=phases)
    assert {moment.phase for moment in moments} == set(phases)
    for moment in moments:
        killing.kill(toy, moment=moment)
    killing.finish(toy)
    assert killing.faults(toy, kills=1 + len(moments) + phases.count("recovering")) == []
    trials = toy.study().trials
    assert trials[0].params == {"foreground": 0.5}
    versions = models(workspace)
    best = sorted((trial.value or 0.0 for trial in trials), reverse=True)
    assert [float(version.tags["segsweep.dice"]) for version in versions] == pytest.approx(best, abs=1e-4)
    assert [version.aliases for version in versions] == [("candidate",), ()]

    for kind in (segsweep.search_spaces, segsweep.trainables):
        folder = project / kind.__name__.rpartition(".")[2]
        monkeypatch.setattr(kind, "__path__", [str(folder), *kind.__path__])

    def silent(*words: object) -> None:
        raise AssertionError(f"a finished sweep started something: {words}")

    def again(trials: int = 2, **params: Any) -> Any:
        options = dataclasses.replace(toy.options, trials=trials)
        return tune(
            "tiny", store=str(phantom_store), workspace=workspace, options=options, params=params, report=silent
        )

    assert [version.uri for version in again().registered] == [version.uri for version in versions]
    assert [trial.dice for trial in again().trials] == best
    with (
        held(toy.sweep, otherwise=None),
        pytest.raises(ResourceError, match="sweep 'toy' runs in another process, which"),
    ):
        again(trials=3)
    assert len(toy.study().trials) == 2 and not (toy.sweep / "tune").exists()
    with pytest.raises(RecipeError, match=r"begun with other settings .*params was"):
        again(weight_decay=0.0)
