"""The two sides of same_budget.py: what is laid out for each of them, and how each trains and predicts."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segsweep.data.store import open_store
from segsweep.errors import SegsweepError

OURS, THEIRS = "segsweep", "nnunet"
NUM_CORES, WARM_UP_EPOCHS = 2, 2
# Seconds between two looks at a training: for a new checkpoint, and at the memory, which costs more.
LOOK_EVERY, WEIGH_EVERY = 0.2, 10.0
DATASET = "Dataset501_OpenKBP"
# Its spinal cord is wrong in the published set.
LEFT_OUT = "okbp_260"

Ends = Mapping[int, float]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is compared. A work folder belongs to one of these."""

    raw: str
    minutes: float
    values: tuple[str, ...]
    nnunet_iterations: int
    nnunet_memory: float | None
    mirror: Literal["none", "zyx"]
    profile: str


@dataclass(frozen=True, kw_only=True)
class Work:
    """A folder with everything that a comparison writes, and the interpreter that has nnU-Net."""

    folder: Path
    python: Path
    settings: Settings

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def scans(self) -> Path:
        """Held-out scans, as CASE_0000.nii.gz."""
        return self.folder / "scans"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a training took from its plan or preset: batches an epoch, patches a batch, voxels (z, y, x)."""

    iterations: int
    batch_size: int
    patch_size: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A training that ended: when each epoch did (seconds), its peak memory (PSS, bytes), its plan."""

    ends: Ends
    memory: int
    plan: Plan


def prepare(work: Work) -> None:
    """A store for ours, a preprocessed dataset with the same fold 0 for theirs, and last of all the held-out scans."""
    base, scans = work.folder, work.folder / "scans.partial"
    for name in ("raw", "store", "nnUNet_raw", "nnUNet_preprocessed", scans.name):
        shutil.rmtree(base / name, ignore_errors=True)
    say("converting")
    copy_raw(Path(work.settings.raw), to=base / "raw")
    ours(work, "convert", "openkbp", base / "raw", "--store", work.store, log="convert.log", allowed=(0, 1))
    say("nnU-Net plans and preprocesses")
    store = open_store(work.store)
    preprocess(work, learned=store.training(0), validated=store.validation(0))
    for case in (*store.validation(0), *store.held_out("validation")):
        copy(base / "raw" / "images" / f"{case}.nii.gz", scans / f"{case}_0000.nii.gz")
    scans.rename(work.scans)


def copy_raw(raw: Path, *, to: Path) -> None:
    """The raw folder without the case that is left out."""
    content = json.loads((raw / "cases.json").read_text())
    cases = [case for case in content["cases"] if case["id"] != LEFT_OUT]
    for name in ("images", "labels"):
        shutil.copytree(raw / name, to / name)
    (to / "cases.json").write_text(json.dumps({**content, "cases": cases}))


def preprocess(work: Work, *, learned: Sequence[str], validated: Sequence[str]) -> None:
    """nnU-Net's dataset, plan and grids; its fold 0 is the given one."""
    raw, theirs = work.folder / "raw", work.folder / "nnUNet_raw" / DATASET
    for case in (*learned, *validated):
        copy(raw / "images" / f"{case}.nii.gz", theirs / "imagesTr" / f"{case}_0000.nii.gz")
        copy(raw / "labels" / f"{case}.nii.gz", theirs / "labelsTr" / f"{case}.nii.gz")
    described = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **labels_of(work)},
        "numTraining": len(learned) + len(validated),
        "file_ending": ".nii.gz",
    }
    (theirs / "dataset.json").write_text(json.dumps(described))
    memory, processes = work.settings.nnunet_memory, ("-np", NUM_CORES)
    target = () if memory is None else ("-gpu_memory_target", memory)
    nnunet(work, "nnUNetv2_extract_fingerprint", "-d", "501", *processes, log="fingerprint.log")
    nnunet(work, "nnUNetv2_plan_experiment", "-d", "501", *target, log="plan.log")
    nnunet(work, "nnUNetv2_preprocess", "-d", "501", "-c", "3d_fullres", *processes, log="preprocess.log")
    folds = [{"train": list(learned), "val": list(validated)}]
    (work.folder / "nnUNet_preprocessed" / DATASET / "splits_final.json").write_text(json.dumps(folds))


def train_ours(work: Work, *, folder: Path, epochs: int) -> Fitted:
    """`segsweep train` in a workspace of its own; an epoch ends when its checkpoint is there."""
    ends: dict[int, float] = {}

    def look() -> None:
        for path in folder.glob("runs/*/checkpoints/epoch-*"):
            ends.setdefault(int(path.name.rpartition("-")[2]), time.time())

    given = (*work.settings.values, f"epochs={epochs}", "fold=0")
    memory = ours(work, "train", "unet", work.store, *given, log=f"{OURS}/{folder.name}.log", place=folder, look=look)
    document = json.loads((model_of(folder) / "run.json").read_text())
    plan = Plan(
        iterations=document["params"]["iterations"],
        batch_size=document["params"]["batch_size"],
        patch_size=tuple(document["task"]["patch_size"]),
    )
    return Fitted(ends=ends, memory=memory, plan=plan)


def train_theirs(work: Work, *, folder: Path, epochs: int) -> Fitted:
    """nnU-Net's trainer with a results folder of its own."""
    folder.mkdir(parents=True)
    iterations = work.settings.nnunet_iterations
    script = Path(__file__).with_name("same_budget_nnunet.py")
    given = (epochs, iterations, max(1, round(iterations / 5)), folder / "ends.json")
    memory = nnunet(work, work.python, script, *given, log=f"{THEIRS}/{folder.name}.log", results=folder)
    ends = json.loads((folder / "ends.json").read_text())["ends"]
    plans = json.loads((work.folder / "nnUNet_preprocessed" / DATASET / "nnUNetPlans.json").read_text())
    chosen = plans["configurations"]["3d_fullres"]
    # It turns the axes so that the coarsest one comes first.
    patch_size = tuple(chosen["patch_size"][axis] for axis in plans["transpose_backward"])
    plan = Plan(iterations=iterations, batch_size=chosen["batch_size"], patch_size=patch_size)
    return Fitted(ends=dict(enumerate(ends)), memory=memory, plan=plan)


def predict_ours(work: Work) -> None:
    """Label maps of the held-out scans by `segsweep predict`."""
    folder, mirror = work.folder / OURS, work.settings.mirror
    model = model_of(folder / "run")
    ours(work, "predict", model, work.scans, folder / "predictions", "--mirror", mirror, log=f"{OURS}/predict.log")


def predict_theirs(work: Work) -> None:
    """Label maps of the held-out scans by nnU-Net's own command, and labels.json beside them."""
    folder = work.folder / THEIRS
    out = folder / "predictions"
    given = ["-i", work.scans, "-o", out, "-d", "501", "-c", "3d_fullres", "-f", "0", "-device", "cpu", "-npp", "1"]
    given += ["-nps", "1", *(["--disable_tta"] if work.settings.mirror == "none" else [])]
    nnunet(work, "nnUNetv2_predict", *given, log=f"{THEIRS}/predict.log", results=folder / "run")
    (out / "labels.json").write_text(json.dumps(labels_of(work)))


def labels_of(work: Work) -> dict[str, int]:
    """The values of the structures in the label maps."""
    return json.loads((work.folder / "raw" / "cases.json").read_text())["labels"]


def model_of(workspace: Path) -> Path:
    """The one model that was trained in a workspace."""
    return next(workspace.glob("runs/*/model"))


def copy(file: Path, to: Path) -> None:
    """Copy a file into a folder that is made for it."""
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, to)


def say(words: str) -> None:
    """What happens now, beside the table."""
    print(words, file=sys.stderr, flush=True)


def nothing() -> None:
    """The look of a command of which nothing is to be seen."""


def ours(
    work: Work,
    *command: object,
    log: str,
    place: Path | None = None,
    allowed: tuple[int, ...] = (0,),
    look: Callable[[], None] = nothing,
) -> int:
    """Run `segsweep` with these words in the workspace `place`; see `follow`."""
    code = "import sys; from segsweep.cli import main; sys.exit(main(sys.argv[1:]))"
    kept = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    own = {"SEGSWEEP_WORKSPACE": str(place or work.folder / "workspace"), "OMP_NUM_THREADS": str(NUM_CORES)}
    own["RAY_worker_niceness"] = "0"  # as nnU-Net's; Ray's own is 15, which beside other work is a fraction of a core
    words = [sys.executable, "-c", code, *map(str, command)]
    return follow(words, environment=kept | own, log=work.folder / log, allowed=allowed, look=look)


def nnunet(work: Work, command: object, *given: object, log: str, results: Path | None = None) -> int:
    """Run a command of nnU-Net's environment; see `follow`."""
    folders = {name: str(work.folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed")}
    folders["nnUNet_results"] = str(results or work.folder / "nnUNet_results")
    # As its own entry point does: its worker processes take one thread each.
    own = {"OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": str(NUM_CORES)}
    words = [str(work.python.parent / str(command)), *map(str, given)]
    return follow(words, environment=os.environ | folders | own, log=work.folder / log)


def follow(
    words: list[str],
    *,
    environment: Mapping[str, str],
    log: Path,
    allowed: tuple[int, ...] = (0,),
    look: Callable[[], None] = nothing,
) -> int:
    """Run a command with its output in a file; returns the peak memory of all its processes (PSS, bytes).

    Raises SegsweepError, with the last words of the output, for an exit code that is not allowed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    peak, weighed = 0, 0.0
    with log.open("w") as output, subprocess.Popen(words, env=environment, stdout=output, stderr=output) as process:
        while process.poll() is None:
            look()
            if time.monotonic() - weighed > WEIGH_EVERY:
                peak, weighed = max(peak, tree_memory(process.pid)), time.monotonic()
            time.sleep(LOOK_EVERY)
    look()
    if process.returncode not in allowed:
        last = (log.read_text().strip() or "it said nothing").splitlines()[-1]
        raise SegsweepError(f"{log.stem} failed with exit code {process.returncode} ({last}); see {log}")
    return peak


def tree_memory(root: int) -> int:
    """Bytes that a process and all below it hold, shared pages once (PSS)."""
    tree, kilobytes = [root], 0
    for process in tree:
        with suppress(OSError):  # it ended meanwhile
            for path in Path(f"/proc/{process}/task").glob("*/children"):
                tree += map(int, path.read_text().split())
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return 1024 * kilobytes
