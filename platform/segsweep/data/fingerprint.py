"""From what the cases of a dataset look like to its plan: nnU-Net v2's planning rules (its experiment planners)."""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segsweep.data.geometry import Size, Spacing
from segsweep.data.manifest import read_file, read_manifest
from segsweep.data.planning import Normalisation, Plan
from segsweep.data.store import Store
from segsweep.data.structures import Atom, LabelSet, join
from segsweep.data.topology import SMALLEST_EDGE, Topology, divisible, divisor, feature_map_elements, topology
from segsweep.errors import InputError, ResourceError, unknown

REFERENCE_BATCH = 2
ANISOTROPIC = 3
FIRST_PATCH_VOXELS = 256**3
# HU; below lies air, which says nothing about how to normalise a scan without labels.
TISSUE_HU = -900
# "CT", "non_contrast_CT", "PET/CT", "ceCT"; not "SPECT", "active" or "CTV".
CT_WORD = re.compile(r"(?<![A-Z])CT(?![A-Za-z])|(?<![A-Za-z])[Cc][Tt](?![A-Za-z])")


@dataclass(frozen=True, kw_only=True)
class Planner:
    """A network that so many feature-map elements let train with batch 2 in so much GPU memory.

    One batch covers at most `largest_share` of the dataset's voxels.
    """

    residual: bool
    elements: float
    memory_gb: float
    largest_share: float


# nnU-Net v2's references (default and residual encoder planners).
PLANNERS: Mapping[str, Planner] = {
    "plain": Planner(residual=False, elements=560e6, memory_gb=8, largest_share=0.05),
    "resenc_m": Planner(residual=True, elements=680e6, memory_gb=8, largest_share=1.0),
    "resenc_l": Planner(residual=True, elements=2.1e9, memory_gb=24, largest_share=1.0),
    "resenc_xl": Planner(residual=True, elements=3.6e9, memory_gb=40, largest_share=1.0),
}


@dataclass(frozen=True, kw_only=True)
class CaseFingerprint:
    """One training case. `shape` in voxels and `spacing` in mm are those of its native grid (z, y, x).

    `intensities` (channels, n) holds HU sampled inside any structure, or anywhere in a scan without foreground; n may be 0.
    `atoms` are the sets of structures that occur in it, `annotated` the structures that somebody looked for.
    """

    case_id: str
    shape: Size
    spacing: Spacing
    intensities: NDArray
    annotated: tuple[str, ...]
    atoms: tuple[Atom, ...]


def read_fingerprints(store: Store) -> list[CaseFingerprint]:
    """The training cases of a store, or all where it has none. Raises StoreError that names a damaged case."""
    chosen = store.held_out("train") or tuple(store.cases)
    # In a bucket every answer takes a while, so they are waited for together.
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda case_id: _read_fingerprint(store, case_id=case_id), chosen))


def _read_fingerprint(store: Store, *, case_id: str) -> CaseFingerprint:
    record = store.cases[case_id]
    home = store.home(case_id)
    manifest = read_manifest(home, name=case_id)
    sampled = read_file(home, relative="intensities.npy", manifest=manifest, name=case_id)
    return CaseFingerprint(
        case_id=case_id,
        shape=record.geometry.shape,
        spacing=record.geometry.spacing,
        intensities=np.load(io.BytesIO(sampled), allow_pickle=False),
        annotated=record.annotated,
        atoms=record.atoms,
    )


def find_planner(name: str) -> Planner:
    """One of `PLANNERS`. Raises InputError with the nearest names for another name."""
    if name not in PLANNERS:
        raise InputError(unknown(name, kind="planners", known=PLANNERS))
    return PLANNERS[name]


def make_plan(
    cases: Sequence[CaseFingerprint],
    *,
    channels: tuple[str, ...],
    labels: LabelSet,
    planner: str = "plain",
    memory_gb: float | None = None,
) -> Plan:
    """The plan for training cases by one of `PLANNERS`, on GPUs with its memory or with `memory_gb`. Axes are never transposed.

    Patch and batch leave room for the larger of both heads (atoms or structures), so a run may choose either. Unlike in
    nnU-Net, whose CT rule wants the exact name "CT", every channel whose name contains the word CT is normalised as CT.
    Raises InputError without cases and for an unknown planner, ResourceError when no patch fits the memory.
    """
    reference = find_planner(planner)
    if not cases:
        raise InputError("no training cases found to plan from; expected at least one case of split 'train'")
    spacing = _target_spacing(cases)
    shapes = [[n * s / t for n, s, t in zip(case.shape, case.spacing, spacing, strict=True)] for case in cases]
    median_shape = _size(np.median(np.rint(shapes), axis=0))
    outputs = max(len(join(case.atoms for case in cases)), len(labels.structures))
    budget = reference.elements * (memory_gb or reference.memory_gb) / reference.memory_gb
    patch_size, batch_size = _patch_and_batch(
        median_shape, spacing=spacing, outputs=outputs, planner=reference, budget=budget, num_cases=len(cases)
    )
    return Plan(
        spacing=spacing,
        patch_size=patch_size,
        batch_size=batch_size,
        median_shape=median_shape,
        normalisation=normalisation_of(cases, channels=channels),
        head=_head(cases, labels=labels),
    )


def normalisation_of(cases: Sequence[CaseFingerprint], *, channels: tuple[str, ...]) -> tuple[Normalisation, ...]:
    """The rule of each channel: CT by the foreground of all cases, anything else by each scan's own mean and deviation."""
    return tuple(_normalisation(cases, channel=index, name=name) for index, name in enumerate(channels))


def are_ct(channels: tuple[str, ...]) -> tuple[bool, ...]:
    """Which channels hold CT, by their names."""
    return tuple(CT_WORD.search(name) is not None for name in channels)


def patch_and_batch(store: Store, *, planner: str) -> tuple[Size, int]:
    """Patch (voxels z, y, x) and batch size that one of `PLANNERS` gives a store at the spacing of its plan, on GPUs with its memory.

    Raises InputError for an unknown planner, ResourceError when no patch fits the memory.
    """
    reference, plan = find_planner(planner), store.plan
    chosen = store.held_out("train") or tuple(store.cases)
    return _patch_and_batch(
        plan.median_shape,
        spacing=plan.spacing,
        outputs=max(len(store.table.atoms), len(store.table.labels.structures)),
        planner=reference,
        budget=reference.elements,
        num_cases=len(chosen),
    )


def _patch_and_batch(
    median_shape: Size, *, spacing: Spacing, outputs: int, planner: Planner, budget: float, num_cases: int
) -> tuple[Size, int]:
    cost = partial(feature_map_elements, outputs=outputs, residual=planner.residual)
    patch_size = _patch_size(median_shape, spacing=spacing, cost=cost, budget=budget)
    elements = cost(patch_size, topology=topology(patch_size, spacing=spacing))
    most = round(planner.largest_share * math.prod(median_shape) * num_cases / math.prod(patch_size))
    return patch_size, max(min(round(budget / elements * REFERENCE_BATCH), most), REFERENCE_BATCH)


def _target_spacing(cases: Sequence[CaseFingerprint]) -> Spacing:
    """Median along each axis; the 10th percentile along the coarsest one when it is anisotropic in mm and in voxels."""
    spacings = np.asarray([case.spacing for case in cases], dtype=float)
    voxels = np.median([case.shape for case in cases], axis=0)
    target = np.median(spacings, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    finest_allowed = float(target[others].max())
    if target[worst] > ANISOTROPIC * finest_allowed and voxels[worst] * ANISOTROPIC < voxels[others].min():
        tenth = float(np.percentile(spacings[:, worst], 10))
        target[worst] = tenth if tenth >= finest_allowed else finest_allowed + 1e-5
    return float(target[0]), float(target[1]), float(target[2])


def _patch_size(median_shape: Size, *, spacing: Spacing, cost: Callable[..., int], budget: float) -> Size:
    """Isotropic in mm and of 256^3 voxels, clipped to the median scan, then shrunk until it fits."""
    edge = (FIRST_PATCH_VOXELS * math.prod(spacing)) ** (1 / 3)
    patch = _size([min(round(edge / mm), n) for mm, n in zip(spacing, median_shape, strict=True)])
    levels = topology(patch, spacing=spacing)
    patch = divisible(patch, topology=levels)
    while cost(patch, topology=levels) > budget:
        patch = _shrink(patch, levels=levels, spacing=spacing, median_shape=median_shape)
        levels = topology(patch, spacing=spacing)
        patch = divisible(patch, topology=levels)
    return patch


def _shrink(patch: Size, *, levels: Topology, spacing: Spacing, median_shape: Size) -> Size:
    """One divisibility step off the axis that covers most of the median scan; on a tie, not off the coarsest."""
    step = divisor(levels)
    free = [axis for axis in range(3) if patch[axis] - step[axis] >= SMALLEST_EDGE]
    if not free:
        raise ResourceError(f"not even a patch of {patch} voxels (z, y, x) fits the GPU memory given; give more")
    axis = max(free, key=lambda i: (patch[i] / median_shape[i], spacing[i] < max(spacing), i))
    # The smaller patch may be halved less often, and then a smaller step is enough.
    step = divisor(topology(_reduce(patch, axis=axis, by=step[axis]), spacing=spacing))
    return _reduce(patch, axis=axis, by=step[axis])


def _reduce(patch: Size, *, axis: int, by: int) -> Size:
    return _size([n - by if i == axis else n for i, n in enumerate(patch)])


def _normalisation(cases: Sequence[CaseFingerprint], *, channel: int, name: str) -> Normalisation:
    values = _intensities(cases, channel=channel) if CT_WORD.search(name) else np.zeros(0)
    if not values.size:
        return Normalisation(scheme="z-score")
    low, high = np.percentile(values, [0.5, 99.5])
    return Normalisation(
        scheme="ct", low=float(low), high=float(high), mean=float(values.mean()), deviation=float(values.std())
    )


def _intensities(cases: Sequence[CaseFingerprint], *, channel: int) -> NDArray[np.float64]:
    """Foreground HU of all cases; tissue anywhere in them when no case has foreground."""
    labelled = [case.intensities[channel] for case in cases if len(join([case.atoms])) > 1]
    inside = np.concatenate([np.zeros(0), *labelled])
    if inside.size:
        return inside
    anywhere = np.concatenate([case.intensities[channel].astype(float) for case in cases])
    return anywhere[anywhere > TISSUE_HU]


def _head(cases: Sequence[CaseFingerprint], *, labels: LabelSet) -> Literal["softmax", "sigmoid"]:
    """Softmax over atoms needs every case to annotate everything or nothing, and structures that do not overlap."""
    partial = any(0 < len(set(case.annotated)) < len(labels.structures) for case in cases)
    overlapping = any(len(atom) > 1 for case in cases for atom in case.atoms)
    return "sigmoid" if partial or overlapping else "softmax"


def _size(values: NDArray | Sequence[int]) -> Size:
    z, y, x = (round(float(value)) for value in values)
    return z, y, x
