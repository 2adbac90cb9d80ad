"""From logits on the model's grid to a label map on the scan's own: ours beside nnU-Net's own export functions, one after the other.

    python benchmarks/export.py --nnunet PEERS/bin/python [--labels LABEL_MAP.nii.gz] [--classes 45 ...] [--exact]

The logits are those of a label map's smoothed masks (of a real one where given, else of ellipsoids in an ellipsoid), 52x341x341 for a
scan of 78x512x512. Both sides read them from a file in a process of their own; time and memory above them count from there to the
label map. Bars at 45 classes: at least 15 times as fast as its default, at most a fifth of its memory; ours alone below 20 s.
`--exact` counts voxels that differ from float64 interpolation of the whole volume where the best two scores are no tie: none may.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from export_memory import PeakMemory
from numpy.typing import NDArray
from scipy import ndimage

from segsweep.data.geometry import Geometry, Size
from segsweep.data.readers import read_labels
from segsweep.inference.export import label_on_grid

FASTER_BAR, MEMORY_BAR, SECONDS_BAR, BAR_CLASSES = 15.0, 0.2, 20.0, 45
CLASSES_BAR = 1.2
SHAPE, GRID = (78, 512, 512), (52, 341, 341)
# Slices of 2.5 mm: from 3 times the pixels on, nnU-Net would not interpolate between slices.
EXTENT_MM = (195.0, 500.0, 500.0)
# Of two scores that differ by less, rounding may choose either.
TIE = 1e-9


def main() -> None:
    """Measure and print seconds, memory, ratios and bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=(8, 45, 105), help="with background")
    parser.add_argument("--labels", type=Path, help="a label map; its values make the classes, again and again")
    parser.add_argument("--shape", type=int, nargs=3, default=SHAPE, help="voxels z, y, x of the scan")
    parser.add_argument("--grid", type=int, nargs=3, default=GRID, help="voxels z, y, x of the model's grid")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--nnunet", metavar="PYTHON")
    parser.add_argument("--resampler", choices=("default", "torch"), default="default", help="nnU-Net's")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.side:
        ours(json.loads(options.side))
        return
    print(f"{_size(options.grid)} -> {_size(options.shape)}, {options.threads} threads, load {os.getloadavg()[0]:.1f}")
    peaks = {}
    for classes in options.classes:
        with tempfile.TemporaryDirectory() as folder:
            peaks[classes] = compare(classes, options=options, folder=Path(folder))
    least, most = min(peaks), max(peaks)
    if least < most:
        logits = 4 * most * int(np.prod(options.grid))
        met = peaks[most] <= CLASSES_BAR * peaks[least] + logits
        print(f"memory above the logits at {most} classes / at {least}: {peaks[most] / peaks[least]:.2f}")
        print(f"  bar {CLASSES_BAR:g} times, and the logits of {logits / 2**20:.0f} MB: {'met' if met else 'MISSED'}")


def compare(classes: int, *, options: argparse.Namespace, folder: Path) -> int:
    """Both sides on the same logits; returns our bytes above them."""
    logits = logits_of(label_map(classes, path=options.labels, shape=tuple(options.grid)), classes=classes)
    np.save(folder / "logits.npy", logits)
    size = logits.nbytes
    asked = {
        "logits": str(folder / "logits.npy"), "label": str(folder / "ours.npy"), "shape": options.shape,
        "spacing": [mm / n for mm, n in zip(EXTENT_MM, options.shape, strict=True)],
        "spacing_from": [mm / n for mm, n in zip(EXTENT_MM, options.grid, strict=True)],
        "threads": options.threads, "resampler": options.resampler,
    }  # fmt: skip
    mine = _run([sys.executable, __file__, "--threads", str(options.threads), "--side"], asked=asked)
    _row("segsweep", mine, classes=classes, size=size)
    if options.exact:
        different, ties = differences(logits, label=np.load(folder / "ours.npy"))
        voxels = np.prod(options.shape)
        print(f"  {different} of {voxels} voxels differ from float64 of the whole volume, and {ties} that are ties")
    if options.nnunet:
        script = str(Path(__file__).with_name("export_nnunet.py"))
        theirs = _run([options.nnunet, script], asked={**asked, "label": str(folder / "theirs.npy")})
        _row(f"nnU-Net ({options.resampler})", theirs, classes=classes, size=size)
        faster, memory = theirs["seconds"] / mine["seconds"], mine["bytes"] / theirs["bytes"]
        same = float((np.load(folder / "ours.npy") == np.load(folder / "theirs.npy")).mean())
        busy = theirs["processor"] / mine["processor"]
        print(f"  {faster:.1f} times as fast by the clock, {busy:.1f} by processor time; {memory:.3f} of its memory")
        print(f"  {100 * same:.3f} % of voxels have the same label")
        if classes == BAR_CLASSES:
            met = faster >= FASTER_BAR and memory <= MEMORY_BAR and mine["seconds"] <= SECONDS_BAR
            print(f"  bars {FASTER_BAR:g} times, {MEMORY_BAR:g}, {SECONDS_BAR:g} s: {'met' if met else 'MISSED'}")
    return int(mine["bytes"])


def ours(asked: dict) -> None:
    """Our side, in a process of its own: export once, and print seconds and bytes as JSON."""
    logits = np.load(asked["logits"])
    source, target = (geometry(shape) for shape in (logits.shape[1:], tuple(asked["shape"])))
    with PeakMemory() as memory:
        begun, worked = time.perf_counter(), time.process_time()
        label = label_on_grid(np.moveaxis(logits, 1, 0), geometry_from=source, geometry_to=target)
        seconds, processor = time.perf_counter() - begun, time.process_time() - worked
    np.save(asked["label"], label)
    print(json.dumps({"seconds": seconds, "processor": processor, "bytes": memory.above}))


def geometry(shape: Size) -> Geometry:
    """The grid of so many voxels over the one extent."""
    z, y, x = (mm / n for mm, n in zip(EXTENT_MM, shape, strict=True))
    return Geometry(shape=shape, spacing=(z, y, x), origin=(x / 2, y / 2, z / 2), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1))


def label_map(classes: int, *, path: Path | None, shape: Size) -> NDArray[np.int64]:
    """A label map of so many values (nearest voxels of a real one), or a body of ellipsoids with organs of all sizes in it."""
    if path is not None:
        voxels = read_labels(path).voxels
        at = [np.arange(m) * n // m for n, m in zip(voxels.shape, shape, strict=True)]
        values = np.searchsorted(np.unique(voxels), voxels[np.ix_(*at)])
        return np.where(values > 0, 1 + (values - 1) % (classes - 1), 0)
    generator, label = np.random.default_rng(classes), np.zeros(shape, dtype=np.int64)
    axes = np.ogrid[tuple(slice(-1.0, 1.0, size * 1j) for size in shape)]
    for value in range(1, classes):
        centre = generator.uniform(-0.7, 0.7, 3) * (1.0, 0.8, 0.8)
        radius = generator.uniform(0.04, 0.2, 3) * generator.uniform(0.5, 1.5)
        label[sum(((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, radius, strict=True)) < 1] = value
    return label


def logits_of(label: NDArray, *, classes: int) -> NDArray[np.float32]:
    """Logarithms of the values' smoothed masks, as a network that is unsure at borders alone gives them."""
    logits = np.full((classes, *label.shape), np.log(1e-4), dtype=np.float32)
    for value in range(classes):
        share = ndimage.gaussian_filter((label == value).astype(np.float32), 1.5)
        logits[value] = np.log(share + 1e-4)
    return logits


def differences(logits: NDArray, *, label: NDArray) -> tuple[int, int]:
    """Voxels whose label differs from the argmax of float64 interpolation of everything: those that are no ties, and ties."""
    z, y, x = (weights(n, m=m) for n, m in zip(logits.shape[1:], label.shape, strict=True))
    counts = [0, 0]

    @functools.lru_cache(maxsize=2)
    def plane(at: int) -> NDArray[np.float64]:
        return y @ logits[:, at].astype(np.float64) @ x.T

    for index, found in enumerate(label):
        scores = sum(z[index, at] * plane(int(at)) for at in np.flatnonzero(z[index]))
        assert isinstance(scores, np.ndarray)  # every voxel has a neighbour
        own = np.take_along_axis(scores, found[None].astype(np.int64), axis=0)[0]
        behind = scores.max(axis=0) - own
        counts[0] += int((behind > TIE).sum())
        counts[1] += int(((found != scores.argmax(axis=0)) & (behind <= TIE)).sum())
    return counts[0], counts[1]


def weights(n: int, *, m: int) -> NDArray[np.float64]:
    """(m, n): linear interpolation of n voxels at m over the same extent, edges repeated."""
    at = (np.arange(m) + 0.5) * n / m - 0.5
    return np.stack([np.interp(at, np.arange(n), row) for row in np.eye(n)], axis=1)


def _run(command: list[str], *, asked: dict) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(asked["threads"])}
    done = subprocess.run([*command, json.dumps(asked)], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _row(name: str, measured: dict[str, float], *, classes: int, size: int) -> None:
    megabytes = measured["bytes"] / 2**20
    seconds = f"{measured['seconds']:8.2f} s, {measured['processor']:.2f} s of processors"
    print(f"{classes:4} classes  {name:18}{seconds}, {megabytes:.0f} MB above logits of {size / 2**20:.0f} MB")


def _size(shape: Size) -> str:
    return "x".join(map(str, shape))


if __name__ == "__main__":
    main()
