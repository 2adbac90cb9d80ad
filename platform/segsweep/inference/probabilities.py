"""Probabilities of one model for one case, computed once and kept in the workspace, quantised to 8 bits.

    PLACE/KEY/CASE/            a committed folder (manifest.json with sha256 of every file), KEY from model, store and spacing
    PLACE/KEY/CASE/grid/       probabilities (k, z, y, x), uint8, chunked and compressed, with checksums; its facts beside it

A probability p is kept as round(255 p): it comes back within 1/510 (0.002). Channels are what the model's head says: one an atom
(softmax) or one a structure (sigmoid), which is what a Predictor averages.
"""

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from segsweep.data.arrays import StoredProbabilities, open_probabilities, write_probabilities
from segsweep.data.geometry import Geometry, Spacing
from segsweep.data.manifest import check_folder, committed
from segsweep.data.mirror import HERE, Mirror
from segsweep.data.planning import AIR_HU
from segsweep.data.store import Store
from segsweep.errors import StoreError
from segsweep.inference.budget import Resources
from segsweep.inference.export import CERTAIN, Planes
from segsweep.inference.predictor import Member, member_planes
from segsweep.learning.patches import Region
from segsweep.learning.task import Head

GRID = "grid"
# Format of an entry: another one is another key, so that older entries are left alone.
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Where the probabilities of a model (by the digest of its files) for the cases of a store lie, at a spacing (mm).

    `home` is what `place` is part of.
    """

    place: Path
    digest: str
    store: Store
    spacing: Spacing
    home: Mirror = HERE

    def folder(self, case_id: str) -> Path:
        """The committed folder of a case, whether it is there or not."""
        text = json.dumps([FORMAT, self.digest, self.store.digest, list(self.spacing)])
        return self.place / hashlib.sha256(text.encode()).hexdigest()[:32] / case_id


@dataclass(frozen=True, kw_only=True)
class CaseProbabilities:
    """A model's probabilities of one case, `num_bytes` on disk.

    `seconds` is how long the model took for it, on the machine that computed them.
    """

    stored: StoredProbabilities
    num_bytes: int

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the model alone, without reading the scan."""
        return float(self.stored.facts["seconds"])

    def slices(self, part: slice) -> NDArray[np.uint8]:
        """All channels (k, z, y, x) of some slices, verified as they are read. Raises StoreError when they are damaged."""
        return self.stored.read(part)


def cached(entry: Entry, *, case_id: str, member: Callable[[], Member]) -> CaseProbabilities:
    """The probabilities of a case, computed with `member()` where none are kept, or what is kept proves damaged.

    Every byte of an entry is compared with its manifest before it is used. While they are computed, one case of one model is in memory.
    """
    folder = entry.folder(case_id)
    shared = entry.home.at(folder)
    with contextlib.suppress(StoreError):
        return _opened(folder, case_id=case_id)
    shared.fetch()
    with contextlib.suppress(StoreError):
        return _opened(folder, case_id=case_id)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _compute(entry, case_id=case_id, member=member())
    shared.send()
    return _opened(folder, case_id=case_id)


def quantised(planes: Planes, *, head: Head, num_slices: int) -> NDArray[np.uint8]:
    """Probabilities (k, z, y, x) as round(255 p), of the logits of as many slices."""
    result = np.empty(0, dtype=np.uint8)
    for index, plane in enumerate(planes):
        share = softmax(plane, axis=0) if head == "softmax" else expit(plane)
        if not index:
            result = np.empty((len(plane), num_slices, *plane.shape[1:]), dtype=np.uint8)
        result[:, index] = np.rint(share * CERTAIN)
    return result


def _opened(folder: Path, *, case_id: str) -> CaseProbabilities:
    name = f"probabilities of {case_id}"
    manifest = check_folder(folder, name=name, depth="deep")
    return CaseProbabilities(stored=open_probabilities(folder / GRID, name=name), num_bytes=manifest.num_bytes)


def _compute(entry: Entry, *, case_id: str, member: Member) -> None:
    grid = entry.store.grid(case_id)
    image, native = np.maximum(grid.read_image(), AIR_HU), grid.geometry
    common = native.resampled(entry.spacing)
    begun = time.perf_counter()
    planes = member_planes(
        member,
        image=image,
        rules=member.task.normalisation,
        geometry=native,
        common=common,
        mirror=None,
        resources=Resources(),
    )
    values = quantised(planes, head=member.task.head, num_slices=common.shape[0])
    seconds = time.perf_counter() - begun
    if member.finder is not None:
        _blank(values, region=member.region(image, geometry=native), member=member, native=native, common=common)
    with committed(entry.folder(case_id)) as partial:
        write_probabilities(partial / GRID, values=values, geometry=common, facts={"seconds": round(seconds, 3)})


def _blank(values: NDArray[np.uint8], *, region: Region, member: Member, native: Geometry, common: Geometry) -> None:
    """Leave background alone outside the region (native voxels) that a finder shows."""
    scales = [new / old for new, old in zip(common.shape, native.shape, strict=True)]
    seen = np.zeros(common.shape, dtype=bool)
    z, y, x = (
        slice(math.floor(part.start * scale), math.ceil(part.stop * scale))
        for part, scale in zip(region, scales, strict=True)
    )
    seen[z, y, x] = True
    values[:, ~seen] = 0
    if member.task.head == "softmax":
        values[0, ~seen] = CERTAIN
