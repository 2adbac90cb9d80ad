"""A paper's table as a sweep: every row is trained once, from where it starts; the page says what is lacking and what is other."""

import dataclasses
import json
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import optuna
import pytest
from optuna.trial import TrialState

import segsweep.search_spaces
from segsweep.data.planning import Normalisation, Plan
from segsweep.errors import ModelError, RecipeError
from segsweep.models.catalogue import models
from segsweep.models.tracking import Tracker, connect
from segsweep.run import Run
from segsweep.sweeps.cluster import Resources
from segsweep.sweeps.comparison import Comparison, Row
from segsweep.sweeps.tuning import tune
from segsweep.sweeps.tuning_comparison import Rows, report
from segsweep.sweeps.tuning_options import SweepOptions
from segsweep.sweeps.tuning_shared import first_run
from segsweep.sweeps.tuning_study import CONFIG, SHORTAGE, trial_folder
from segsweep.workspace import Workspace

PLAN = Plan(
    spacing=(3.0, 1.0, 1.0),
    patch_size=(16, 32, 32),
    batch_size=2,
    median_shape=(16, 32, 32),
    normalisation=(Normalisation(scheme="ct", low=-500.0, high=500.0),),
    head="softmax",
)
TABLE = Comparison(
    rows=(
        Row(name="plain", trainable="unet", params={"epochs": 10}, published={"dice": 0.8, "nsd": 0.7}),
        Row(name="pre-trained", trainable="unet", published={"dice": 0.9}, pretrained=True),
        Row(name="mean", members=("plain", "pre-trained"), published={"dice": 0.95}),
        Row(name="fine", trainable="resenc_unet", params={"epochs": 10}, published={"dice/a": 0.85}, initial="plain"),
    ),
    source="A paper, table 1",
    measured="Dice",
    datasets=("segrap2023",),
)
STORE: Any = SimpleNamespace(dataset="clinic", uri="stores/clinic", validation=lambda _fold: ("c1",))
# What a user of their own writes: the second row starts from the first.
SPACE = '''
    """A small table."""
    from segsweep.sweeps.comparison import Row

    SOURCE, MEASURED, DATASETS = "A paper, table 1", "Dice of the organs", ("phantom",)
    ROWS = (
        Row(name="finer", trainable="resenc_unet", params={"epochs": 300}, published={"dice": 0.9}, initial="plain"),
        Row(name="plain", trainable="unet", params={"epochs": 100}, published={"dice": 0.8}),
        Row(name="both", members=("plain", "finer"), published={"dice": 0.95}),
        Row(name="pre-trained", trainable="unet", published={"dice": 0.99}, pretrained=True),
    )
'''


def rows_in(folder: Path, *, pretrained: str = "", scale: float = 1.0, study: Any = None) -> Rows:
    return Rows(
        comparison=TABLE, scale=scale, pretrained=pretrained, study=study or optuna.create_study(), sweep=folder
    )


def ask(rows: Rows) -> optuna.Trial:
    """The next trial, with its config as the sweep writes it down."""
    trial = rows.study.ask()
    trial.set_user_attr(CONFIG, rows.space(trial, PLAN))
    return trial


def end(rows: Rows, trial: optuna.Trial, *, dice: float) -> None:
    """A trial's folder as a training leaves it."""
    folder = trial_folder(rows.sweep, number=trial.number)
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "run.json").write_text(json.dumps({"task": {"patch_size": [16, 32, 32]}}))
    (folder / "validation.json").write_text(json.dumps({"c1": {"a": dice}}))
    (folder / "result.json").write_text(
        json.dumps({"status": "finished", "epoch": 7, "dice": dice, "dice/a": dice, "dice/b": dice, "loss": 1.0})
    )
    rows.study.tell(trial.number, dice)


def written(rows: Rows, **shared: Any) -> dict[str, Any]:
    """comparison.json."""
    page = report(
        rows,
        title="table on clinic",
        base=Run(trainable="unet", store="stores/clinic"),
        store=cast(Any, STORE),
        shared=shared,
        resources=Resources(cpus=1),
    )
    assert "table on clinic" in page.read_text()
    return json.loads((rows.sweep / "comparison.json").read_text())


@pytest.mark.parametrize("lacking_memory", [False, True])
def test_every_row_gets_one_trial_and_a_failed_one_another(tmp_path: Path, *, lacking_memory: bool) -> None:
    rows = rows_in(tmp_path)
    (plain,), (fine,) = rows.waves()
    assert (plain.name, fine.name) == ("plain", "fine")
    assert [rows.enqueue([plain]), rows.enqueue([plain])] == [1, 1]
    trial = ask(rows)
    assert rows.enqueue([plain]) == 1, "it runs"
    if lacking_memory:
        trial.set_user_attr(SHORTAGE, {"patch_size": [96, 96, 96], "batch_size": 2})
        rows.study.tell(trial.number, 0.0)
        found = rows.trial_of("plain")
        assert found is not None and (found.state, found.dice) == ("out of memory", None)
    else:
        rows.study.tell(trial.number, state=TrialState.FAIL)
    assert rows.enqueue([plain]) == 1 and len(rows.study.trials) == 2
    end(rows, ask(rows), dice=0.5)
    assert rows.enqueue([plain]) == 1 and len(rows.study.trials) == 2, "it was trained"
    found = rows.trial_of("plain")
    assert found is not None and (found.name, found.dice) == ("trial-0001", 0.5)


def test_a_row_starts_from_the_model_of_another_or_says_that_there_is_none(tmp_path: Path) -> None:
    rows = rows_in(tmp_path, pretrained="folder@digest")
    rows.enqueue([TABLE.row("fine")])
    waiting = rows.study.ask()
    with pytest.raises(RecipeError, match="'fine' starts from the model of 'plain', which was not trained to its end"):
        rows.space(waiting, PLAN)
    rows.enqueue([TABLE.row("plain"), TABLE.row("pre-trained")])
    end(rows, ask(rows), dice=0.5)
    assert rows.space(waiting, PLAN)["initial"] == str(tmp_path / "trial-0001")
    assert ask(rows).user_attrs[CONFIG] == {"trainable": "unet", "initial": "folder@digest"}


def test_another_pretrained_model_trains_its_rows_anew(tmp_path: Path) -> None:
    rows = rows_in(tmp_path, pretrained="folder@one")
    row = TABLE.row("pre-trained")
    rows.enqueue([row])
    end(rows, ask(rows), dice=0.5)
    other = rows_in(tmp_path, pretrained="folder@two", study=rows.study)
    assert rows.enqueue([row]) == 1
    assert other.enqueue([row]) == 2
    assert other.trial_of(row.name) is None
    without = rows_in(tmp_path, study=rows.study).trial_of(row.name)
    assert without is not None and without.dice == 0.5, "what was trained stays in the report"


def test_the_report_sets_ours_beside_the_published_and_says_what_is_lacking(tmp_path: Path) -> None:
    rows = rows_in(tmp_path, scale=0.5)
    rows.enqueue([TABLE.row("plain")])
    end(rows, ask(rows), dice=0.5)
    document = written(rows, iterations=1)
    plain, pretrained, mean, fine = document["rows"]
    assert plain["metrics"]["dice"] == {"published": 0.8, "ours": 0.5, "difference": pytest.approx(-0.3)}
    assert plain["metrics"]["nsd"] == {"published": 0.7, "ours": None, "difference": None}
    assert set(plain["metrics"]) == {"dice", "nsd"}, "what the paper does not print is left out"
    assert (plain["epochs"], plain["published_epochs"], plain["patch_size"]) == (7, 10, [16, 32, 32])
    assert plain["config"]["epochs"] == 5
    assert (pretrained["state"], pretrained["reason"]) == ("left out", "needs a pre-trained model")
    assert (mean["state"], mean["reason"]) == ("left out", "needs the model of pre-trained")
    assert fine["state"] == "left out"
    assert (document["cases"], document["structures"]) == (["c1"], ["a"])
    scaled, other, shared, lacking = document["notices"]
    assert scaled.startswith("Scaled: every row was trained for about 0.5 of the paper's epochs")
    assert other == "Other data: ours is trained and measured on clinic, the paper's on segrap2023."
    assert shared == "Not as published: every row was given iterations=1."
    assert "need a pre-trained model: pre-trained" in lacking and "pretrained=models:/NAME/1" in lacking


def test_a_mean_is_over_the_papers_structures(tmp_path: Path) -> None:
    table = dataclasses.replace(TABLE, structures=("a", "absent"))
    rows = dataclasses.replace(rows_in(tmp_path), comparison=table)
    rows.enqueue([TABLE.row("plain")])
    trial = ask(rows)
    end(rows, trial, dice=0.5)
    folder = trial_folder(tmp_path, number=trial.number)
    result = json.loads((folder / "result.json").read_text())
    surfaces = {"nsd": 0.6, "nsd/a": 0.125, "nsd/b": 0.9}
    (folder / "result.json").write_text(json.dumps({**result, **surfaces, "dice/a": 0.25}))
    (folder / "validation.json").write_text(json.dumps({"c1": {"a": 0.25, "b": 0.5, "c": 0.75}}))
    document = written(rows)
    metrics = document["rows"][0]["metrics"]
    assert (metrics["dice"]["ours"], metrics["nsd"]["ours"]) == (0.25, 0.125)
    (notice,) = [text for text in document["notices"] if text.startswith("More structures")]
    assert "ours learned 2 that the paper's table is not about; its mean is over the other 1" in notice
    other = dataclasses.replace(rows, comparison=dataclasses.replace(TABLE, structures=("absent",)))
    document = written(other)
    metrics = document["rows"][0]["metrics"]
    assert (metrics["dice"]["ours"], metrics["nsd"]["ours"]) == (0.5, 0.6)
    assert not [text for text in document["notices"] if text.startswith("More structures")]


def test_the_report_of_the_papers_own_run_has_no_notice_and_says_why_a_row_failed(tmp_path: Path) -> None:
    rows = rows_in(tmp_path, pretrained="folder@digest")
    rows.enqueue([TABLE.row("plain")])
    trial = ask(rows)
    trial_folder(tmp_path, number=trial.number).mkdir()
    (trial_folder(tmp_path, number=trial.number) / "error.txt").write_text("it does not fit\n")
    rows.study.tell(trial.number, state=TrialState.FAIL)
    STORE_OF_PAPER = SimpleNamespace(dataset="segrap2023", uri="s", validation=STORE.validation)
    base = Run(trainable="unet", store="s")
    report(rows, title="t", base=base, store=cast(Any, STORE_OF_PAPER), shared={}, resources=Resources(cpus=1))
    document = json.loads((tmp_path / "comparison.json").read_text())
    assert document["notices"] == []
    assert (document["rows"][0]["state"], document["rows"][0]["reason"]) == ("failed", "it does not fit")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's own project with one table, and no address of anyone's servers."""
    folder = tmp_path / "project" / "search_spaces"
    folder.mkdir(parents=True)
    (folder / "small_table.py").write_text(textwrap.dedent(SPACE))
    monkeypatch.setattr(segsweep.search_spaces, "__path__", [str(folder), *segsweep.search_spaces.__path__])
    for name in ("MLFLOW_TRACKING_URI", "SEGSWEEP_STUDIES", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.mark.usefixtures("cluster", "project")
def test_two_rows_are_trained_one_from_the_other_and_averaged(phantom_store: Path, tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path / "workspace")
    workspace.root.mkdir()
    tiny = {"iterations": 1, "validation_iterations": 1, "patch_size": [16, 32, 32], "features": 4, "levels": 3}

    def sweep() -> Any:
        options = SweepOptions(scale=0.01, register=2)
        return tune("small_table", store=str(phantom_store), workspace=workspace, options=options, params=tiny)

    done = sweep()
    assert done.page == workspace.sweeps / "small_table-phantom" / "comparison.html"
    document = json.loads(done.page.with_suffix(".json").read_text())
    finer, plain, both, left_out = document["rows"]
    assert [row["state"] for row in document["rows"]] == ["finished", "finished", "finished", "left out"]
    assert (plain["trial"], finer["trial"]) == ("trial-0000", "trial-0001"), "what another starts from comes first"
    assert (plain["epochs"], finer["epochs"], finer["published_epochs"]) == (1, 3, 300)
    assert all(0.0 <= row["metrics"]["dice"]["ours"] <= 1.0 for row in (finer, plain, both))
    assert len(document["cases"]) > 0 and len(document["notices"]) == 3
    assert left_out["reason"] == "needs a pre-trained model"
    transfer = json.loads((done.page.parent / "trial-0001" / "transfer.json").read_text())
    assert transfer["loaded"], "the decoder has the same names"
    assert {version.name: version.aliases for version in models(workspace)} == {
        "phantom-unet": ("candidate",),
        "phantom-resenc_unet": ("candidate",),
    }
    client = connect(workspace)
    parent = Tracker(workspace, experiment="phantom").find(tags={"segsweep.kind": "sweep"})
    assert done.report is not None and "A paper, table 1" in done.report.read_text(), (
        "the published figures are on the sweep's page too"
    )
    assert {"comparison.html", "comparison.json", "sweep.html", "sweep.json"} <= {
        item.path for item in client.list_artifacts(str(parent))
    }

    averaged = (done.page.parent / "ensemble-0002.json").stat().st_mtime_ns
    again = sweep()
    assert [trial.name for trial in again.trials] == [trial.name for trial in done.trials], "nothing is trained twice"
    assert (done.page.parent / "ensemble-0002.json").stat().st_mtime_ns == averaged


@pytest.mark.usefixtures("project")
def test_what_a_comparison_lacks_is_said_before_anything_starts(phantom_store: Path, tmp_path: Path) -> None:
    def first(space: str, **options: Any) -> Run:
        return first_run(space, store=str(phantom_store), options=SweepOptions(**options), params={"features": 4})

    with pytest.raises(
        RecipeError, match="every row of uniseg_epochs starts from a pre-trained model; give pretrained="
    ):
        first("uniseg_epochs")
    assert first("uniseg_epochs", pretrained="models:/upstream/1").params["initial"] == "models:/upstream/1"
    with pytest.raises(RecipeError, match="default is no published comparison; expected scale="):
        first("default", scale=0.5)
    run = first("small_table", scale=0.01)
    assert (run.trainable, run.params["epochs"], run.params["features"]) == ("unet", 1, 4)
    with pytest.raises(ValueError, match=r"scale=1\.5 cannot be used: expected a share above 0, at most 1"):
        SweepOptions(scale=1.5)
    options = SweepOptions(pretrained="models:/nowhere/1")
    with pytest.raises(ModelError, match="nowhere"):
        tune("small_table", store=str(phantom_store), workspace=Workspace(root=tmp_path), options=options)
