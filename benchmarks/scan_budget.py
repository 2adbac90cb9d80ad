"""One large scan from files to labels within a declared memory: peak memory, and seconds by stage. The weights are random.

    python benchmarks/scan_budget.py [--max-memory 8GB] [--shape 130 512 512] [--structures 45] [--members 1]

SegRap2023's scans are 512x512x130 in two channels with 45 organs; its entrants had to stay below 8 GB. Random weights are the hardest
case for the export: hardly two neighbouring voxels agree, so that nearly all of the scan is interpolated.
"""

import argparse
import csv
import os
import resource
import tempfile
from pathlib import Path

import numpy as np
import torch
from steps import network_params

from segsweep import recipes
from segsweep.data.geometry import Geometry, Size
from segsweep.data.planning import Normalisation
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.inference.budget import Part, needs, resources
from segsweep.inference.performance import FILE, STAGES
from segsweep.inference.prediction import predict
from segsweep.inference.predictor import Member, Predictor
from segsweep.inference.scans import find_files
from segsweep.inference.writers import write_image
from segsweep.learning.inference import Inference
from segsweep.learning.memory import resident_bytes
from segsweep.learning.task import Task

CHANNELS = ("CT", "contrast CT")
SPACING, SPACING_OF_MODEL = (3.0, 1.0, 1.0), (3.0, 1.5, 1.5)


def main() -> None:
    """Write a scan, segment it, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(130, 512, 512), help="voxels z, y, x")
    parser.add_argument("--structures", type=int, default=45)
    parser.add_argument("--patch", type=int, nargs=3, default=(64, 128, 128), help="voxels z, y, x")
    parser.add_argument("--features", type=int, default=8)
    parser.add_argument("--members", type=int, default=1, help="of an ensemble")
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--max-memory", default="8GB")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    allowed = resources(max_memory=options.max_memory, precision=None)
    predictor = Predictor(members=tuple(member(seed, options=options) for seed in range(options.members)))
    parts = [Part(task=one.task, network_bytes=one.network_bytes) for one in predictor.members]
    image_bytes = 2 * len(CHANNELS) * int(np.prod(options.shape))
    reckoned = needs(parts, image_bytes=image_bytes, geometry=geometry(tuple(options.shape)))
    before = resident_bytes() + image_bytes
    with tempfile.TemporaryDirectory() as folder:
        write_scan(Path(folder), shape=tuple(options.shape))
        cases = find_files(Path(folder), channels=CHANNELS)
        done = predict(cases, predictor=predictor, out=Path(folder) / "out", resources=allowed)
        if done.failures:
            print(*done.failures.values())
            raise SystemExit(2)
        with (Path(folder) / "out" / FILE).open(newline="") as stream:
            (row,) = csv.DictReader(stream)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stages = ", ".join(f"{stage} {float(row[f'{stage}_s']):.1f} s" for stage in STAGES)
    print(
        f"{'x'.join(map(str, options.shape))}, {options.structures} structures, {options.members} members, {options.threads} threads"
    )
    print(f"{float(row['running_s']):.1f} s: {stages}; load {os.getloadavg()[0]:.1f}")
    together = before + reckoned.total
    print(
        f"reckoned {together / 2**30:.2f} GB, and {reckoned.kept / 2**30:.2f} GB between members, in memory or on disk"
    )
    met = allowed.max_memory is not None and peak <= allowed.max_memory
    print(f"peak memory {peak / 2**30:.2f} GB of {options.max_memory}: {'met' if met else 'MISSED'}")


def member(seed: int, *, options: argparse.Namespace) -> Member:
    """A U-Net that was never trained."""
    names = tuple(f"organ {index}" for index in range(1, options.structures + 1))
    task = Task(
        channels=CHANNELS,
        table=LabelTable(labels=LabelSet(structures=names), atoms=((), *((index,) for index in range(len(names))))),
        head="softmax",
        patch_size=tuple(options.patch),
        spacing=SPACING_OF_MODEL,
        normalisation=(Normalisation(scheme="ct", low=-900.0, high=1400.0, mean=60.0, deviation=140.0),) * 2,
    )
    params = network_params(
        patch_size=list(options.patch), batch_size=2, features=options.features,
        precision="float32", optimizer="sgd", iterations=1,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = recipes.load("trainables", name="unet").build(params, task=task).eval()
    return Member(model=model, task=task, inference=Inference(overlap=options.overlap))


def geometry(shape: Size) -> Geometry:
    """The scan's grid."""
    return Geometry(shape=shape, spacing=SPACING, origin=(0, 0, 0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1))


def write_scan(folder: Path, *, shape: Size) -> None:
    """Noise with steps in it, in two channels; a scanner's values have no more to them that takes memory or time."""
    generator = np.random.default_rng(0)
    for channel in range(len(CHANNELS)):
        voxels = generator.integers(-80, 80, shape).astype(np.int16)
        voxels[:, : shape[1] // 4] -= 900
        write_image(voxels, geometry=geometry(shape), path=folder / f"case_{channel:04d}.nii.gz")


if __name__ == "__main__":
    main()
