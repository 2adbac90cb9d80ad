"""Looks for bad cases in a store: wrong, missing or swapped labels, implausible intensities, and scans that are there twice."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segsweep.data.arrays import GridReader
from segsweep.data.fingerprint import CT_WORD
from segsweep.data.store import CaseRecord, Store
from segsweep.data.structures import LabelTable
from segsweep.errors import StoreError

Severity = Literal["error", "warning", "info"]
# Told after each case: how many are done, of how many.
Progress = Callable[[int, int], None]

# Comparing cases with one another needs at least so many.
LEAST_CASES = 5
# Robust z of the log volume from which a volume is reported. The deviation counts as at least 15 %, so that a structure of
# nearly constant size is reported from about half or twice its median on.
LARGEST_Z, LEAST_DEVIATION = 5.0, 0.15
# A structure that this share of the cases has is expected in every case that annotates it.
USUAL = 0.9
# A structure whose largest piece usually holds this share of it is expected not to fall below the second share.
USUALLY_WHOLE, LEAST_WHOLE = 0.98, 0.9
# Fewer voxels give no reliable centre.
LEAST_VOXELS = 10
# Limits in HU: every CT holds air and something denser than soft tissue; below `PADDING_HU` lies no measured value.
AIR_HU, DENSE_HU, HIGHEST_HU, PADDING_HU = -500, 100, 4000, -1024
LARGEST_HIGH_SHARE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing to look at. `structure` is empty when the finding concerns the scan, `case_id` when it concerns all cases."""

    severity: Severity
    case_id: str
    structure: str
    message: str


@dataclass(frozen=True, kw_only=True)
class StructureSummary:
    """One structure over all cases; volumes in ml of the cases that have it (0 where none has)."""

    name: str
    annotated: int
    present: int
    median_ml: float
    smallest_ml: float
    largest_ml: float


@dataclass(frozen=True, kw_only=True)
class QualityReport:
    """What `check` found: errors first, then warnings, then what is merely worth knowing."""

    dataset: str
    digest: str
    num_cases: int
    structures: tuple[StructureSummary, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """One structure in one case: volume in ml, centre as mean x index, share of its largest piece."""

    voxels: int
    volume_ml: float
    centre_x: float
    pieces: int
    largest_share: float
    cut_off: bool


@dataclass(frozen=True, kw_only=True)
class _Case:
    """What was measured in one case. `ranges` are (lowest, highest, share padding, share too high) of each channel."""

    record: CaseRecord
    shapes: Mapping[str, _Shape]
    ranges: tuple[tuple[float, float, float, float], ...]
    image_digest: str


def check(store: Store, *, progress: Progress | None = None) -> QualityReport:
    """Read every case once at its native grid, and compare. A case that cannot be read becomes a finding itself."""
    cases: list[_Case] = []
    findings: list[Finding] = []
    for done, case_id in enumerate(sorted(store.cases), start=1):
        try:
            cases.append(_measure(store.cases[case_id], grid=store.grid(case_id), table=store.table))
        except StoreError as error:
            findings.append(Finding(severity="error", case_id=case_id, structure="", message=str(error)))
        if progress:
            progress(done, len(store.cases))
    findings += [found for case in cases for found in _implausible(case, channels=store.channels)]
    findings += [found for case in cases for found in _swapped(case, pairs=store.table.labels.pairs)]
    findings += _duplicates(cases)
    for name in store.table.labels.structures:
        findings += [*_absent(name, cases=cases), *_outliers(name, cases=cases), *_fragments(name, cases=cases)]
    order = ("error", "warning", "info")
    return QualityReport(
        dataset=store.dataset,
        digest=store.digest,
        num_cases=len(store.cases),
        structures=tuple(_summary(name, cases=cases) for name in store.table.labels.structures),
        findings=tuple(sorted(findings, key=lambda found: (order.index(found.severity), found.case_id))),
    )


def _measure(record: CaseRecord, *, grid: GridReader, table: LabelTable) -> _Case:
    image, label = grid.read_image(), grid.read_label()
    digest = hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
    boxes = ndimage.find_objects(label)
    shapes = {}
    for name in table.labels.structures:
        found = [
            boxes[value - 1] for value in table.values(name) if value <= len(boxes) and boxes[value - 1] is not None
        ]
        if found:
            shapes[name] = _shape(label, boxes=found, table=table, name=name, voxel_ml=grid.geometry.voxel_ml)
    ranges = tuple(
        (
            float(channel.min()),
            float(channel.max()),
            float(np.mean(channel < PADDING_HU)),
            float(np.mean(channel > HIGHEST_HU)),
        )
        for channel in image
    )
    return _Case(record=record, shapes=shapes, ranges=ranges, image_digest=digest)


def _shape(
    label: NDArray, *, boxes: list[tuple[slice, slice, slice]], table: LabelTable, name: str, voxel_ml: float
) -> _Shape:
    starts = [min(box[axis].start for box in boxes) for axis in range(3)]
    stops = [max(box[axis].stop for box in boxes) for axis in range(3)]
    part = label[tuple(slice(start, stop) for start, stop in zip(starts, stops, strict=True))]
    mask = table.mask(part, structure=name)
    voxels = int(mask.sum())
    pieces, num_pieces = ndimage.label(mask, structure=np.ones((3, 3, 3)))  # type: ignore[misc]
    return _Shape(
        voxels=voxels,
        volume_ml=voxels * voxel_ml,
        centre_x=starts[2] + float(mask.sum(axis=(0, 1)) @ np.arange(mask.shape[2])) / voxels,
        pieces=num_pieces,
        largest_share=int(np.bincount(pieces.ravel())[1:].max()) / voxels,
        cut_off=min(starts) == 0 or any(stop == size for stop, size in zip(stops, label.shape, strict=True)),
    )


def _implausible(case: _Case, *, channels: tuple[str, ...]) -> Iterator[Finding]:
    def found(severity: Severity, message: str) -> Finding:
        return Finding(severity=severity, case_id=case.record.case_id, structure="", message=message)

    for name, (low, high, padding, too_high) in zip(channels, case.ranges, strict=True):
        if not CT_WORD.search(name):
            continue
        if low > AIR_HU:
            yield found("warning", f"{name}: no air, the lowest value is {low:g}; expected about -1000 HU; is this HU?")
        if high < DENSE_HU:
            yield found(
                "warning", f"{name}: the highest value is {high:g}; expected bone above {DENSE_HU} HU; is this HU?"
            )
        if too_high > LARGEST_HIGH_SHARE:
            yield found("warning", f"{name}: {too_high:.1%} of the voxels lie above {HIGHEST_HU} HU, up to {high:g}")
        if padding > 0:
            yield found(
                "info", f"{name}: {padding:.1%} of the voxels are padding below {PADDING_HU} HU, down to {low:g}"
            )


def _swapped(case: _Case, *, pairs: tuple[tuple[str, str], ...]) -> Iterator[Finding]:
    """Canonical x grows to the patient's left, so a left structure has the larger x."""
    for left, right in pairs:
        if left not in case.shapes or right not in case.shapes:
            continue
        first, second = case.shapes[left], case.shapes[right]
        if first.centre_x < second.centre_x and min(first.voxels, second.voxels) >= LEAST_VOXELS:
            mm = (second.centre_x - first.centre_x) * case.record.geometry.spacing[2]
            message = f"{left} lies {mm:.0f} mm to the patient's right of {right}; the two are probably swapped"
            yield Finding(severity="error", case_id=case.record.case_id, structure=left, message=message)


def _duplicates(cases: list[_Case]) -> Iterator[Finding]:
    """The same image under two names; an error when both could end up on different sides of a split."""
    first: dict[str, CaseRecord] = {}
    for case in cases:
        record, other = case.record, first.setdefault(case.image_digest, case.record)
        if other is record:
            continue
        together = record.split == other.split and record.group == other.group != ""
        advice = "" if together else "; remove one, or give both the same group and split"
        message = f"holds exactly the same image as case {other.case_id}{advice}"
        severity: Severity = "warning" if together else "error"
        yield Finding(severity=severity, case_id=record.case_id, structure="", message=message)


def _absent(name: str, *, cases: list[_Case]) -> Iterator[Finding]:
    annotated = [case for case in cases if name in case.record.annotated]
    present = sum(name in case.shapes for case in annotated)
    unasked = [case for case in cases if name in case.shapes and name not in case.record.annotated]
    for case in unasked:
        message = f"{case.shapes[name].voxels} voxels found although the case does not count as annotated for it"
        yield Finding(severity="warning", case_id=case.record.case_id, structure=name, message=message)
    if cases and not annotated:
        yield Finding(severity="warning", case_id="", structure=name, message="annotated in none of the cases")
    elif annotated and not present:
        message = f"annotated in {len(annotated)} cases, but none has a voxel of it; nothing can be learnt"
        yield Finding(severity="error", case_id="", structure=name, message=message)
    else:
        usual: Severity = "warning" if annotated and present >= USUAL * len(annotated) else "info"
        message = f"annotated, but has no voxel ({present} of {len(annotated)} annotated cases have it)"
        for case in annotated:
            if name not in case.shapes:
                yield Finding(severity=usual, case_id=case.record.case_id, structure=name, message=message)


def _outliers(name: str, *, cases: list[_Case]) -> Iterator[Finding]:
    """Volumes far from the median; a small one that the scan's edge cuts off is not reported."""
    having = [case for case in cases if name in case.shapes]
    if len(having) < LEAST_CASES:
        return
    logs = np.log([case.shapes[name].volume_ml for case in having])
    median = float(np.median(logs))
    deviation = max(1.4826 * float(np.median(np.abs(logs - median))), LEAST_DEVIATION)
    for case, log in zip(having, logs, strict=True):
        z, shape = (log - median) / deviation, case.shapes[name]
        if abs(z) > LARGEST_Z and not (z < 0 and shape.cut_off):
            message = f"{shape.volume_ml:.3g} ml, the median is {math.exp(median):.3g} ml (robust z {z:+.1f})"
            yield Finding(severity="warning", case_id=case.record.case_id, structure=name, message=message)


def _fragments(name: str, *, cases: list[_Case]) -> Iterator[Finding]:
    """Pieces, for structures that are in one piece in most cases."""
    having = [case for case in cases if name in case.shapes]
    if len(having) < LEAST_CASES:
        return
    if np.median([case.shapes[name].largest_share for case in having]) < USUALLY_WHOLE:
        return
    for case in having:
        shape = case.shapes[name]
        if shape.largest_share < LEAST_WHOLE:
            message = (
                f"{shape.pieces} pieces, the largest holds {shape.largest_share:.0%}; in most cases it is one piece"
            )
            yield Finding(severity="warning", case_id=case.record.case_id, structure=name, message=message)


def _summary(name: str, *, cases: list[_Case]) -> StructureSummary:
    volumes = [case.shapes[name].volume_ml for case in cases if name in case.shapes]
    return StructureSummary(
        name=name,
        annotated=sum(name in case.record.annotated for case in cases),
        present=len(volumes),
        median_ml=float(np.median(volumes)) if volumes else 0.0,
        smallest_ml=min(volumes, default=0.0),
        largest_ml=max(volumes, default=0.0),
    )
