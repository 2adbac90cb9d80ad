"""Dice, NSD at 1, 2 and 3 mm and HD95 of organ pairs: segsweep beside the surface-distance package, by turns, in one process.

    python benchmarks/metrics.py [--rounds 5] [--pair REFERENCE PREDICTION]

Without --pair the organs are made: 2 x 21 of a head and neck at 512 x 512 x 145 and 127 voxels, with a prediction that has other bumps.
A pair is two label maps, or two folders of masks of equal names. Reading and making are not counted. One pair lies in memory at a time,
and the peak of memory above it is that of a process of its own for each side. The numbers of both sides must agree to 1e-6.
"""

import argparse
import ctypes
import multiprocessing
import os
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import surface_distance
from numpy.typing import NDArray

from segsweep.data.readers import is_scan, read_labels, stem
from segsweep.evaluation.metrics import overlap
from segsweep.evaluation.surface import bounding_box, joint_box, surfaces

TOLERANCES = (1.0, 2.0, 3.0)
AGREE = 1e-6
# Half axes in mm (z, y, x) and centres as shares of the scan; both of a pair of organs have the same line.
ORGANS = {
    "brain": ((62, 80, 66), (0.78, 0.45, 0.5)), "brain stem": ((28, 15, 16), (0.62, 0.5, 0.5)),
    "cochlea left": ((3, 4, 4), (0.62, 0.5, 0.56)), "cochlea right": ((3, 4, 4), (0.62, 0.5, 0.44)),
    "lacrimal left": ((7, 6, 4), (0.7, 0.3, 0.58)), "lacrimal right": ((7, 6, 4), (0.7, 0.3, 0.42)),
    "lens left": ((4.5, 2.5, 4.5), (0.68, 0.27, 0.56)), "lens right": ((4.5, 2.5, 4.5), (0.68, 0.27, 0.44)),
    "lung left": ((60, 75, 45), (0.16, 0.55, 0.66)), "lung right": ((60, 75, 50), (0.16, 0.55, 0.34)),
    "mandible": ((28, 40, 48), (0.45, 0.35, 0.5)), "optic nerve left": ((4, 22, 4), (0.68, 0.34, 0.54)),
    "optic nerve right": ((4, 22, 4), (0.68, 0.34, 0.46)), "orbit left": ((12, 12, 12), (0.68, 0.29, 0.56)),
    "orbit right": ((12, 12, 12), (0.68, 0.29, 0.44)), "parotid left": ((28, 20, 14), (0.5, 0.45, 0.6)),
    "parotid right": ((28, 20, 14), (0.5, 0.45, 0.4)), "spinal canal": ((160, 11, 12), (0.42, 0.6, 0.5)),
    "spinal cord": ((150, 6, 7), (0.42, 0.6, 0.5)), "submandibular left": ((16, 14, 9), (0.4, 0.4, 0.56)),
    "submandibular right": ((16, 14, 9), (0.4, 0.4, 0.44)),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two masks, cut to their box in a scan (z, y, x) of `shape` voxels at `spacing` mm."""

    name: str
    reference: NDArray[np.bool_]
    prediction: NDArray[np.bool_]
    box: tuple[slice, slice, slice]
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]


def made(voxels: int) -> Iterator[Pair]:
    """Organs of two patients, of this many voxels in plane over 500 mm."""
    random = np.random.default_rng(0)
    for slices in (145, 127):
        shape = (round(slices * voxels / 512), voxels, voxels)
        spacing = (2.5 * 512 / voxels, 0.98 * 512 / voxels, 0.98 * 512 / voxels)
        for name, (half_axes, centre) in ORGANS.items():
            yield _organ(name, half_axes=half_axes, centre=centre, shape=shape, spacing=spacing, random=random)


def _organ(
    name: str, *, half_axes: Sequence[float], centre: Sequence[float], shape: tuple[int, int, int],
    spacing: tuple[float, float, float], random: np.random.Generator,
) -> Pair:  # fmt: skip
    middle = [share * count * step for share, count, step in zip(centre, shape, spacing, strict=True)]
    reach = [1.3 * half + step + 2 for half, step in zip(half_axes, spacing, strict=True)]
    box = [
        slice(max(0, int((at - far) / step)), min(count, int((at + far) / step) + 2))
        for at, far, step, count in zip(middle, reach, spacing, shape, strict=True)
    ]
    axes = [np.arange(one.start, one.stop, dtype=np.float32) * step for one, step in zip(box, spacing, strict=True)]
    grids = np.meshgrid(*axes, indexing="ij", sparse=True)
    masks = []
    for shift in (0.0, 0.6):
        away = [grid - at - shift for grid, at in zip(grids, middle, strict=True)]
        phases = random.uniform(0, 6.3, 3)
        bumps = sum(np.sin(one / 7 + phase) for one, phase in zip(away, phases, strict=True))
        radius = sum((one / half) ** 2 for one, half in zip(away, half_axes, strict=True))
        outside = (np.sqrt(radius) - 1) * float(np.prod(half_axes)) ** (1 / 3)
        masks.append(np.asarray(outside < 0.7 * np.asarray(bumps)))
    return Pair(
        name=name, reference=masks[0], prediction=masks[1], box=(box[0], box[1], box[2]), shape=shape, spacing=spacing
    )


def read(reference: Path, *, prediction: Path) -> Iterator[Pair]:
    """Every value of two label maps, or of every two files of one name in two folders."""
    files = [(reference, prediction)]
    if reference.is_dir():
        names = sorted(
            path.name for path in reference.iterdir() if is_scan(path) and (prediction / path.name).is_file()
        )
        files = [(reference / name, prediction / name) for name in names]
    for one, other in files:
        scans = read_labels(one), read_labels(other)
        for value in np.unique(scans[0].voxels[scans[0].voxels > 0]).tolist():
            masks = [scan.voxels == value for scan in scans]
            box = joint_box(masks[1], other=masks[0])
            if box is not None and masks[1].any():
                geometry = scans[0].geometry
                yield Pair(
                    name=f"{stem(one)} {value}", reference=masks[0][box].copy(), prediction=masks[1][box].copy(), box=box,
                    shape=geometry.shape, spacing=geometry.spacing,
                )  # fmt: skip


def ours(prediction: NDArray[np.bool_], *, reference: NDArray[np.bool_], spacing: Sequence[float]) -> list[float]:
    """Dice, NSD at each tolerance, HD95."""
    box = joint_box(prediction, other=reference)
    assert box is not None
    prediction, reference = prediction[box], reference[box]
    found = surfaces(prediction, reference=reference, spacing=(spacing[0], spacing[1], spacing[2]))
    nsd = [found.normalised_dice(tolerance) for tolerance in TOLERANCES]
    return [overlap(prediction, reference=reference).dice, *nsd, found.hausdorff(95)]


def theirs(prediction: NDArray[np.bool_], *, reference: NDArray[np.bool_], spacing: Sequence[float]) -> list[float]:
    """The same by surface-distance, which crops by itself."""
    found = surface_distance.compute_surface_distances(reference, prediction, spacing)
    nsd = [surface_distance.compute_surface_dice_at_tolerance(found, tolerance) for tolerance in TOLERANCES]
    dice = surface_distance.compute_dice_coefficient(reference, prediction)
    return [dice, *nsd, surface_distance.compute_robust_hausdorff(found, 95)]


SIDES: dict[str, Callable[..., list[float]]] = {"segsweep": ours, "surface-distance": theirs}


class Scan:
    """Two whole masks in memory that are always the same, whichever pair they hold."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        size = max(int(np.prod(pair.shape)) for pair in pairs)
        self._memory = np.ones((2, size), dtype=bool)
        self._memory[:] = False

    def holding(self, pair: Pair) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Reference and prediction."""
        masks = self._memory[:, : int(np.prod(pair.shape))].reshape(2, *pair.shape)
        masks[:] = False
        masks[0][pair.box], masks[1][pair.box] = pair.reference, pair.prediction
        return masks[0], masks[1]


def peak_above(pairs: Sequence[Pair], *, side: str) -> float:
    """MB that scoring takes at most beside the two masks, measured in a process of its own."""
    context = multiprocessing.get_context("fork")
    ctypes.CDLL(None).malloc_trim(0)  # memory that is held but free would be taken without being seen
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_report_peak, args=(send, list(pairs), side))
    child.start()
    peak = receive.recv()
    child.join()
    return peak


def _report_peak(send: Connection, pairs: list[Pair], side: str) -> None:
    scan, before = Scan(pairs), 0
    for pair in pairs:
        reference, prediction = scan.holding(pair)
        before = before or _resident_bytes()
        SIDES[side](prediction, reference=reference, spacing=pair.spacing)
    send.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 1e6)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(pairs: Sequence[Pair], *, rounds: int) -> dict[str, list[float]]:
    """Seconds over all pairs, a number a round, of each side; who begins changes with every pair."""
    scan, seconds = Scan(pairs), {side: [0.0] * rounds for side in SIDES}
    for turn in range(rounds):
        for place, pair in enumerate(pairs):
            reference, prediction = scan.holding(pair)
            results = {}
            for side in sorted(SIDES, reverse=(turn + place) % 2 == 1):
                begin = time.perf_counter()
                results[side] = SIDES[side](prediction, reference=reference, spacing=pair.spacing)
                seconds[side][turn] += time.perf_counter() - begin
            if not np.allclose(*results.values(), rtol=0, atol=AGREE):
                sys.exit(f"{pair.name}: the sides differ: {results}")
    return seconds


def main() -> None:
    """Print both sides and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--voxels", type=int, default=512, help="of made organs, in plane")
    parser.add_argument("--pair", nargs=2, type=Path, action="append", metavar=("REFERENCE", "PREDICTION"))
    chosen = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    given = [pair for one, other in chosen.pair or () for pair in read(one, prediction=other)]
    pairs = [
        pair for pair in given or list(made(chosen.voxels)) if bounding_box(pair.prediction) and pair.reference.any()
    ]
    peaks = {side: peak_above(pairs, side=side) for side in SIDES}
    seconds = measure(pairs, rounds=chosen.rounds)
    print(f"{len(pairs)} pairs, {chosen.rounds} rounds; both sides agree to {AGREE:g}")
    print(f"{'':18}{'s (median)':>12}{'s (range)':>18}{'MB above masks':>18}")
    for side, found in seconds.items():
        spread = f"{min(found):.2f} to {max(found):.2f}"
        print(f"{side:18}{statistics.median(found):12.2f}{spread:>18}{peaks[side]:18.0f}")
    first, second = SIDES
    faster = statistics.median(b / a for a, b in zip(seconds[first], seconds[second], strict=True))
    print(f"{first} is {faster:.1f} times as fast and takes {peaks[first] / peaks[second]:.2f} of the memory")


if __name__ == "__main__":
    main()
