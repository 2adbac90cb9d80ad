"""A Store is a dataset converted once: one Zarr group a case, an index that opens in one read, and a plan.

    index.json                              what the store holds: labels, atoms, one record a case, digest (sealed; `index.py`)
    plan.json                               spacing, patch size, normalisation: a person may edit it
    cases/ID/case.json                      the case's own record; the index is made of these
    cases/ID/grids/native/                  the scan as it came (canonical orientation), losslessly
    cases/ID/manifest.json                  size and sha256 of these files (sealed); its digest is in the index
    cases/ID/grids/SPACING/                 derived once per training spacing, with a manifest of its own

Nothing is visible before it is complete: a case or grid is written under a hidden name, flushed, and renamed; in a bucket, its manifest
is uploaded last. Grids of a store in a bucket are read from a local copy, which is made when they are read.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from segsweep.data import storage
from segsweep.data.arrays import GridReader
from segsweep.data.case import Split
from segsweep.data.geometry import Geometry, Spacing
from segsweep.data.index import INDEX, CaseRecord, read_index, records_of, table_of
from segsweep.data.manifest import MANIFEST, REPAIR, Manifest, check_folder
from segsweep.data.planning import AIR_HU, Plan, demand_usable, plan_from_json
from segsweep.data.remote import Grid, RemoteGrid
from segsweep.data.splits import Candidate, Folds, draw_folds
from segsweep.data.structures import LabelTable, lookup
from segsweep.errors import StoreError, understood, unknown
from segsweep.run import Fold

NATIVE = "native"


@dataclass(frozen=True, kw_only=True)
class Store:
    """An opened store. `digest` changes with any voxel, label or split; `plan_digest` is the sha256 of plan.json as it was made.

    `given_folds` are those of a file, as at the conversion; without, folds are drawn.
    """

    uri: str
    dataset: str
    channels: tuple[str, ...]
    table: LabelTable
    cases: Mapping[str, CaseRecord]
    digest: str
    plan_digest: str
    given_folds: Folds | None = None

    def home(self, case_id: str) -> str:
        """Address of a case."""
        return f"{self.uri}/cases/{case_id}"

    @cached_property
    def plan(self) -> Plan:
        """The training plan. Raises StoreError when plan.json is absent or was edited into something unreadable."""
        path = f"{self.uri}/plan.json"
        try:
            text = storage.read_bytes(path)
        except FileNotFoundError:
            raise StoreError(f"{path}: not found; convert the dataset again to plan it") from None
        with understood(path, otherwise=StoreError, do="correct it, or delete it and convert again"):
            plan = plan_from_json(json.loads(text))
            demand_usable(plan, num_channels=len(self.channels))
            return plan

    def held_out(self, split: Split) -> tuple[str, ...]:
        """Cases of a split, sorted."""
        return tuple(sorted(case_id for case_id, record in self.cases.items() if record.split == split))

    @cached_property
    def _folds(self) -> Folds:
        return self.given_folds or draw_folds(self.candidates)

    @property
    def candidates(self) -> Mapping[str, Candidate]:
        """Annotated training cases: those that folds hold out."""
        names = self.table.labels.structures
        found = {}
        for case_id in self.held_out("train"):
            record = self.cases[case_id]
            if record.annotated:
                occurring = [self.table.atoms[value] for value in record.voxels if value < len(self.table.atoms)]
                present = {names[index] for atom in occurring for index in atom}
                found[case_id] = Candidate(group=record.group, structures=sorted(present))
        return found

    @property
    def num_folds(self) -> int:
        """How many folds there are."""
        return len(self._folds)

    def validation(self, fold: Fold) -> tuple[str, ...]:
        """Annotated training cases that a fold holds out; none for "all". Raises StoreError when there is no such fold."""
        if fold == "all":
            return ()
        if fold >= len(self._folds):
            raise StoreError(f"{self.uri}: no fold {fold}; expected 0 to {len(self._folds) - 1}, or 'all'")
        return self._folds[fold]

    def training(self, fold: Fold) -> tuple[str, ...]:
        """Training cases of a fold, unlabelled ones included."""
        held_out = set(self.validation(fold))
        return tuple(case_id for case_id in self.held_out("train") if case_id not in held_out)

    def has_grid(self, case_id: str, *, spacing: Spacing) -> bool:
        """Whether the case's grid at a spacing (mm) was derived already."""
        key = grid_key(self.cases[case_id].geometry, spacing=spacing)
        return storage.exists(f"{self._committed(case_id, key=key)}/{MANIFEST}")

    def grid(self, case_id: str, spacing: Spacing | None = None) -> Grid:
        """One case's grid, compared with its manifest: sizes, metadata, shard indices. `spacing` None is the scan's own grid.

        At a spacing padding is air, also where the scan's own grid serves as it. Nothing is asked of a bucket before the grid is read.

        Raises StoreError that names case, array and shard when it is absent, damaged, or not what the index speaks of; in a bucket that
        is when it is read.
        """
        if case_id not in self.cases:
            raise StoreError(unknown(case_id, kind=f"cases of {self.uri}", known=self.cases))
        record = self.cases[case_id]
        key = NATIVE if spacing is None else grid_key(record.geometry, spacing=spacing)
        uri, name = self._committed(case_id, key=key), f"{case_id}/{key}"
        remote = storage.is_remote(uri)
        if not remote and not Path(self.home(case_id), "grids", key).is_dir():
            raise StoreError(f"{case_id}: no grid {key!r} in {self.uri}; run `segsweep convert` again to derive it")
        values = lookup(record.atoms, target=self.table.atoms).astype(self.table.dtype)

        def demand(manifest: Manifest) -> None:
            if record.digest != (manifest.digest if key == NATIVE else manifest.source):
                raise StoreError(f"{name}: is of another conversion than index.json speaks of; {REPAIR}")

        def reader(folder: Path) -> GridReader:
            grid = folder / "grids" / NATIVE if key == NATIVE else folder
            lowest = None if spacing is None else AIR_HU
            return GridReader(grid, name=name, lookup=values, lowest=lowest, lasting=not remote)

        label = case_id if key == NATIVE else name
        if remote:
            geometry = record.geometry if spacing is None or key == NATIVE else record.geometry.resampled(spacing)
            return RemoteGrid(uri, name=label, geometry=geometry, demand=demand, opened=reader)
        demand(check_folder(uri, name=label))
        return reader(Path(uri))

    def _committed(self, case_id: str, *, key: str) -> str:
        """Address of the folder whose manifest lists a grid: the case for its own grid."""
        return self.home(case_id) if key == NATIVE else f"{self.home(case_id)}/grids/{key}"


def open_store(uri: str | Path) -> Store:
    """Open a store in a folder or at `s3://BUCKET/FOLDER`: one read. Raises StoreError when there is none, or one of another format."""
    place = storage.address(uri)
    if not storage.exists(f"{place}/{INDEX}"):
        shown = place if storage.is_remote(place) else Path(place).name
        raise StoreError(
            f"{place}: no store found (no index.json); make one with `segsweep convert DATASET RAW --store {shown}`"
        )
    with understood(f"{place}/{INDEX}", otherwise=StoreError, do="convert the dataset again, or get the store again"):
        return store_from_index(read_index(place), uri=place)


def store_from_index(index: Mapping[str, Any], *, uri: str) -> Store:
    """The store at an address as the content of its index describes it."""
    table = table_of(index)
    return Store(
        uri=uri,
        dataset=index["dataset"],
        channels=tuple(index["channels"]),
        table=table,
        cases=records_of(index, table=table),
        digest=index["digest"],
        plan_digest=index["plan"],
        given_folds=tuple(map(tuple, index["folds"])) if index["folds"] else None,
    )


def grid_key(native: Geometry, *, spacing: Spacing) -> str:
    """Folder name of the grid at a spacing: the native one where resampling would not change the shape."""
    if native.resampled(spacing).shape == native.shape:
        return NATIVE
    return "x".join(f"{mm:.4g}" for mm in spacing)
