"""Random patch reads, one thread, warm: our shards, our uncompressed copy, nnU-Net's blosc2 files, and zarr-python.

    PEERS/bin/python benchmarks/patch_reads.py            (PEERS: see benchmarks/requirements.txt; 2 to 3 minutes)

Every read delivers an image patch as normalised float32 and its label patch, from CT-like scans of 160x400x400 voxels made
from a seed. nnU-Net stores normalised float32 in chunks that it fits to the patch size (its own functions write them here)
and opens both files for every sample; "held open" is the best that one could make of them. The pickle that it reads for
every sample besides is not counted. `--resampled` gives its images values between the integers, as its resampling leaves
them: more bytes, yet faster to decode. Rounds visit all sides in turn, so that other load hits all alike; rates are medians over
rounds, factors are medians of the factors within a round, by the clock and by processor time, which other load disturbs less.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import blosc2  # type: ignore[import-not-found]
import numpy as np
import zarr
from nnunetv2.training.dataloading import nnunet_dataset  # type: ignore[import-not-found]
from numcodecs import blosc  # type: ignore[attr-defined]
from numpy.typing import NDArray

from segsweep.data.arrays import IMAGE, LABEL, GridData, GridReader, write_grid
from segsweep.data.cache import FOLDER_VARIABLE
from segsweep.data.copies import COPIED_AT
from segsweep.data.geometry import Geometry, Size
from segsweep.data.planning import Normalisation
from segsweep.learning.task import normalise

SHAPE: Size = (160, 400, 400)
PATCHES: tuple[Size, ...] = ((64, 96, 96), (32, 192, 192))
NUM_LABELS = 15
RULES = (Normalisation(scheme="ct", low=-900.0, high=1400.0, mean=60.0, deviation=140.0),)
COMPRESSED, COPY, HELD, REOPENED, PYTHON = (
    "ours, compressed", "ours, uncompressed copy", "blosc2, held open", "blosc2, as nnU-Net reads it", "zarr-python",
)  # fmt: skip
# The slowest side reads fewer patches in a round, or the others would wait for it.
ZARR_SHARE = 5


@dataclass(frozen=True, kw_only=True)
class Case:
    """A scan in HU and its label map (z, y, x)."""

    image: NDArray[np.int16]
    label: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Patch:
    """Where to read."""

    case: int
    region: tuple[slice, slice, slice]


Read = Callable[[Patch], tuple[NDArray, NDArray]]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """`faster` must read at least `factor` times as many patches as `slower`."""

    faster: str
    slower: str
    factor: float


BARS = (
    Bar(faster=COMPRESSED, slower=HELD, factor=1.3),
    Bar(faster=COMPRESSED, slower=REOPENED, factor=1.7),
    Bar(faster=COPY, slower=HELD, factor=3.5),
)
BYTES_BAR = 0.65


def make_case(seed: int) -> Case:
    """Tissues that vary smoothly in a body with noise of a CT, clean air around it, and ellipsoids as structures."""
    generator = np.random.default_rng(seed)
    coarse, fine = (_smooth(generator, step=step) for step in (40, 12))
    image = np.where(coarse > -0.6, 45.0, -95.0) + 25.0 * fine
    image[coarse > 1.2] = -820.0
    image[(fine > 1.4) & (coarse < 1.0)] = 420.0
    image += generator.normal(0.0, 18.0, SHAPE)
    z, y, x = np.ogrid[tuple(slice(-1.0, 1.0, size * 1j) for size in SHAPE)]
    image[(y / 0.78) ** 2 + (x / 0.95) ** 2 + 0.05 * z > 1.0] = -1000.0
    label = np.zeros(SHAPE, np.uint8)
    for value in range(1, NUM_LABELS):
        centre, radius = generator.uniform(-0.6, 0.6, 3), generator.uniform(0.06, 0.22, 3)
        distance = sum(((axis - c) / r) ** 2 for axis, c, r in zip((z, y, x), centre, radius, strict=True))
        label[distance < 1.0] = value
    return Case(image=np.clip(np.rint(image), -1024, 3071).astype(np.int16), label=label)


def _smooth(generator: np.random.Generator, *, step: int) -> NDArray[np.float32]:
    """Normal noise on a coarse lattice, interpolated linearly to SHAPE."""
    values = generator.standard_normal([size // step + 2 for size in SHAPE])
    for axis, size in enumerate(SHAPE):
        at = np.arange(size) / step
        low = at.astype(int)
        weight = (at - low).reshape([-1 if other == axis else 1 for other in range(3)])
        values = (1 - weight) * values.take(low, axis) + weight * values.take(low + 1, axis)
    return values.astype(np.float32)


def write_ours(folder: Path, *, cases: list[Case]) -> None:
    """The cases as grids of a store."""
    axes = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    geometry = Geometry(shape=SHAPE, spacing=(2.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), direction=axes)
    for index, case in enumerate(cases):
        data = GridData(image=case.image[None], label=case.label, geometry=geometry)
        write_grid(folder / str(index), data=data, num_atoms=NUM_LABELS, channels=("CT",), seed=0)


def open_ours(folder: Path, *, num_cases: int) -> list[GridReader]:
    """The grids, opened."""
    lookup = np.arange(NUM_LABELS, dtype=np.uint8)
    return [GridReader(folder / str(index), name=f"case {index}", lookup=lookup) for index in range(num_cases)]


def ours(readers: list[GridReader]) -> Read:
    """Through the store's reader, normalised at read time."""

    def read(patch: Patch) -> tuple[NDArray, NDArray]:
        reader = readers[patch.case]
        return normalise(reader.read_image(patch.region), normalisation=RULES)[0], reader.read_label(patch.region)

    return read


def by_zarr_python(folder: Path, *, num_cases: int) -> Read:
    """The same files through zarr-python."""
    zarr.config.set({"threading.max_workers": 1, "async.concurrency": 1})
    arrays = [
        [zarr.open_array(str(folder / str(i) / path), mode="r") for path in (IMAGE, LABEL)] for i in range(num_cases)
    ]

    def read(patch: Patch) -> tuple[NDArray, NDArray]:
        image, label = arrays[patch.case]
        voxels = np.asarray(image[(slice(None), *patch.region)])
        return normalise(voxels, normalisation=RULES)[0], np.asarray(label[patch.region])

    return read


def write_nnunet(folder: Path, *, cases: list[Case], patch_size: Size, resampled: bool) -> None:
    """The cases as nnU-Net's own functions write them: normalised float32 and int16, chunks for this patch size."""
    folder.mkdir(parents=True)
    for index, case in enumerate(cases):
        image = case.image.astype(np.float32)
        if resampled:
            image += np.random.default_rng(index).uniform(-0.5, 0.5, SHAPE).astype(np.float32)
        data = normalise(image[None], normalisation=RULES)
        label = case.label.astype(np.int16)[None]
        blocks, chunks = nnunet_dataset.comp_blosc2_params(data.shape, patch_size, data.itemsize)
        label_blocks, label_chunks = nnunet_dataset.comp_blosc2_params(label.shape, patch_size, label.itemsize)
        nnunet_dataset.nnUNetDatasetBlosc2.save_case(
            data, label, {}, str(folder / str(index)),
            chunks=chunks, blocks=blocks, chunks_seg=label_chunks, blocks_seg=label_blocks,
        )  # fmt: skip


def nnunet(folder: Path, *, num_cases: int, reopen: bool) -> Read:
    """nnU-Net's files through blosc2."""

    def opened(index: int) -> tuple[blosc2.NDArray, blosc2.NDArray]:
        # As nnUNetDatasetBlosc2.load_case opens them.
        image, label = (
            blosc2.open(urlpath=str(folder / name), mode="r", dparams={"nthreads": 1}, mmap_mode="r")
            for name in (f"{index}.b2nd", f"{index}_seg.b2nd")
        )
        return image, label

    held = [opened(index) for index in range(num_cases)]

    def read(patch: Patch) -> tuple[NDArray, NDArray]:
        image, label = opened(patch.case) if reopen else held[patch.case]
        return image[(slice(0, 1), *patch.region)][0], label[(slice(0, 1), *patch.region)][0]

    return read


def draw(generator: np.random.Generator, *, num_cases: int, patch_size: Size, num_reads: int) -> list[Patch]:
    """Patches drawn uniformly over cases and positions."""
    corners = [
        [int(generator.integers(n - p + 1)) for n, p in zip(SHAPE, patch_size, strict=True)] for _ in range(num_reads)
    ]
    regions = [tuple(slice(c, c + p) for c, p in zip(corner, patch_size, strict=True)) for corner in corners]
    return [Patch(case=int(generator.integers(num_cases)), region=(z, y, x)) for z, y, x in regions]


def megabytes(folder: Path, *, pattern: str, num_cases: int) -> float:
    """MB a case of the files that match."""
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file()) / num_cases / 1e6


def check(sides: dict[str, Read], *, cases: list[Case], patch: Patch, tolerance: float) -> None:
    """Every side must deliver the same patch."""
    case = cases[patch.case]
    expected = normalise(case.image[None][(slice(None), *patch.region)], normalisation=RULES)[0]
    for name, read in sides.items():
        image, label = read(patch)
        if image.dtype != np.float32 or np.abs(image - expected).max() > tolerance:
            raise SystemExit(f"{name} delivers another image at {patch}")
        if not np.array_equal(label, case.label[patch.region]):
            raise SystemExit(f"{name} delivers another label map at {patch}")


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Patches of one side in every round, a second by the clock and a second of processor time."""

    clock: list[float]
    processor: list[float]


def measure(sides: dict[str, Read], *, rounds: list[list[Patch]]) -> dict[str, Rates]:
    """Rates of every side in every round but the first, which only warms."""
    rates = {name: Rates(clock=[], processor=[]) for name in sides}
    for number, patches in enumerate(rounds):
        for name, read in sides.items():
            part = patches[:: ZARR_SHARE if name == PYTHON else 1]
            clock, processor = time.perf_counter(), time.process_time()
            for patch in part:
                read(patch)
            if number:
                rates[name].clock.append(len(part) / (time.perf_counter() - clock))
                rates[name].processor.append(len(part) / (time.process_time() - processor))
    return rates


def report(rates: dict[str, Rates], *, patch_size: Size, sizes: dict[str, float]) -> None:
    """Print rates, sizes, and how each bar was met."""
    print(f"\n{'x'.join(map(str, patch_size))}: patches/s, median (lowest to highest); per processor second; MB a case")
    for name, rate in rates.items():
        spread = f"({min(rate.clock):.0f} to {max(rate.clock):.0f})"
        print(
            f"  {name:28} {np.median(rate.clock):6.0f} {spread:16} {np.median(rate.processor):6.0f} {sizes[name]:7.2f} MB"
        )
    for bar in BARS:
        faster, slower = rates[bar.faster], rates[bar.slower]
        factor = float(np.median(np.divide(faster.clock, slower.clock)))
        processor = float(np.median(np.divide(faster.processor, slower.processor)))
        met = "met" if factor >= bar.factor else "MISSED"
        print(f"  {bar.faster} / {bar.slower}: {factor:.2f}, processor time {processor:.2f}; bar {bar.factor}: {met}")
    share = sizes[COMPRESSED] / sizes[HELD]
    print(
        f"  bytes of ours, compressed / blosc2: {share:.2f}; bar {BYTES_BAR}: {'met' if share <= BYTES_BAR else 'MISSED'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--cases", type=int, default=4, help="scans; the page cache must hold about 0.2 GB for each")
    parser.add_argument("--reads", type=int, default=40, help="patches a round")
    parser.add_argument("--rounds", type=int, default=11, help="rounds after the one that warms")
    parser.add_argument("--resampled", action="store_true", help="let nnU-Net's images lie between the integers")
    options = parser.parse_args()
    blosc.set_nthreads(1)
    blosc2.set_nthreads(1)
    with tempfile.TemporaryDirectory() as name:
        run(Path(name), options)


def run(folder: Path, options: argparse.Namespace) -> None:
    """Write every side's files below `folder`, measure, report."""
    cases = [make_case(seed) for seed in range(options.cases)]
    num = len(cases)
    write_ours(folder / "ours", cases=cases)
    compressed, copied = (open_ours(folder / "ours", num_cases=num) for _ in range(2))
    os.environ[FOLDER_VARIABLE] = str(folder / "copies")
    for reader in copied:
        for _ in range(COPIED_AT):
            reader.read_label((slice(0, 1), slice(0, 1), slice(0, 1)))
    del os.environ[FOLDER_VARIABLE]
    stored = sum(megabytes(folder / "ours", pattern=f"*/{part}/**/*", num_cases=num) for part in (IMAGE, LABEL))
    sizes = {COMPRESSED: stored, PYTHON: stored, COPY: megabytes(folder / "copies", pattern="*/**/*", num_cases=num)}
    for patch_size in PATCHES:
        peers = folder / "x".join(map(str, patch_size))
        write_nnunet(peers, cases=cases, patch_size=patch_size, resampled=options.resampled)
        sizes[HELD] = sizes[REOPENED] = megabytes(peers, pattern="*.b2nd", num_cases=num)
        sides = {
            COMPRESSED: ours(compressed),
            COPY: ours(copied),
            HELD: nnunet(peers, num_cases=num, reopen=False),
            REOPENED: nnunet(peers, num_cases=num, reopen=True),
            PYTHON: by_zarr_python(folder / "ours", num_cases=num),
        }
        generator = np.random.default_rng(7)
        rounds = [
            draw(generator, num_cases=num, patch_size=patch_size, num_reads=options.reads)
            for _ in range(options.rounds + 1)
        ]
        check(sides, cases=cases, patch=rounds[0][0], tolerance=0.01 if options.resampled else 1e-5)
        report(measure(sides, rounds=rounds), patch_size=patch_size, sizes=sizes)
    print(f"\n{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} with this and all else")


if __name__ == "__main__":
    main()
