"""The command line: its verbs and options exactly, readable help, and one sentence for everything that a user can put right."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.main

from segsweep import cli, recipes
from segsweep.data.arrays import geometry_json
from segsweep.data.geometry import Geometry
from segsweep.data.index import FORMAT, make_index
from segsweep.data.manifest import seal
from segsweep.data.planning import Normalisation, Plan
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.inference.writers import write_image, write_label_map
from segsweep.learning import checkpoint
from segsweep.learning.task import Task
from segsweep.models.catalogue import set_alias
from segsweep.models.registry import register
from segsweep.models.tracking import Tracker
from segsweep.run import Run
from segsweep.sweeps import hosts, launching
from segsweep.workspace import Workspace

# Settled: scripts depend on these names.
VERBS = {
    "demo": (("FOLDER",), ("--seed",)),
    "convert": (("DATASET", "RAW"), ("--store", "--planner", "--folds", "--deep")),
    "check": (("STORE",), ("--deep",)),
    "train": (("TRAINABLE", "STORE", "KEY=VALUE"), ()),
    "tune": (("SPACE", "STORE", "KEY=VALUE"), ()),
    "ensemble": (("STORE", "KEY=VALUE"), ()),
    "postprocess": (("MODEL", "KEY=VALUE"), ()),
    "promote": (("MODEL", "KEY=VALUE"), ("--force",)),
    "predict": (
        ("MODEL", "SCANS", "OUT"),
        ("--split", "--mirror", "--dataset", "--format", "--max-memory", "--precision", "--probabilities"),
    ),
    "evaluate": (
        ("PREDICTIONS", "REFERENCE"),
        ("--profile", "--out", "--labels", "--tolerance", "--lesions", "--compare", "--view"),
    ),
    "import-nnunet": (("CHECKPOINT",), ("--name", "--plans", "--dataset-json", "--orientation")),
    "list": (("WHAT",), ()),
    "ui": ((), ("--port",)),
    "server": ((), ("--port", "--host", "--allowed-hosts", "--artifacts")),
    "cluster": ((), ()),
}
GRID = Geometry(shape=(6, 7, 8), spacing=(2.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, without settings of the person who runs the tests."""
    for name in ("SEGSWEEP_WORKSPACE", "SEGSWEEP_PROJECT", "SEGSWEEP_STUDIES", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command line, expects one sentence on stderr and exit code 2, and returns the sentence."""

    def run(*argv: str) -> str:
        code = cli.main(argv)
        shown = capsys.readouterr()
        assert code == 2, shown
        lines = shown.err.splitlines()
        assert len(lines) == 1, shown.err
        assert lines[0].startswith("segsweep: ")
        assert "Traceback" not in shown.out + shown.err
        return lines[0].removeprefix("segsweep: ")

    return run


@pytest.fixture
def store(here: Path) -> str:
    """A store's index and plan: what is read before anything starts."""
    record = {
        "annotated": ["organ"], "split": "train", "geometry": geometry_json(GRID), "source_geometry": geometry_json(GRID),
        "atoms": [[], [0]], "voxels": [300, 36], "digest": "d", "source_digests": ["s"],
    }  # fmt: skip
    records = [{**record, "case_id": name, "group": name} for name in "abcdef"]
    index = make_index(records, dataset="mine", channels=("CT",), labels=LabelSet(structures=("organ",)))
    plan = Plan(
        spacing=(2.0, 1.0, 1.0), patch_size=(16, 32, 32), batch_size=2, median_shape=(6, 7, 8),
        normalisation=(Normalisation(scheme="ct", low=-10.0, high=10.0),), head="softmax",
    )  # fmt: skip
    folder = here / "store"
    folder.mkdir()
    (folder / "index.json").write_bytes(seal(index))
    (folder / "plan.json").write_text(json.dumps(plan.to_json()))
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of a tiny network for two channels."""
    task = Task(
        channels=("CT", "contrast CT"),
        table=LabelTable(labels=LabelSet(structures=("organ",)), atoms=((), (0,))),
        head="softmax",
        patch_size=(8, 16, 16),
        spacing=(2.0, 1.0, 1.0),
        normalisation=(Normalisation(scheme="ct", low=-10.0, high=10.0),) * 2,
    )
    params = {"features": 2, "levels": 2, "patch_size": list(task.patch_size)}
    recipe = recipes.load("trainables", name="unet")
    torch.manual_seed(0)
    network = recipe.build(recipes.build_params(recipe, values=params), task)
    snapshot = checkpoint.Snapshot(weights=network.state_dict(), metrics={}, epoch=0)
    document = {"run": Run(trainable="unet", store="s").to_json(), "task": task.to_json(), "params": params}
    folder = tmp_path_factory.mktemp("model") / "model"
    checkpoint.save(folder, snapshot=snapshot, run=document)
    return folder


def scan(path: Path) -> Path:
    """Write a scan of noise."""
    path.parent.mkdir(exist_ok=True)
    voxels = np.random.default_rng(0).integers(-100, 100, GRID.shape).astype(np.int16)
    write_image(voxels, geometry=GRID, path=path)
    return path


def test_the_cluster_s_verbs_and_their_options_are_settled(capsys: pytest.CaptureFixture[str]) -> None:
    commands = typer.main.get_command(cli.cluster).commands  # type: ignore[attr-defined]
    found = {name: [option for param in command.params for option in param.opts] for name, command in commands.items()}
    assert found == {"up": ["file", "--insecure"], "status": ["file"], "down": ["file"]}
    for verb in found:
        assert cli.main(["cluster", verb, "--help"]) == 0
        assert f"segsweep cluster {verb} my-cluster.yaml" in capsys.readouterr().out


def test_a_cluster_s_pages_are_reached_with_ray_s_own_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which plain ssh does not know."""
    monkeypatch.setattr(hosts, "read_launch", lambda file: file)
    monkeypatch.setattr(launching, "status", lambda launch: [])  # noqa: ARG005
    assert cli.main(["cluster", "status", "my-cluster.yaml"]) == 0
    assert "pages: ray attach my-cluster.yaml -p 8265 -p 5000\n" in capsys.readouterr().out


def test_the_verbs_and_their_options_are_settled() -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    found = {
        name: (
            tuple(param.metavar for param in command.params if param.param_type_name == "argument"),
            tuple(option for param in command.params if param.param_type_name == "option" for option in param.opts),
        )
        for name, command in commands.items()
    }
    assert found == VERBS
    assert list(found) == list(VERBS), "in the order of the walk"


@pytest.mark.parametrize("verb", ("", *VERBS))
def test_help_fits_80_columns_and_lines_stand_as_written(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([verb, "--help"] if verb else ["--help"]) == 0
    shown = capsys.readouterr().out
    lines = [line.strip() for line in shown.splitlines()]
    assert max(map(len, shown.splitlines())) <= 80
    written = {"": cli.about, "list": cli.list_}.get(verb) or getattr(cli, verb.replace("-", "_"))
    words = written.info.help if written is cli.cluster else written.__doc__
    for line in inspect.cleandoc(words or "").splitlines():
        assert line.strip() in lines, f"re-wrapped or lost: {line!r}"
    if verb in ("", "list"):
        for name in VERBS:
            assert verb or f"│ {name}" in shown
    if verb not in ("", "ui"):
        assert "Example" in shown and f"  segsweep {verb}" in shown


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    shown = capsys.readouterr()
    assert "Usage: segsweep" in shown.out and shown.err == ""


@pytest.mark.parametrize(
    ("argv", "sentence"),
    (
        ("tun", "No such command 'tun'. Did you mean 'tune'?; see `segsweep --help`"),
        ("convert", "Missing argument 'DATASET'; see `segsweep convert --help`"),
        (
            "predict a b c --mirr x",
            "No such option: --mirr (Possible options: --mirror); see `segsweep predict --help`",
        ),
        ("convert phantm raw", "no 'phantm' among datasets/ (there are: *); did you mean 'phantom'?"),
        ("convert openkbp nowhere", "nowhere: no such folder; expected the raw scans of dataset 'openkbp'"),
        ("convert openkbp empty", "no cases.json in empty; expected the OpenKBP folder *"),
        ("convert phantom empty", "*empty*"),
        ("server --host 0.0.0.0", "--host 0.0.0.0 listens on all addresses of this machine, and none is named *"),
        ("server --artifacts s3://key:secret@bucket", "'s3://bucket' is no place for artifacts; expected a folder *"),
        ("train unett store", "no 'unett' among trainables/ (there are: *); did you mean 'unet'?"),
        ("train unet store epoch=3", "no 'epoch' among parameters of unet *; did you mean 'epochs'?"),
        ("train unet store preset=smal", "no 'smal' among presets of unet *; did you mean 'small'?"),
        ("train unet store epochs=abc", "unet: epochs='abc' cannot be used: expected a whole number"),
        ("train unet store epochs=0", "unet: epochs=0 cannot be used: expected at least 1"),
        ("train unet store patch_size=4,4", "unet: patch_size='4,4' cannot be used: expected 3 values *"),
        ("train unet store preset=small patch_size=8,8,8", "patch_size=(8, 8, 8) * makes a network of one level; *"),
        ("train unet store fold=-1", "fold=-1 cannot be used: expected a whole number from 0, or 'all'"),
        ("train unet store workers=two", "workers='two' cannot be used: expected a whole number, at least 1"),
        ("train unet store epochs", "'epochs' cannot be used: expected KEY=VALUE, for example epochs=200"),
        ("train unet store epochs=1 epochs=2", "epochs was given twice (1 and 2); expected it once"),
        ("train unet empty", "*empty: no store found (no index.json); make one with `segsweep convert *"),
        (
            "train unet newer",
            f"*newer: store format {FORMAT + 1} found, this segsweep reads {FORMAT}; update segsweep, or *",
        ),
        ("tune defalt store", "no 'defalt' among search_spaces/ (there are: *); did you mean 'default'?"),
        ("tune default store trials=0", "trials=0 cannot be used: expected at least 1"),
        ("tune default store trials=many", "trials='many' cannot be used: expected a whole number"),
        ("tune default store folds=-7", "folds=-7 cannot be used: expected all, or numbers with commas between *"),
        ("tune default store folds=0,99", "*store: no fold 99; expected 0 to *, or 'all'"),
        ("tune default store fold=1", "fold=1 is for `segsweep train`; expected folds=0, folds=0,1,2 or folds=all"),
        ("tune default store sampler=tpa", "no 'tpa' among values of sampler (there are: *); did you mean 'tpe'?"),
        ("tune default store stop=never", "no 'never' among values of stop (there are: asha, hyperband, none, paired)"),
        (
            "tune default store stop=hyperband grace=0",
            "stop=hyperband cannot be used with grace=0: expected the share *",
        ),
        ("tune default store grace=0.2", "grace=0.2 alone stops no trial; expected stop=asha, hyperband or paired *"),
        ("tune default store objective=speed", "objective=speed: no 'speed' among objectives (there are: *)"),
        (
            "tune gtv_loss store sampler=gp",
            "gtv_loss is a published comparison, whose rows are the trials; expected no *",
        ),
        ("tune gtv_loss store folds=0,1", "folds=0,1: gtv_loss is a published comparison, whose rows are trained on *"),
        (
            "tune default store objective=nsd nsd_tolerance=0",
            "objective=nsd cannot be measured with nsd_tolerance=0; *",
        ),
        ("tune default store scale=half", "scale='half' cannot be used: expected a share above 0, at most 1"),
        ("tune default store gpus=half", "gpus='half' cannot be used: expected a share above 0, at most 1"),
        ("tune gtv_loss store scale=2", "scale=2 cannot be used: expected a share above 0, at most 1"),
        ("tune default store scale=0.5", "default is no published comparison; expected scale=… and *"),
        ("tune uniseg_epochs store", "every row of uniseg_epochs starts from a pre-trained model; give pretrained=*"),
        ("tune default store epoch=3", "no 'epoch' among parameters of unet *; did you mean 'epochs'?"),
        ("tune default nowhere", "*nowhere: no store found (no index.json); *"),
        ("check nowhere", "*nowhere: no store found (no index.json); *"),
        ("ensemble nowhere", "*nowhere: no store found (no index.json); *"),
        (
            "ensemble store member=a",
            "no 'member' among keys of ensemble rule=mean (there are: members, name, rule); did you mean 'members'?",
        ),
        ("ensemble store rule=greed", "no 'greed' among rules of ensemble *; did you mean 'greedy'?"),
        ("ensemble store bags=3", "no 'bags' among keys of ensemble rule=mean *"),
        ("ensemble store rule=greedy candidates=a bags=0", "bags=0 cannot be used: expected at least 1"),
        ("ensemble store rule=greedy candidates=a most=few", "most='few' cannot be used: expected a number, *"),
        ("ensemble store rule=greedy budget_seconds=9", "0 registered models were trained on this version of 'mine'*"),
        ("ensemble store", "0 registered models were trained on this version of 'mine'; expected at least 2: *"),
        (
            "promote mine levle=0.9",
            "no 'levle' among keys of promote (there are: level, metric, *); did you mean 'level'?",
        ),
        ("promote mine metric=hd95", "no 'hd95' among metrics (there are: dice, nsd)"),
        ("promote mine metric=nsd nsd_tolerance=0", "nsd_tolerance=0 cannot be used: expected a length in mm above 0"),
        ("promote mine nsd_tolerance=1", "nsd_tolerance=1 cannot be used: expected a length in mm, and metric=nsd"),
        ("promote mine level=high", "level='high' cannot be used: expected a confidence such as 0.95"),
        ("promote mine level=95", "level=95 cannot be used: expected a confidence from 0.5 up to, not including, 1"),
        ("promote mine", "no 'mine' among registered models (there are: none)"),
        ("evaluate nowhere store", "*nowhere*"),
        ("evaluate empty store", "*empty*"),
        ("evaluate empty store --profile flare", "no 'flare' among *; did you mean 'flare2*"),
        ("evaluate empty store --compare other", "'other' cannot be used: expected KEY=VALUE, for example *"),
        ("predict mine scans s3://bucket/out", "s3://bucket/out: results are written on this machine alone; *"),
        ("evaluate empty store --out s3://bucket/out", "s3://bucket/out: results are written on this machine alone; *"),
        ("demo s3://bucket/demo", "s3://bucket/demo: results are written on this machine alone; *"),
        ("list unett", "no 'unett' among recipes *; did you mean 'unet'?"),
        ("ui --port 70000", "port 70000 cannot be used *; choose another with --port"),
    ),
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else None,
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    argv: str, sentence: str, refused: Any, store: str, here: Path
) -> None:
    (here / "empty").mkdir()
    (here / "newer").mkdir()
    index = json.loads((Path(store) / "index.json").read_text())
    (here / "newer" / "index.json").write_text(json.dumps({**index, "format": FORMAT + 1}))
    before = sorted(here.rglob("*"))
    found = refused(*argv.split())
    assert re.fullmatch(".*".join(map(re.escape, sentence.split("*"))), found), found
    after = [path for path in sorted(here.rglob("*")) if path != here / "workspace"]
    assert after == before


def test_a_patch_that_no_memory_holds_is_refused_before_ray_starts(refused: Any, store: str, here: Path) -> None:
    for verb, recipe in (("train", "unet"), ("tune", "default")):
        sentence = refused(verb, recipe, store, "patch_size=2048,2048,2048")
        assert sentence.startswith("patch_size=(2048, 2048, 2048) with batch_size=2 needs about ")
        assert " TB a worker, " in sentence and "are available; choose a smaller patch" in sentence
    assert not (here / "workspace").exists()


def test_more_workers_than_the_cluster_has_are_refused(cluster: None, refused: Any, store: str) -> None:  # noqa: ARG001
    for verb, recipe in (("train", "unet"), ("tune", "default")):
        sentence = refused(verb, recipe, store, "preset=small", "workers=640")
        assert sentence.startswith("640 workers were asked for, one ")
        assert "the cluster has " in sentence and "ask for at most workers=" in sentence


def test_convert_goes_on_with_a_store_and_check_looks_at_it(
    phantom_raw: Path, phantom_store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("copy [1]")  # relative, as people give it
    shutil.copytree(phantom_store, folder)
    assert cli.main(["convert", "phantom", os.path.relpath(phantom_raw, here), "--store", str(folder)]) == 0
    shown = capsys.readouterr()
    assert f"{folder}: 0 cases written, 16 kept, 0 failed" in shown.out
    plan = r"^plan: spacing [\d.]+ x [\d.]+ x [\d.]+ mm, patch \(\d+, \d+, \d+\) voxels \(z, y, x\), batch \d+$"
    assert re.search(plan, shown.out, re.MULTILINE), shown.out
    assert "" not in shown.out.splitlines(), "bars leave no empty lines where there is no terminal"
    assert f"next: segsweep train unet '{folder}' preset=small" in shown.out
    assert (folder / "quality.html").is_file()
    assert shown.err == ""
    assert cli.main(["check", str(folder)]) in (0, 1)
    assert f"{folder}/quality.html" in capsys.readouterr().out


def test_convert_tells_of_cases_that_the_folder_holds_no_more(
    here: Path, okbp_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(okbp_store, here / "store")
    shutil.copytree(okbp_store.parent / "raw", here / "raw")
    stated = json.loads((here / "raw" / "cases.json").read_text())
    stated["cases"].pop()
    (here / "raw" / "cases.json").write_text(json.dumps(stated))
    assert cli.main(["convert", "openkbp", "raw", "--store", "store"]) == 0
    assert "1 case left out, which the store held and raw does not: okbp_001; " in capsys.readouterr().out


def test_convert_proposes_no_training_where_no_case_has_labels(
    here: Path, okbp_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "raw").mkdir()
    shutil.copytree(okbp_store.parent / "raw" / "images", here / "raw" / "images")
    (here / "raw" / "labels.json").write_text('{"structures": {"Mandible": 7}}')
    assert cli.main(["convert", "nifti_folder", "raw", "--store", "store"]) == 0
    shown = capsys.readouterr().out
    assert "no training case has labels: nothing can be learnt from this store alone" in shown
    assert "next:" not in shown


def test_a_deep_check_names_damage_and_a_deep_conversion_mends_it(
    okbp_store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(okbp_store, here / "copy"))
    victim = folder / "cases" / "okbp_001" / "intensities.npy"
    victim.write_bytes(bytes(victim.stat().st_size))
    assert cli.main(["check", str(folder), "--deep"]) == 1
    shown = capsys.readouterr().out
    assert "error: okbp_001: intensities.npy holds other bytes than were written; run `segsweep convert" in shown
    assert "deep: 1 error, 0 notes" in shown
    raw = str(okbp_store.parent / "raw")
    assert cli.main(["convert", "openkbp", raw, "--store", str(folder), "--deep"]) == 0
    shown = capsys.readouterr().out
    assert f"{folder}: 1 case written, 1 kept, 0 failed" in shown
    assert re.search(r"^2 cases, 0 MB \(\d\.\d of the raw voxels\), \d+ s$", shown, re.MULTILINE), shown
    assert cli.main(["check", str(folder), "--deep"]) == 0
    assert "deep: 0 errors, 0 notes" in capsys.readouterr().out


def test_check_ends_with_1_when_there_are_errors(phantom_store: Path, here: Path) -> None:
    folder = here / "copy"
    shutil.copytree(phantom_store, folder)
    assert cli.main(["check", str(folder)]) == 0
    voxels = next(path for path in (folder / "cases").glob("*/grids/native/image/c/**/*") if path.is_file())
    voxels.write_bytes(voxels.read_bytes()[:-8])
    assert cli.main(["check", str(folder)]) == 1


def test_predict_names_scans_that_do_not_fit(refused: Any, model: Path, here: Path) -> None:
    (here / "empty").mkdir()
    assert "empty holds no scans; expected files that end with .nii.gz" in refused(
        "predict", str(model), "empty", "out"
    )
    assert "nowhere is not there; expected a scan" in refused("predict", str(model), "nowhere", "out")
    scan(here / "scans" / "patient.nii.gz")
    sentence = refused("predict", str(model), "scans", "out")
    assert sentence.startswith("patient: found 1 channels (patient.nii.gz), the model expects 2: patient_0000 (CT)")
    assert not (here / "out").exists()


def test_predict_names_bad_flips_and_damaged_models(refused: Any, model: Path, here: Path) -> None:
    for channel in range(2):
        scan(here / "scans" / f"patient_000{channel}.nii.gz")
    assert "'abc'" in refused("predict", str(model), "scans", "out", "--mirror", "abc")
    assert "no manifest.json found" in refused("predict", "scans", "scans", "out")
    assert not (here / "out").exists()


def test_predict_writes_label_maps_and_names_the_scan_that_failed(
    model: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for channel in range(2):
        scan(here / "scans" / f"patient_000{channel}.nii.gz")
        (here / "scans" / f"broken_000{channel}.nii.gz").write_bytes(b"no gzip")
    assert cli.main(["predict", str(model), "scans", "out"]) == 2
    shown = capsys.readouterr()
    assert "1 scan segmented, 1 failed" in shown.out
    assert shown.err.startswith("segsweep: ") and "broken_0000.nii.gz" in shown.err and len(shown.err.splitlines()) == 1
    assert sorted(path.name for path in (here / "out").iterdir()) == [
        "labels.json",
        "patient.nii.gz",
        "performance.csv",
    ]


def test_predict_and_list_know_the_registered_models(
    refused: Any, model: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused("predict", "models:/mine-unet/1", "scans", "out").startswith(
        "no 'mine-unet' among registered models (there are: none)"
    )
    workspace = Workspace(root=here / "workspace")
    tracker = Tracker(workspace, experiment="mine")
    run_id = tracker.start("one", params={})
    registered = register(model, name="mine-unet", tracker=tracker, run_id=run_id, tags={"segsweep.dice": "0.5000"})
    set_alias("mine-unet", alias="candidate", version=1, workspace=workspace)
    capsys.readouterr()
    assert "did you mean 'mine-unet'?" in refused("predict", "models:/mine-unte/1", "scans", "out")
    assert "no '7' among versions of mine-unet (there are: 1)" in refused("predict", "models:/mine-unet/7", "s", "out")
    assert "did you mean 'candidate'?" in refused("predict", "models:/mine-unet@candidat", "scans", "out")
    assert cli.main(["list", "models"]) == 0
    assert f"{registered.uri} @candidate  dice 0.5000" in capsys.readouterr().out


def test_list_shows_every_recipe_and_one_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    shown = capsys.readouterr().out
    for kind in recipes.EXPORTS:
        for name in recipes.names(kind):
            assert f"\n  {name} " in shown
    assert cli.main(["list", "unet"]) == 0
    shown = capsys.readouterr().out
    for text in (
        "trainables/unet",
        "  epochs = 1000",
        "  preset=small: features=16",
        "`features` at the first level",
        "`foreground` is the share",
    ):
        assert text in shown


def test_faults_of_the_machine_are_one_sentence(refused: Any, here: Path) -> None:
    (here / "workspace").write_text("a file where the workspace belongs")
    assert refused("list", "models") == f"{here / 'workspace'}: File exists"


def test_mistakes_of_our_own_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(recipes, "names", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["list", "datasets"])


def test_an_interruption_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "names", interrupted)
    assert cli.main(["list", "datasets"]) == 130
    assert "segsweep: interrupted; give the same command again to go on" in capsys.readouterr().err


def test_the_entry_point_ends_with_the_exit_code(here: Path) -> None:
    command = Path(sys.executable).with_name("segsweep")
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(
        [command, "convert", "phantom", "nowhere"], cwd=here, capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "segsweep: nowhere: no such folder; expected the raw scans of dataset 'phantom'\n"


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from segsweep import cli; cli.main(['--help']);"
        "print(sorted({'ray', 'torch', 'mlflow', 'zarr', 'optuna', 'SimpleITK'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_a_damaged_prediction_costs_its_own_case(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label = np.zeros(GRID.shape, dtype=np.uint8)
    label[2:4, 2:5, 2:6] = 1
    for case in "ab":
        write_label_map(label, geometry=GRID, path=here / "reference" / f"{case}.nii.gz")
        write_label_map(label, geometry=GRID, path=here / "out" / f"{case}.nii.gz")
    (here / "out" / "b.nii.gz").write_bytes(b"")
    (here / "labels.json").write_text('{"tumour": 1}')
    argv = ("evaluate", "out", "reference", "--labels", "labels.json", "--profile", "flare24_pancancer")
    assert cli.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("segsweep: out: b.nii.gz")
    rows = (here / "evaluation" / "scores.csv").read_text().splitlines()
    assert [row.split(",")[:5] for row in rows[1:]] == [
        ["a", "tumour", "1.0", "1.0", "1.0"],
        ["b", "tumour", *["0.0"] * 3],
    ]
    assert (here / "evaluation" / "lesions.csv").read_text().splitlines()[2] == "b,tumour,1,0,0,1,0,0.0,0.0"
    argv = ("evaluate", "out", "reference", "--lesions", "1", "--tolerance", "0.5", "--out", "plain")
    assert cli.main(argv) == 2
    assert (here / "plain" / "scores.csv").read_text().splitlines()[1].split(",")[5] == "0.5"
    assert (here / "plain" / "lesions.csv").read_text().splitlines()[1] == "a,1,1,1,1,0,0,1.0,1.0"


def test_what_was_not_scored_as_usual_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label = np.zeros(GRID.shape, dtype=np.uint8)
    label[2:4, 2:5, 2:6] = 1
    for case in "abcdefgh":
        write_label_map(label + label * (case == "a"), geometry=GRID, path=here / "reference" / f"{case}.nii.gz")
    write_label_map(label, geometry=GRID, path=here / "out" / "h.nii.gz")
    (here / "reference" / "labels.json").write_text('{"tumour": 1, "liver": 2}')
    (here / "out" / "labels.json").write_text('{"tumour": 1}')
    assert cli.main(("evaluate", "out", "reference")) == 0
    said = capsys.readouterr().out.splitlines()
    assert "out: no prediction for a, b, c, d, e and 2 more" in said
    assert "out: does not predict liver" in said
