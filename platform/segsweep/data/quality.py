"""Looks for bad cases in a store: wrong, missing or swapped labels, implausible intensities, and scans that are there twice."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segsweep.data.duplicates import similar
from segsweep.data.fingerprint import CT_WORD
from segsweep.data.index import CaseRecord
from segsweep.data.measures import HIGHEST_HU, PADDING_HU, CaseMeasures, measure
from segsweep.data.store import Store
from segsweep.errors import StoreError
from segsweep.terminal import counted

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
# Limits in HU: every CT holds air and something denser than soft tissue.
AIR_HU, DENSE_HU = -500, 100
LARGEST_HIGH_SHARE = 1e-3
# The middle between left and right may lie so far (mm) from where the other pairs, at least so many, have it.
OFF_MIDLINE_MM, LEAST_PAIRS = 20.0, 3


SEPARATE = "; remove one, or give both the same group and split"


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


def check(store: Store, *, progress: Progress | None = None) -> QualityReport:
    """Read every case once at its native grid, and compare. A case that cannot be read becomes a finding itself."""
    cases: list[CaseMeasures] = []
    findings: list[Finding] = []
    for done, case_id in enumerate(sorted(store.cases), start=1):
        try:
            cases.append(measure(store.cases[case_id], grid=store.grid(case_id), table=store.table))
        except StoreError as error:
            findings.append(Finding(severity="error", case_id=case_id, structure="", message=str(error)))
        if progress:
            progress(done, len(store.cases))
    findings += [found for case in cases for found in _implausible(case, channels=store.channels)]
    pairs = store.table.labels.pairs
    findings += [found for case in cases for found in (*_swapped(case, pairs=pairs), *_off_midline(case, pairs=pairs))]
    findings += _duplicates(cases)
    for name in store.table.labels.structures:
        findings += [*_absent(name, cases=cases), *_outliers(name, cases=cases), *_fragments(name, cases=cases)]
    seen = {(found.case_id, found.structure) for found in findings}
    for left, right in pairs:
        uneven = _asymmetric(left, right=right, cases=cases)
        findings += [one for one in uneven if not {(one.case_id, left), (one.case_id, right)} & seen]
    order = ("error", "warning", "info")
    return QualityReport(
        dataset=store.dataset,
        digest=store.digest,
        num_cases=len(store.cases),
        structures=tuple(_summary(name, cases=cases) for name in store.table.labels.structures),
        findings=tuple(sorted(findings, key=lambda found: (order.index(found.severity), found.case_id))),
    )


def three_digits(value: float) -> str:
    """A size to three digits, whole from 100 on, without an exponent: 0.0512, 7.90, 1512. 0 means that there is none: a dash."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value else "–"


def _implausible(case: CaseMeasures, *, channels: tuple[str, ...]) -> Iterator[Finding]:
    def found(severity: Severity, message: str) -> Finding:
        return Finding(severity=severity, case_id=case.record.case_id, structure="", message=message)

    for name, values in zip(channels, case.ranges, strict=True):
        low, high, padding, too_high = values.low, values.high, values.padding, values.too_high
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


def _swapped(case: CaseMeasures, *, pairs: tuple[tuple[str, str], ...]) -> Iterator[Finding]:
    """Canonical x grows to the patient's left, so a left structure has the larger x."""
    for left, right in pairs:
        if left not in case.shapes or right not in case.shapes:
            continue
        first, second = case.shapes[left], case.shapes[right]
        if first.centre_x < second.centre_x and min(first.voxels, second.voxels) >= LEAST_VOXELS:
            mm = (second.centre_x - first.centre_x) * case.record.geometry.spacing[2]
            message = f"lies {mm:.0f} mm to the patient's right of {right}; the two are probably swapped"
            yield Finding(severity="error", case_id=case.record.case_id, structure=left, message=message)


def _off_midline(case: CaseMeasures, *, pairs: tuple[tuple[str, str], ...]) -> Iterator[Finding]:
    """Pairs whose middle is not where the other pairs have theirs: both on one side, or one of them elsewhere."""
    middles = {
        left: (case.shapes[left].centre_x + case.shapes[right].centre_x) / 2 * case.record.geometry.spacing[2]
        for left, right in pairs
        if left in case.shapes and right in case.shapes
    }
    if len(middles) < LEAST_PAIRS:
        return
    for left, right in pairs:
        if left not in middles:
            continue
        off = middles[left] - float(np.median([at for name, at in middles.items() if name != left]))
        if abs(off) > OFF_MIDLINE_MM:
            side = "left" if off > 0 else "right"
            message = (
                f"the middle between {left} and {right} lies {abs(off):.0f} mm to the {side} of the other pairs' middle"
            )
            yield Finding(severity="warning", case_id=case.record.case_id, structure=left, message=message)


def _asymmetric(left: str, *, right: str, cases: list[CaseMeasures]) -> Iterator[Finding]:
    """Pairs of much more different size than they usually have, unless the scan's edge cuts one off."""
    having = [case for case in cases if left in case.shapes and right in case.shapes]
    if len(having) < LEAST_CASES:
        return
    logs = np.log([case.shapes[left].volume_ml / case.shapes[right].volume_ml for case in having])
    for case, log, z in zip(having, logs, _robust_z(logs), strict=True):
        if abs(z) > LARGEST_Z and not (case.shapes[left].cut_off or case.shapes[right].cut_off):
            usual = math.exp(float(np.median(logs)))
            message = f"{math.exp(log):.2g} times as large as {right}, usually {usual:.2g} times (robust z {z:+.1f})"
            yield Finding(severity="warning", case_id=case.record.case_id, structure=left, message=message)


def _duplicates(cases: list[CaseMeasures]) -> Iterator[Finding]:
    """The same image under two names; an error when both could end up on different sides of a split."""
    first: dict[str, CaseRecord] = {}
    for case in cases:
        record, other = case.record, first.setdefault(case.image_digest, case.record)
        if other is record:
            continue
        together = _kept_together(record, other=other)
        message = f"holds exactly the same image as case {other.case_id}{'' if together else SEPARATE}"
        severity: Severity = "warning" if together else "error"
        yield Finding(severity=severity, case_id=record.case_id, structure="", message=message)
    for pair in similar([case.signature for case in cases]):
        one, two = cases[pair.first], cases[pair.second]
        if one.image_digest != two.image_digest and not _kept_together(one.record, other=two.record):
            message = f"looks like case {one.record.case_id} (correlation {pair.correlation:.2f}){SEPARATE}"
            yield Finding(severity="warning", case_id=two.record.case_id, structure="", message=message)


def _kept_together(record: CaseRecord, *, other: CaseRecord) -> bool:
    """Whether no split and no fold can ever train on one of two cases and test on the other."""
    return record.split == other.split and record.group == other.group != ""


def _absent(name: str, *, cases: list[CaseMeasures]) -> Iterator[Finding]:
    annotated = [case for case in cases if name in case.record.annotated]
    present = sum(name in case.shapes for case in annotated)
    unasked = [case for case in cases if name in case.shapes and name not in case.record.annotated]
    for case in unasked:
        message = f"{case.shapes[name].voxels} voxels found although the case does not count as annotated for it"
        yield Finding(severity="warning", case_id=case.record.case_id, structure=name, message=message)
    if cases and not annotated:
        yield Finding(severity="warning", case_id="", structure=name, message="annotated in none of the cases")
    elif annotated and not present:
        message = (
            f"annotated in {counted(len(annotated), noun='case')}, but no voxel of it is there; nothing can be learnt"
        )
        yield Finding(severity="error", case_id="", structure=name, message=message)
    else:
        usual: Severity = "warning" if annotated and present >= USUAL * len(annotated) else "info"
        message = f"annotated, but has no voxel ({present} of {len(annotated)} annotated cases have it)"
        for case in annotated:
            if name not in case.shapes:
                yield Finding(severity=usual, case_id=case.record.case_id, structure=name, message=message)


def _outliers(name: str, *, cases: list[CaseMeasures]) -> Iterator[Finding]:
    """Volumes far from the median; a small one that the scan's edge cuts off is not reported."""
    having = [case for case in cases if name in case.shapes]
    if len(having) < LEAST_CASES:
        return
    logs = np.log([case.shapes[name].volume_ml for case in having])
    median = float(np.median(logs))
    for case, z in zip(having, _robust_z(logs), strict=True):
        shape = case.shapes[name]
        if abs(z) > LARGEST_Z and not (z < 0 and shape.cut_off):
            sizes = f"{three_digits(shape.volume_ml)} ml, the median is {three_digits(math.exp(median))} ml"
            message = f"{sizes} (robust z {z:+.1f})"
            yield Finding(severity="warning", case_id=case.record.case_id, structure=name, message=message)


def _robust_z(logs: NDArray[np.float64]) -> list[float]:
    median = np.median(logs)
    deviation = max(1.4826 * float(np.median(np.abs(logs - median))), LEAST_DEVIATION)
    return ((logs - median) / deviation).tolist()


def _fragments(name: str, *, cases: list[CaseMeasures]) -> Iterator[Finding]:
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


def _summary(name: str, *, cases: list[CaseMeasures]) -> StructureSummary:
    volumes = [case.shapes[name].volume_ml for case in cases if name in case.shapes]
    return StructureSummary(
        name=name,
        annotated=sum(name in case.record.annotated for case in cases),
        present=len(volumes),
        median_ml=float(np.median(volumes)) if volumes else 0.0,
        smallest_ml=min(volumes, default=0.0),
        largest_ml=max(volumes, default=0.0),
    )
