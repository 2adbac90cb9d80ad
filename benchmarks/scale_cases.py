"""A store of very many cases that are not there: folders with a record, sampled intensities and a manifest, but no voxels.

The conversion takes them for cases that it has converted before, so all but the voxels is real: a task a case, and another for its
training grid, the index, the plan, the folds.
"""

import json
import os
import shutil
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
from scale_cost import Figures, megabytes, peak_megabytes

from segsweep.data import building, quality_report, reading
from segsweep.data.case import CaseSource, LabelFile
from segsweep.data.conversion import convert, derive
from segsweep.data.dataset import Dataset
from segsweep.data.geometry import Geometry
from segsweep.data.manifest import MANIFEST, seal
from segsweep.data.quality import Finding, QualityReport
from segsweep.data.store import open_store
from segsweep.data.structures import LabelSet
from segsweep.inference.writers import write_image, write_label_map
from segsweep.sweeps.cluster import connect

STRUCTURES = tuple(f"organ_{number:02}" for number in range(30))
SHAPE = (40, 64, 64)
# A file system allows a file fewer names than there are cases.
MOST_LINKS = 50_000


def measure(figures: Figures, *, cases: int, folder: Path) -> None:
    """Convert so many cases that are there already, then do what every user of their store does."""
    connect()
    dataset = simulate(folder, cases=cases)
    held = megabytes()
    shown = Shown(figures, cases=cases)
    with figures.cost("convert again, nothing to do", at=cases):
        converted = convert(dataset, raw=folder / "raw", store=folder / "store", progress=shown)
    assert len(converted.kept) == cases
    shown.ended()
    figures.add("convert again: driver's peak over what it had", at=cases, value=peak_megabytes() - held, unit="MB")
    del converted
    figures.add("index", at=cases, value=(folder / "store" / "index.json").stat().st_size / 1e6, unit="MB")
    with figures.cost("open the store", at=cases):
        store = open_store(folder / "store")
    with figures.cost("draw folds", at=cases):
        store.training(0)
    with figures.cost("look for missing training grids (each trial's start)", at=cases):
        derive(store, spacing=store.plan.spacing)
    found = Finding(
        severity="warning", case_id="case", structure=STRUCTURES[0], message="3 pieces, the largest holds 80%"
    )
    findings = tuple(replace(found, case_id=case_id) for case_id in store.cases)
    report = QualityReport(
        dataset=store.dataset, digest=store.digest, num_cases=cases, structures=(), findings=findings
    )
    page = Path(quality_report.write(report, store=store, folder=folder))
    figures.add("quality page, a finding a case", at=cases, value=page.stat().st_size / 1e6, unit="MB")


class Shown:
    """Progress of a conversion: pieces of work a second, and the driver's memory when a fifth and when all are done."""

    def __init__(self, figures: Figures, *, cases: int) -> None:
        self._figures, self._cases = figures, cases
        self._began = {"": time.monotonic()}

    def __call__(self, label: str, done: int, total: int) -> None:
        self._began.setdefault(label, time.monotonic())
        if done in (total // 5, total):
            self._figures.add(f"{label}: driver's memory", at=done, value=megabytes(), unit="MB")
        if done == total:
            self._began[f"{label} ended"] = time.monotonic()
            rate = total / (time.monotonic() - self._began[label])
            self._figures.add(f"{label}: tasks a second", at=total, value=rate, unit="1/s")

    def ended(self) -> None:
        """Say how long the driver worked alone."""
        between = self._began["training grids"] - self._began["cases ended"]
        self._figures.add("plan, between the two", at=self._cases, value=between, unit="s")
        last = time.monotonic() - self._began["training grids ended"]
        self._figures.add("index, written and opened", at=self._cases, value=last, unit="s")


def simulate(folder: Path, *, cases: int) -> Dataset:
    """The dataset; its store holds the cases."""
    raw, place = folder / "raw", folder / "store" / "cases"
    raw.mkdir(parents=True)
    place.mkdir(parents=True)
    labels, source = LabelSet(structures=STRUCTURES), _real(raw)
    template = folder / "template"
    record = building.build_case(source, labels=labels, folder=template)
    record.pop("digest")
    digests = list(reading.source_digests(source))
    sampled = np.random.default_rng(0).integers(-1000, 1000, (1, building.MOST_INTENSITIES)).astype(np.int16)
    sources, last, entry = [], template, {}
    for number in range(cases):
        if number % MOST_LINKS == 0:
            np.save(template / f"{number}.npy", sampled)
            content = (template / f"{number}.npy").read_bytes()
            entry = {"bytes": len(content), "sha256": sha256(content).hexdigest(), "tail": _tail(content)}
            last = template / f"{number}.npy"
        own = {**record, "case_id": f"case-{number:06}", "source_digests": digests}
        _write_case(place / own["case_id"], record=own, intensities=last, entry=entry)
        sources.append(replace(source, case_id=own["case_id"]))
    shutil.rmtree(template / "grids")
    return Dataset(name="simulated", labels=labels, channels=("CT",), cases=tuple(sources))


def _write_case(folder: Path, *, record: dict, intensities: Path, entry: dict) -> None:
    folder.mkdir()
    os.link(intensities, folder / "intensities.npy")
    text = json.dumps(record, indent=1).encode()
    (folder / "case.json").write_bytes(text)
    own = {"bytes": len(text), "sha256": sha256(text).hexdigest(), "tail": _tail(text)}
    files = {"case.json": own, "intensities.npy": entry}
    (folder / MANIFEST).write_bytes(seal({"source": "", "files": files}))


def _tail(content: bytes) -> str:
    return sha256(content[-(2**16) :]).hexdigest()


def _real(raw: Path) -> CaseSource:
    """The files of one real case, every structure a box: all cases have them."""
    generator = np.random.default_rng(0)
    label = np.zeros(SHAPE, np.uint8)
    for value in range(1, len(STRUCTURES) + 1):
        label[value : value + 2, value : value + 20, value : value + 20] = value
    geometry = Geometry(
        shape=SHAPE, spacing=(3.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)
    )
    image = generator.normal(0, 200, SHAPE).astype(np.int16)
    write_image(image, geometry=geometry, path=raw / "scan.nii.gz")
    write_label_map(label, geometry=geometry, path=raw / "label.nii.gz")
    values = {value: (name,) for value, name in enumerate(STRUCTURES, start=1)}
    labels = (LabelFile(path=raw / "label.nii.gz", values=values),)
    return CaseSource(case_id="case", images=(raw / "scan.nii.gz",), labels=labels, annotated=STRUCTURES, root=raw)
