"""Training from a store behind an object storage that is some way off, against the same store in a local folder.

    python benchmarks/remote_reads.py --latency 0.03 --megabytes 100            (a quarter of an hour on 2 quiet cores)

The storage is benchmarks/slow_storage.py: each request is answered after the latency, all bodies together come at so many MB/s. Scans are
made from a seed. Measured are plain reads of a patch's image and label map, patches cut and augmented as for a training (one thread, as
on a CPU), and the steps of a small U-Net.

cold     the cache is empty at the start of the epoch
warm     the cache holds all
small    the cache holds half of the scans, over and over

Rounds visit all sides in turn, so that other load hits all alike; factors are medians of the factors within a round, by the clock and by
processor time, which other load disturbs less. The bars: warm is 0.95 of local; a cold epoch takes no longer than a local one and the
transfer of its bytes together.
"""

import argparse
import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

from segsweep.data.arrays import GridData, GridReader, write_grid
from segsweep.data.cache import FOLDER_VARIABLE, LIMIT_VARIABLE
from segsweep.data.downloads import download_cache
from segsweep.data.geometry import Geometry, Size
from segsweep.data.manifest import committed
from segsweep.data.planning import Normalisation
from segsweep.data.remote import RemoteGrid
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.learning.feeding import feed
from segsweep.learning.loop import Setting, train
from segsweep.learning.method import load_method
from segsweep.learning.patches import TrainingCase
from segsweep.learning.sampling import Turn
from segsweep.learning.task import Task

SHAPE: Size = (96, 256, 256)
PATCH: Size = (64, 96, 96)
GEOMETRY = Geometry(
    shape=SHAPE,
    spacing=(2.0, 1.0, 1.0),
    origin=(0.0, 0.0, 0.0),
    direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
)
TABLE = LabelTable(labels=LabelSet(structures=("ball",)), atoms=((), (0,)))
TASK = Task(
    channels=("CT",),
    table=TABLE,
    head="softmax",
    patch_size=PATCH,
    spacing=GEOMETRY.spacing,
    normalisation=(Normalisation(scheme="ct", low=-1000.0, high=1000.0, mean=0.0, deviation=200.0),),
)
LOCAL, COLD, WARM, SMALL = "local", "cold", "warm", "small"
WARM_BAR = 0.95
BATCH = 2


@contextmanager
def storage(root: Path, *, latency: float, megabytes: float) -> Iterator[str]:
    """The address of a storage in a process of its own, to which the environment points."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = Path(__file__).with_name("slow_storage.py")
    server = subprocess.Popen([sys.executable, program, str(root), str(port), str(latency), str(megabytes)])
    address = f"http://127.0.0.1:{port}"
    os.environ |= {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    try:
        while server.poll() is None:
            with contextlib.suppress(OSError):
                served(address)
                break
            time.sleep(0.1)
        yield address
    finally:
        server.kill()
        server.wait()


def served(address: str) -> int:
    """Bytes that the storage has sent so far."""
    with urllib.request.urlopen(f"{address}/served") as answer:
        return int(answer.read())


def write_cases(folder: Path, *, number: int) -> int:
    """Noise with a ball in it, committed as a store commits grids; bytes of a case."""
    z, y, x = np.ogrid[tuple(slice(-1.0, 1.0, size * 1j) for size in SHAPE)]
    label = (z**2 + y**2 + x**2 < 0.2).astype(np.uint8)
    for index in range(number):
        noise = np.random.default_rng(index).normal(0.0, 18.0, SHAPE)
        data = GridData(image=np.rint(noise + 60.0 * label).astype(np.int16)[None], label=label, geometry=GEOMETRY)
        with committed(folder / str(index)) as partial:
            write_grid(partial / "grid", data=data, num_atoms=2, channels=("CT",), seed=0)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) // number


def open_local(folder: Path, *, number: int) -> list[TrainingCase]:
    """The cases from the folder."""
    return [_case(index, grid=_reader(folder / str(index), lasting=True)) for index in range(number)]


def open_remote(*, number: int, limit_gb: float) -> list[TrainingCase]:
    """The cases from the storage, through a cache of so many GB."""
    os.environ[LIMIT_VARIABLE] = str(limit_gb)
    grids = [
        RemoteGrid(
            f"s3://bucket/{index}",
            name=f"case {index}",
            geometry=GEOMETRY,
            demand=lambda _: None,
            opened=lambda folder: _reader(folder, lasting=False),
        )
        for index in range(number)
    ]
    return [dataclasses.replace(_case(index, grid=grid), distant=grid) for index, grid in enumerate(grids)]


def _case(index: int, *, grid: GridReader | RemoteGrid) -> TrainingCase:
    return TrainingCase(case_id=str(index), grid=grid, annotated=(True,))


def _reader(folder: Path, *, lasting: bool) -> GridReader:
    return GridReader(folder / "grid", name=folder.name, lookup=np.arange(2, dtype=np.uint8), lasting=lasting)


def setting_of(cases: Sequence[TrainingCase], *, steps: int) -> Setting:
    """A small U-Net on the cases, one epoch."""
    method = load_method("unet")
    params = method.params(
        {"patch_size": list(PATCH), "batch_size": BATCH, "head": "softmax", "epochs": 1, "iterations": steps,
         "validation_iterations": 0, "features": 4, "levels": 3}
    )  # fmt: skip
    torch.manual_seed(0)
    return Setting(
        model=method.build(params, task=TASK),
        task=TASK,
        params=params,
        stages=method.stages(params),
        loss=method.loss(params, task=TASK),
        training=cases,
        validation=(),
        seed=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taken:
    """Seconds by the clock, and of processor time of this process."""

    clock: float
    processor: float


def taken(work: Callable[[], object]) -> Taken:
    """What some work takes."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return Taken(clock=time.perf_counter() - clock, processor=time.process_time() - processor)


def touch_all(cases: Sequence[TrainingCase]) -> None:
    """Have every case here, also those that no batch has drawn yet."""
    for case in cases:
        case.grid.read_label((slice(0, 1), slice(0, 1), slice(0, 1)))


def read_patches(cases: Sequence[TrainingCase], *, reads: int) -> None:
    """Image and label map of patches at random."""
    generator = np.random.default_rng(0)
    for _ in range(reads):
        case = cases[int(generator.integers(len(cases)))]
        corner = [int(generator.integers(size - patch)) for size, patch in zip(SHAPE, PATCH, strict=True)]
        z, y, x = (slice(low, low + patch) for low, patch in zip(corner, PATCH, strict=True))
        case.grid.read_image((z, y, x))
        case.grid.read_label((z, y, x))


def make_batches(cases: Sequence[TrainingCase], *, steps: int, first: int) -> None:
    """Batches as a training wants them, from the step `first` on."""
    setting = setting_of(cases, steps=steps)
    turns = [Turn(step=first + step) for step in range(steps)]
    for _ in feed(cases, setting=setting, params=setting.params, turns=turns):
        pass


def train_epoch(cases: Sequence[TrainingCase], *, steps: int) -> float:
    """Its loss."""
    (epoch,) = train(setting_of(cases, steps=steps))
    return epoch.metrics["loss"]


def compare(folder: Path, *, options: argparse.Namespace) -> None:
    """Write the cases, measure all sides, report."""
    tempfile.tempdir = str(folder / "tmp")
    Path(tempfile.tempdir).mkdir()
    # Downloads go below the temporary folder, and the local side makes no uncompressed copies.
    os.environ.pop(FOLDER_VARIABLE, None)
    size = write_cases(folder / "root" / "bucket", number=options.cases)
    bytes_seconds = options.cases * size / options.megabytes / 1e6
    large, half = 10.0, (options.cases // 2 + 0.5) * size / 1e9
    print(
        f"{options.cases} cases of {size / 1e6:.1f} MB; {options.latency * 1e3:.0f} ms a request, {options.megabytes:.0f} MB/s"
    )
    with storage(folder / "root", latency=options.latency, megabytes=options.megabytes) as address:
        local = open_local(folder / "root" / "bucket", number=options.cases)
        reads, patches, epochs = (Times((name, []) for name in (LOCAL, COLD, WARM, SMALL)) for _ in range(3))
        sent: dict[str, list[float]] = {COLD: [], WARM: [], SMALL: []}
        remote: list[TrainingCase] = []
        for round_ in range(options.rounds + 1):
            losses = set[float]()
            for name in (LOCAL, SMALL, COLD, WARM):
                if name in (SMALL, COLD):
                    shutil.rmtree(download_cache().folder)
                    remote = open_remote(number=options.cases, limit_gb=half if name == SMALL else large)
                if name == WARM:
                    touch_all(remote)
                cases = local if name == LOCAL else remote
                before = served(address)
                epochs[name].append(taken(lambda: losses.add(train_epoch(cases, steps=options.steps))))  # noqa: B023
                if name != LOCAL:
                    sent[name].append((served(address) - before) / options.megabytes / 1e6)
            if len(losses) != 1:
                raise SystemExit(f"the sides trained on different batches: losses {losses}")
            for name, cases in ((LOCAL, local), (WARM, remote)):
                reads[name].append(taken(partial(read_patches, cases, reads=options.reads)))
                batches = partial(make_batches, cases, steps=options.steps, first=round_ * options.steps)
                patches[name].append(taken(batches))
    report(reads, patches=patches, epochs=epochs, sent=sent, options=options)
    print(
        f"all bytes once: {bytes_seconds:.2f} s; {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} with this and all else"
    )


Times = dict[str, list[Taken]]


def report(
    reads: Times, *, patches: Times, epochs: Times, sent: dict[str, list[float]], options: argparse.Namespace
) -> None:
    """Print rates, factors and how the bars were met, of all rounds but the first, which only warms."""
    for label, times, number in (
        ("plain reads", reads, options.reads),
        ("patches cut and augmented", patches, options.steps * BATCH),
        ("steps of a training", epochs, options.steps),
    ):
        print(f"{label}, a second")
        for name, rounds in times.items():
            if rounds:
                rate = number / np.median([one.clock for one in rounds[1:]])
                clock, processor = (factor(times, name=name, of=of) for of in ("clock", "processor"))
                barred = name == WARM and times is not reads
                bar = f"; bar {WARM_BAR}: {_met(clock >= WARM_BAR)}" if barred else ""
                print(f"  {name:6} {rate:8.1f}   {clock:.2f} of local, processor time {processor:.2f}{bar}")
    for name in (COLD, SMALL):
        pairs = zip(epochs[name][1:], epochs[LOCAL][1:], strict=True)
        longer = float(np.median([one.clock - other.clock for one, other in pairs]))
        transfer = float(np.median(sent[name][1:]))
        bar = f"; bar: {_met(longer <= transfer)}" if name == COLD else ""
        print(f"{name}: {longer:.2f} s longer than local, its bytes need {transfer:.2f} s{bar}")


def factor(times: Times, *, name: str, of: str) -> float:
    """How much of the local rate a side reaches."""
    pairs = zip(times[LOCAL][1:], times[name][1:], strict=True)
    return float(np.median([getattr(local, of) / getattr(one, of) for local, one in pairs]))


def _met(met: bool) -> str:
    return "met" if met else "MISSED"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--latency", type=float, default=0.03, help="seconds before each answer")
    parser.add_argument("--megabytes", type=float, default=100.0, help="MB/s of all answers together")
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40, help="steps of an epoch")
    parser.add_argument("--reads", type=int, default=300, help="plain reads a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds after the one that warms")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        compare(Path(name), options=options)


if __name__ == "__main__":
    main()
