"""A whole sweep from the command line, interrupted in its second trial and begun again: nothing twice, nothing lost."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

import segsweep.search_spaces
from segsweep.errors import RecipeError, ResourceError, StoreError
from segsweep.models.catalogue import models
from segsweep.models.tracking import PARENT_TAG, TRIAL_TAG, connect
from segsweep.run import Run
from segsweep.sweeps import tuning
from segsweep.sweeps.preparing import prepare
from segsweep.sweeps.tuning import SweepOptions, tune
from segsweep.workspace import Workspace

# The second trial is long enough to be caught in its middle.
SPACE = '''
    """Three short trials."""
    TRAINABLE = "unet"
    PARAMS = {
        "iterations": 1, "validation_iterations": 1, "patch_size": [16, 32, 32], "batch_size": 2, "features": 4,
        "levels": 3,
    }


    def space(trial, plan):
        """Parameter overrides of one trial."""
        return {"foreground": trial.suggest_float("foreground", 0.2, 0.8), "epochs": LONG if trial.number == 1 else 2}


    def first(plan):
        """Trial 0."""
        return [{"foreground": 0.5}]


    LONG = 30
'''
ARGUMENTS = ("trials=3", "concurrent=1", "register=2", "name=toy")
OPTIONS = SweepOptions(name="toy", trials=3, concurrent=1, register=2)
PATIENCE = 240
NETWORKS = ("unet", "resenc_unet")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's own project with one search space."""
    folder = tmp_path / "project"
    (folder / "search_spaces").mkdir(parents=True)
    (folder / "search_spaces" / "tiny.py").write_text(textwrap.dedent(SPACE))
    return folder


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """An empty workspace, and no address of anyone's servers."""
    for name in ("MLFLOW_TRACKING_URI", "SEGSWEEP_STUDIES", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "workspace"
    root.mkdir()
    return Workspace(root=root)


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
    """Status of each MLflow run by its trial's name; the sweep's own run is `sweep`. Fails on a second run of one name."""
    client = connect(workspace)
    (experiment,) = [found for found in client.search_experiments() if found.name == "phantom"]
    found = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in found if run.data.tags.get("segsweep.kind") == "sweep"]
    statuses = {run.data.tags.get(TRIAL_TAG, "sweep"): run.info.status for run in found}
    assert len(statuses) == len(found)
    assert {run.data.tags.get(PARENT_TAG) for run in found} == {None, parent.info.run_id}
    return statuses


def study(workspace: Workspace) -> optuna.Study:
    return optuna.load_study(study_name="toy", storage=workspace.studies_uri)


@pytest.mark.timeout(700)
def test_interrupted_sweep_goes_on_where_it_was(
    phantom_store: Path, project: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = workspace.sweeps / "toy"
    with command(phantom_store, project=project, workspace=workspace) as process:
        wait_for(sweep / "trial-0001" / "checkpoints", pattern="epoch-*", process=process)
        os.killpg(process.pid, signal.SIGINT)
        words, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, words
    assert "interrupted; give the same command again to go on" in words
    assert "Traceback" not in words
    assert [trial.state for trial in study(workspace).trials] == [TrialState.COMPLETE, TrialState.RUNNING]
    assert runs(workspace) == {"sweep": "KILLED", "trial-0000": "FINISHED", "trial-0001": "KILLED"}
    assert models(workspace) == []
    trained_once = (sweep / "trial-0000" / "result.json").stat().st_mtime_ns
    (reached,) = (sweep / "trial-0001" / "checkpoints").glob("epoch-*")

    with command(phantom_store, project=project, workspace=workspace) as process:
        words, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, words
    assert "Traceback" not in words
    assert (sweep / "trial-0000" / "result.json").stat().st_mtime_ns == trained_once
    assert {path.name for path in sweep.iterdir()} == {"trial-0000", "trial-0001", "trial-0002"}
    assert {path.name for path in (sweep / "trial-0001").iterdir()} == {
        "checkpoints",
        "model",
        "record",
        "validation.json",
        "result.json",
    }
    trials = study(workspace).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    assert trials[0].params == {"foreground": 0.5}
    assert runs(workspace) == {"sweep": "FINISHED", **{f"trial-000{number}": "FINISHED" for number in range(3)}}
    epochs = epochs_logged("trial-0001", workspace=workspace)
    assert len(set(epochs)) == len(epochs), "an epoch was trained twice"
    assert epochs[-1] == 30
    assert int(reached.name.removeprefix("epoch-")) + 2 in epochs
    versions = models(workspace)
    best = sorted((trial.value or 0.0 for trial in trials), reverse=True)
    assert [float(version.tags["segsweep.dice"]) for version in versions] == pytest.approx(best[:2], abs=1e-4)
    assert [version.aliases for version in versions] == [("candidate",), ()]

    monkeypatch.setattr(
        segsweep.search_spaces, "__path__", [str(project / "search_spaces"), *segsweep.search_spaces.__path__]
    )

    def silent(*words: object) -> None:
        raise AssertionError(f"a finished sweep started something: {words}")

    again = tune("tiny", store=str(phantom_store), workspace=workspace, options=OPTIONS, params={}, report=silent)
    assert [version.uri for version in again.registered] == [version.uri for version in versions]
    assert [trial.dice for trial in again.trials] == best
    with pytest.raises(RecipeError, match=r"begun with other settings .*params was"):
        tune(
            "tiny",
            store=str(phantom_store),
            workspace=workspace,
            options=OPTIONS,
            params={"weight_decay": 0.0},
            report=silent,
        )


def epochs_logged(name: str, *, workspace: Workspace) -> list[int]:
    """Epochs of a trial whose loss MLflow holds, in the order in which they came."""
    client = connect(workspace)
    (experiment,) = [found for found in client.search_experiments() if found.name == "phantom"]
    (run,) = client.search_runs([experiment.experiment_id], filter_string=f"tags.`{TRIAL_TAG}` = '{name}'")
    return [point.step for point in client.get_metric_history(run.info.run_id, "loss")]


@pytest.mark.usefixtures("cluster")
def test_what_can_never_run_is_refused_before_anything_is_made(phantom_store: Path, workspace: Workspace) -> None:
    def start(**options: Any) -> None:
        chosen = SweepOptions(name="never", trials=2, **options)
        tune("default", store=str(phantom_store), workspace=workspace, options=chosen, params={}, report=print)

    with pytest.raises(RecipeError, match="fold='all' leaves a sweep no cases"):
        start(fold="all")
    with pytest.raises(ResourceError, match="1000 workers were asked for"):
        start(workers=1000)
    with pytest.raises(ResourceError, match="1000 runs of 1 workers at once"):
        start(concurrent=1000)
    with pytest.raises(RecipeError, match="sampler=grid: the space draws foreground"):
        start(sampler="grid")
    with pytest.raises(
        RecipeError, match=r"stop=paired compares whole scans .* scan_validation_every=0 of 1000 epochs"
    ):
        start(stop="paired")
    with pytest.raises(RecipeError, match="warm=never: 'never' is this sweep itself"):
        start(warm="never")
    with pytest.raises(ValueError, match="trials=0 cannot be used: expected at least 1"):
        SweepOptions(trials=0)
    assert list(workspace.root.iterdir()) == []


def test_options_that_do_not_exist_are_refused() -> None:
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"sampler": "tpa"}, "no 'tpa' among values of sampler .*did you mean 'tpe'"),
        ({"stop": "never"}, "no 'never' among values of stop"),
        ({"stop": "hyperband"}, "stop=hyperband cannot be used with grace=0"),
        ({"objective": "dice,speed"}, "no 'speed' among objectives"),
    )
    for options, words in refused:
        with pytest.raises(ValueError, match=words):
            SweepOptions(**options)
    assert SweepOptions(stop="hyperband", grace=1, warm="a,b").earlier == ("a", "b")
    assert SweepOptions().earlier == ()


def test_a_published_comparison_is_not_searched(phantom_store: Path) -> None:
    searching: tuple[dict[str, Any], ...] = ({"sampler": "gp"}, {"objective": "dice,memory_gb"}, {"warm": "earlier"})
    for options in searching:
        with pytest.raises(RecipeError, match="gtv_loss is a published comparison, whose rows are the trials"):
            tuning.first_config("gtv_loss", store=str(phantom_store), options=SweepOptions(**options))


def test_fold_that_holds_nothing_out_is_refused(phantom_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = SimpleNamespace(uri="store", validation=lambda fold: ("a",) if fold else ())
    monkeypatch.setattr(tuning, "open_stores", lambda _: bare)
    with pytest.raises(StoreError, match="store: fold 0 holds out no annotated case to compare trials by"):
        tuning.base_run("default", store=str(phantom_store), options=SweepOptions(), params={})
    assert tuning.base_run("default", store="store", options=SweepOptions(fold=1), params={}).fold == 1


def test_a_trial_is_checked_with_the_trainable_that_it_chooses(
    phantom_store: Path, workspace: Workspace, tiny: dict[str, Any]
) -> None:
    needed = tuning.needed_memory(prepare(Run(trainable="unet", store=str(phantom_store), params=tiny)))

    def suggested(drawn: str, **fixed: Any) -> dict[str, Any]:
        params = {**tiny, **fixed}
        base = tuning.base_run("default", store=str(phantom_store), options=SweepOptions(), params=params)
        assert (base.trainable, "trainable" in base.params) == (fixed.get("trainable", "unet"), False)
        space = SimpleNamespace(
            space=lambda trial, _plan: {"trainable": trial.suggest_categorical("trainable", NETWORKS)}
        )
        return tuning._suggest(
            optuna.trial.FixedTrial({"trainable": drawn}), recipe=space, base=base, fixed=fixed,
            plan=prepare(base).store.plan, memory=needed, workspace=workspace,
        )  # fmt: skip

    assert suggested("unet") == {"trainable": "unet"}
    with pytest.raises(ResourceError, match="needs about"):
        suggested("resenc_unet")
    assert suggested("resenc_unet", trainable="unet") == {"trainable": "unet"}, "the user's own choice goes before"


def test_no_more_trials_at_once_than_are_left_or_fit_into_memory(
    phantom_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = {"patch_size": [16, 32, 32], "batch_size": 2, "features": 4, "levels": 3}
    prepared = prepare(Run(trainable="unet", store=str(phantom_store), workers=2, params=params))
    needed = tuning.needed_memory(prepared)
    monkeypatch.setattr(tuning, "most_concurrent", lambda *, workers: 16 // workers)
    monkeypatch.setattr(tuning, "memory_per_worker", lambda *, workers: 10 * needed // workers)
    assert [tuning._most_at_once(prepared, left=left) for left in (0, 1, 3, 20)] == [1, 1, 3, 5]
    monkeypatch.setattr(tuning, "memory_per_worker", lambda *, workers: needed // (2 * workers))
    assert tuning._most_at_once(prepared, left=20) == 1, "one trial is tried whatever it needs"
