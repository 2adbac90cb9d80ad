"""Growth of a store: time a case, and time to open, from 20 to 2,000 tiny cases.

    python benchmarks/store_growth.py            (about 3 minutes on 2 cores)

Bars: converting takes as long a case in the largest store as in the smallest, and so does running the same conversion again;
opening 2,000 cases takes less than a second.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from segsweep import recipes
from segsweep.data.conversion import convert
from segsweep.data.geometry import Geometry
from segsweep.data.store import open_store
from segsweep.inference.writers import write_image, write_label_map
from segsweep.sweeps.cluster import connect

SIZES = (20, 200, 2000)
SHAPE = (12, 20, 20)
OPENED = 1.0
OPENINGS = 5


def main() -> None:
    """Convert stores of growing size and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    sizes = parser.parse_args().sizes
    connect()
    print(f"{'cases':>8}{'convert ms a case':>20}{'again ms a case':>18}{'open ms':>10}   bar: open below {OPENED:g} s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder / "warm", num_cases=sizes[0])
        convert("openkbp", raw=folder / "warm", store=folder / "warm-store")  # workers import once
        for size in sizes:
            raw, store = folder / f"raw{size}", folder / f"store{size}"
            make(raw, num_cases=size)
            first, again = (convert("openkbp", raw=raw, store=store).seconds for _ in range(2))
            opened = min(opening(store) for _ in range(OPENINGS))
            print(f"{size:8}{1e3 * first / size:20.1f}{1e3 * again / size:18.1f}{1e3 * opened:10.1f}", flush=True)


def opening(store: Path) -> float:
    """Seconds to open a store and find its folds."""
    started = time.perf_counter()
    open_store(store).training(0)
    return time.perf_counter() - started


def make(raw: Path, *, num_cases: int) -> None:
    """Tiny scans in the openKBP layout: noise, and every structure a box."""
    structures = recipes.load("datasets", name="openkbp").LABELS.structures
    rng = np.random.default_rng(0)
    label = np.zeros(SHAPE, np.uint8)
    for value in range(1, len(structures) + 1):
        label[value : value + 3, 4:12, 2 * value : 2 * value + 3] = value
    ids = [f"tiny_{number:04d}" for number in range(num_cases)]
    for number, case_id in enumerate(ids):
        pitch = 2.0 + number % 3 / 2
        geometry = Geometry(
            shape=SHAPE,
            spacing=(3.0, pitch, pitch),
            origin=(0.0, 0.0, 0.0),
            direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
        )
        image = rng.normal(40.0 * label, 30).astype(np.int16)
        write_image(image, geometry=geometry, path=raw / "images" / f"{case_id}.nii.gz")
        write_label_map(label, geometry=geometry, path=raw / "labels" / f"{case_id}.nii.gz")
    labels = {name: value for value, name in enumerate(structures, start=1)}
    cases = [{"id": case_id, "upstream_split": "train"} for case_id in ids]
    (raw / "cases.json").write_text(json.dumps({"labels": labels, "cases": cases}))


if __name__ == "__main__":
    main()
