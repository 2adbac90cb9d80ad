"""Whole training batches a second: the store's patches, drawn, augmented and stacked, against nnU-Net's own loader and transforms.

    PEERS/bin/python benchmarks/augmentation.py            (PEERS: see benchmarks/requirements.txt; about 8 minutes)

Both sides draw from the same CT-like scans with nnU-Net's default augmentation (given the same numbers their transforms give the
same voxels, which is checked first), batches of two, the second patch forced to hold
foreground, targets for every level of the network. nnU-Net reads its own blosc2 files and runs in this process, then in two worker
processes; ours reads a store and runs in this thread, then in two threads of this process. torch has one thread everywhere.
Rounds visit all sides in turn, so that other load hits all alike. Factors are those of all rounds together, because a patch costs
many times as much when it is turned; the range of the factors of single rounds stands behind them.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import (  # type: ignore[import-not-found]
    NonDetMultiThreadedAugmenter,
)
from batchgenerators.utilities.file_and_folder_operations import write_pickle  # type: ignore[import-not-found]
from batchgeneratorsv2.transforms.intensity.brightness import (  # type: ignore[import-not-found]
    MultiplicativeBrightnessTransform,
)
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform  # type: ignore[import-not-found]
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform  # type: ignore[import-not-found]
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform  # type: ignore[import-not-found]
from batchgeneratorsv2.transforms.spatial.low_resolution import (  # type: ignore[import-not-found]
    SimulateLowResolutionTransform,
)
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform  # type: ignore[import-not-found]
from nnunet_loading import training_loader
from nnunetv2.preprocessing.preprocessors.default_preprocessor import (  # type: ignore[import-not-found]
    DefaultPreprocessor,
)
from patch_reads import NUM_LABELS, RULES, Case, make_case, open_ours, write_nnunet, write_ours

from segsweep.data.geometry import Size
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.data.topology import topology
from segsweep.learning import intensity
from segsweep.learning.augment import Cut, Source, Warp, cut
from segsweep.learning.batches import Batch, draw
from segsweep.learning.params import TrainingParams
from segsweep.learning.patches import TrainingCase
from segsweep.learning.prefetch import prefetch
from segsweep.learning.sampling import Turn
from segsweep.learning.supervision import shrink
from segsweep.learning.task import Task

PATCHES: tuple[Size, ...] = ((128, 128, 128), (96, 96, 96))
STRUCTURES = tuple(f"structure {value}" for value in range(1, NUM_LABELS))
BATCH_SIZE, WORKERS, BAR = 2, 2, 4.0
# nnU-Net's workers keep this many batches ready; they are taken out before the clock starts.
CACHED = 6

Next = Callable[[], object]


@dataclass(kw_only=True)
class Side:
    """One loader. `start` gives the function that makes the next batch, `stop` ends its workers."""

    name: str
    start: Callable[[], Next]
    stop: Callable[[], None] = lambda: None
    ready: int = 0
    batches: int
    clock: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def measure(self) -> None:
        """Patches a second of a round, by the clock and by this process's processor time."""
        make = self.start()
        for _ in range(self.ready + 1):
            make()
        clock, processor = time.perf_counter(), time.process_time()
        for _ in range(self.batches):
            make()
        number = self.batches * BATCH_SIZE
        self.clock.append((time.perf_counter() - clock) / number)
        self.processor.append((time.process_time() - processor) / number)
        self.stop()


class Fixed(np.random.Generator):
    """Draws what lets a transform happen, with one value for all of its parameters."""

    def __init__(self, value: float) -> None:
        super().__init__(np.random.PCG64(0))
        self.value = value

    def random(self) -> float:  # type: ignore[override]
        return 0.0

    def uniform(self, *_: float) -> float:  # type: ignore[override]
        return self.value


def check() -> None:
    """Every transform but noise must make of a volume what nnU-Net's makes of it."""

    def always(value: float) -> Callable[..., float]:
        return lambda *_, **__: value

    bend = {"synchronize_channels": False, "p_per_channel": 1, "p_retain_stats": 1}
    pairs = (
        (intensity.blur, 0.7, GaussianBlurTransform(always(0.7), p_per_channel=1)),
        (intensity.brightness, 0.8, MultiplicativeBrightnessTransform(always(0.8), False)),
        (intensity.contrast, 0.8, ContrastTransform(always(0.8), True, False)),
        (intensity.low_resolution, 0.6, SimulateLowResolutionTransform(always(0.6), False, True, None)),
        (intensity.gamma, 0.7, GammaTransform(always(0.7), p_invert_image=0, **bend)),
        (intensity.inverted_gamma, 1.4, GammaTransform(always(1.4), p_invert_image=1, **bend)),
    )
    scan = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 40, 40, 40), dtype=np.float32))
    atoms = (scan[0] > 0).to(torch.uint8)
    for change, value, peer in pairs:
        mine = scan.clone()
        change(mine, Fixed(value))
        torch.testing.assert_close(mine, peer(image=scan.clone())["image"], atol=1e-5, rtol=0)
    turn = SpatialTransform(
        (16, 16, 16), 0, False, p_rotation=1, rotation=lambda *_, dim, **__: (0.3, -0.2, 0.4)[dim],
        p_scaling=1, scaling=always(1.2), p_synchronize_scaling_across_axes=1, mode_seg="nearest",
    )(image=scan.clone(), segmentation=atoms[None].to(torch.int16))  # fmt: skip
    # nnU-Net turns the other way about y.
    warp = Warp(angles=(0.3, 0.2, 0.4), scale=(1.2, 1.2, 1.2))
    source = Source(shape=(40, 40, 40), read=lambda at: Cut(image=scan[(slice(None), *at)], atoms=atoms[at]))
    patch = cut(source, corner=(12, 12, 12), patch_size=(16, 16, 16), warp=warp)
    torch.testing.assert_close(patch.image, turn["image"], atol=1e-4, rtol=0)
    torch.testing.assert_close(patch.atoms.short(), turn["segmentation"][0])


def num_levels(patch_size: Size) -> int:
    """Resolutions that a network of this patch is trained at: all of its levels but the deepest."""
    return len(topology(patch_size, spacing=(1.0, 1.0, 1.0)).strides) - 1


def ours(folder: Path, *, num_cases: int, patch_size: Size) -> Callable[[Turn], list[torch.Tensor]]:
    """Makes the batch of a turn, with the target of every level."""
    labels = LabelSet(structures=STRUCTURES)
    atoms = ((), *((index,) for index in range(len(STRUCTURES))))
    task = Task(
        channels=("CT",), table=LabelTable(labels=labels, atoms=atoms), head="softmax", patch_size=patch_size,
        spacing=(2.0, 1.0, 1.0), normalisation=RULES,
    )  # fmt: skip
    cases = [
        TrainingCase(case_id=str(index), grid=grid, annotated=(True,) * len(STRUCTURES))
        for index, grid in enumerate(open_ours(folder, num_cases=num_cases))
    ]
    params = TrainingParams(batch_size=BATCH_SIZE)
    sizes = [[n // 2**level for n in patch_size] for level in range(num_levels(patch_size))]

    def make(turn: Turn) -> list[torch.Tensor]:
        batch: Batch = draw(cases, task=task, params=params, turn=turn)
        return [batch.image, *(shrink(batch.atoms, shape=size) for size in sizes)]

    return make


def write_peer(folder: Path, *, cases: list[Case], patch_size: Size) -> None:
    """The cases as nnU-Net's files, with the voxels that its loader aims at."""
    write_nnunet(folder, cases=cases, patch_size=patch_size, resampled=False)
    for index, case in enumerate(cases):
        label = case.label.astype(np.int16)[None]
        places = DefaultPreprocessor._sample_foreground_locations(label, list(range(1, NUM_LABELS)))
        write_pickle({"class_locations": places}, str(folder / f"{index}.pkl"))


def nnunet(folder: Path, *, patch_size: Size) -> Any:
    """nnU-Net's loader as its trainer sets it up for training."""
    scales = [[0.5**level] * 3 for level in range(num_levels(patch_size))]
    return training_loader(
        folder, patch_size=patch_size, batch_size=BATCH_SIZE, structures=len(STRUCTURES), scales=scales
    )


def sides(folder: Path, *, peers: Path, num_cases: int, patch_size: Size, batches: int) -> list[Side]:
    """Ours and nnU-Net's, alone and with two workers. Ours makes four times as many batches in a round, which take less time."""
    make, loader = ours(folder, num_cases=num_cases, patch_size=patch_size), nnunet(peers, patch_size=patch_size)
    running: list = []
    steps = count()

    def threads() -> Next:
        running.append(prefetch(make, (Turn(step=step) for step in steps), workers=WORKERS, depth=2 * WORKERS))
        return running[-1].__next__

    def processes() -> Next:
        workers = NonDetMultiThreadedAugmenter(loader, None, WORKERS, CACHED, None, False, wait_time=0.002)
        running.append(workers)
        return workers.__next__

    return [
        Side(name="ours, this thread", start=lambda: lambda: make(Turn(step=next(steps))), batches=4 * batches),
        Side(name="nnU-Net, this process", start=lambda: loader.__next__, batches=batches),
        Side(
            name="ours, two threads", start=threads, stop=lambda: running.pop().close(), ready=2 * WORKERS,
            batches=4 * batches,
        ),
        Side(
            name="nnU-Net, two processes", start=processes, stop=lambda: running.pop()._finish(), ready=CACHED + WORKERS,
            batches=batches,
        ),
    ]  # fmt: skip


def report(measured: list[Side], *, patch_size: Size) -> None:
    """Print rates, factors, and how each bar was met."""
    print(f"\n{'x'.join(map(str, patch_size))}, batches of {BATCH_SIZE}: patches/s (slowest to fastest round)")
    for side in measured:
        rates = 1 / np.asarray(side.clock)
        print(f"  {side.name:24} {1 / np.mean(side.clock):6.1f} ({rates.min():.1f} to {rates.max():.1f})")
    for one, other, by in ((measured[0], measured[1], "processor"), (*measured[:2], "clock"), (*measured[2:], "clock")):
        mine, theirs = np.asarray(getattr(one, by)), np.asarray(getattr(other, by))
        factor, rounds = theirs.mean() / mine.mean(), theirs / mine
        met = "met" if factor >= BAR else "MISSED"
        print(
            f"  {one.name} / {other.name}, by {by}: {factor:.1f} ({rounds.min():.1f} to {rounds.max():.1f}); bar {BAR}: {met}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--cases", type=int, default=3, help="scans; the page cache must hold about 0.2 GB for each")
    parser.add_argument("--batches", type=int, default=10, help="batches of nnU-Net a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    check()
    cases = [make_case(seed) for seed in range(options.cases)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_ours(folder / "ours", cases=cases)
        for patch_size in PATCHES:
            peers = folder / "x".join(map(str, patch_size))
            write_peer(peers, cases=cases, patch_size=patch_size)
            measured = sides(
                folder / "ours", peers=peers, num_cases=len(cases), patch_size=patch_size, batches=options.batches
            )
            for _ in range(options.rounds):
                for side in measured:
                    side.measure()
            report(measured, patch_size=patch_size)
    print(f"\n{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} with this and all else")


if __name__ == "__main__":
    main()
