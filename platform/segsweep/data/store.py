"""A Store is a dataset converted once: one Zarr group a case, an index that opens in one read, and a plan.

    index.json                              what the store holds: labels, atoms, one record a case, digest
    plan.json                               spacing, patch size, normalisation: a person may edit it
    cases/ID/case.json                      the case's own record; the index is made of these
    cases/ID/grids/native/                  the scan as it came (canonical orientation), losslessly
    cases/ID/grids/SPACING/                 derived once per training spacing
    cases/ID/**/manifest.json               sizes and sha256 of every file beside and below it

Nothing is visible before it is complete: a case or grid is written under a hidden name, flushed, and renamed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segsweep.data.arrays import GridReader, geometry_from_json
from segsweep.data.case import Split
from segsweep.data.geometry import Geometry, Spacing
from segsweep.data.planning import Plan, plan_from_json
from segsweep.data.splits import folds
from segsweep.data.structures import Atom, LabelTable, labels_from_json, lookup
from segsweep.errors import StoreError, unknown
from segsweep.run import Fold

FORMAT = 1
NATIVE = "native"


@dataclass(frozen=True, kw_only=True)
class CaseRecord:
    """What the index knows of a case. `voxels` counts native voxels by atom value of the store's table."""

    case_id: str
    annotated: tuple[str, ...]
    split: Split
    group: str
    geometry: Geometry
    source_geometry: Geometry
    atoms: tuple[Atom, ...]
    voxels: Mapping[int, int]
    digest: str
    source_digests: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Store:
    """An opened store. `digest` changes with any voxel, label or split."""

    uri: str
    dataset: str
    channels: tuple[str, ...]
    table: LabelTable
    cases: Mapping[str, CaseRecord]
    digest: str

    @property
    def folder(self) -> Path:
        """The store's folder."""
        return Path(self.uri)

    @cached_property
    def plan(self) -> Plan:
        """The training plan. Raises StoreError when plan.json is absent or was edited into something unreadable."""
        path = self.folder / "plan.json"
        try:
            return plan_from_json(json.loads(path.read_text()))
        except FileNotFoundError:
            raise StoreError(f"{path}: not found; convert the dataset again to plan it") from None
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(f"{path}: cannot be read as a plan ({error}); delete it and convert again") from None

    def held_out(self, split: Split) -> tuple[str, ...]:
        """Cases of a split, sorted."""
        return tuple(sorted(case_id for case_id, record in self.cases.items() if record.split == split))

    @cached_property
    def _folds(self) -> tuple[tuple[str, ...], ...]:
        train = [self.cases[case_id] for case_id in self.held_out("train")]
        return folds({record.case_id: record.group for record in train if record.annotated})

    def validation(self, fold: Fold) -> tuple[str, ...]:
        """Annotated training cases that a fold holds out; none for "all"."""
        return () if fold == "all" else self._folds[fold]

    def training(self, fold: Fold) -> tuple[str, ...]:
        """Training cases of a fold, unlabelled ones included."""
        held_out = set(self.validation(fold))
        return tuple(case_id for case_id in self.held_out("train") if case_id not in held_out)

    def grid(self, case_id: str, spacing: Spacing | None = None) -> GridReader:
        """One case's grid, sizes checked against its manifest. `spacing` None is the scan's own grid.

        Raises StoreError that names case and grid when it is absent or a file is missing or cut.
        """
        if case_id not in self.cases:
            raise StoreError(unknown(case_id, kind=f"cases of {self.uri}", known=self.cases))
        record = self.cases[case_id]
        key = NATIVE if spacing is None else grid_key(record.geometry, spacing=spacing)
        folder = self.folder / "cases" / case_id / "grids" / key
        if not folder.is_dir():
            raise StoreError(f"{case_id}: no grid {key!r} in {self.uri}; run `segsweep convert` again to derive it")
        check_sizes(folder, name=f"{case_id}/{key}")
        values = lookup(record.atoms, target=self.table.atoms).astype(
            np.uint8 if len(self.table.atoms) <= 256 else np.uint16
        )
        return GridReader(folder, name=f"{case_id}/{key}", lookup=values)


def open_store(uri: str | Path) -> Store:
    """Open a store: one read. Raises StoreError when there is none, or one of another format."""
    folder = Path(uri).expanduser().resolve()
    path = folder / "index.json"
    if not path.is_file():
        raise StoreError(
            f"{folder}: no store found (no index.json); make one with `segsweep convert DATASET RAW --store {folder.name}`"
        )
    try:
        index = json.loads(path.read_text())
    except ValueError as error:
        raise StoreError(f"{path}: cannot be read ({error}); delete it and convert again, the cases are kept") from None
    if index.get("format") != FORMAT:
        raise StoreError(
            f"{folder}: store format {index.get('format')!r} found, this segsweep reads {FORMAT}; "
            "update segsweep or convert the dataset again"
        )
    labels = labels_from_json(index["labels"])
    table = LabelTable(labels=labels, atoms=tuple(tuple(atom) for atom in index["atoms"]))
    return Store(
        uri=str(folder),
        dataset=index["dataset"],
        channels=tuple(index["channels"]),
        table=table,
        cases={case["case_id"]: _record(case, table=table) for case in index["cases"]},
        digest=index["digest"],
    )


def grid_key(native: Geometry, *, spacing: Spacing) -> str:
    """Folder name of the grid at a spacing: the native one where resampling would not change the shape."""
    if native.resampled(spacing).shape == native.shape:
        return NATIVE
    return "x".join(f"{mm:.4g}" for mm in spacing)


@contextmanager
def committed(folder: Path) -> Iterator[Path]:
    """A hidden folder to write into; on success it gets a manifest, is flushed to disk and takes the place of `folder`."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        _write_manifest(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    _flush(folder.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that a reader sees the old content or the new, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as stream:
        json.dump(value, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
    _flush(path.parent)


def check_sizes(folder: Path, *, name: str) -> None:
    """Compare every file of a manifest by size. Raises StoreError that names the file."""
    for relative, expected in _manifest(folder, name=name).items():
        path = folder / relative
        found = path.stat().st_size if path.is_file() else None
        if found != expected["bytes"]:
            what = "is missing" if found is None else f"has {found} bytes"
            raise StoreError(
                f"{name}: file {relative} {what}, expected {expected['bytes']} bytes; convert the case again"
            )


def folder_digest(folder: Path) -> str:
    """Sum over a committed folder's content, whatever order it was written in."""
    return hashlib.sha256(json.dumps(_manifest(folder, name=folder.name), sort_keys=True).encode()).hexdigest()


def _record(values: Mapping[str, Any], *, table: LabelTable) -> CaseRecord:
    atoms = tuple(tuple(atom) for atom in values["atoms"])
    target = lookup(atoms, target=table.atoms)
    return CaseRecord(
        case_id=values["case_id"],
        annotated=tuple(values["annotated"]),
        split=values["split"],
        group=values["group"],
        geometry=geometry_from_json(values["geometry"]),
        source_geometry=geometry_from_json(values["source_geometry"]),
        atoms=atoms,
        voxels={int(target[local]): count for local, count in enumerate(values["voxels"])},
        digest=values["digest"],
        source_digests=tuple(values["source_digests"]),
    )


def _manifest(folder: Path, *, name: str) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        return json.loads(path.read_text())["files"]
    except (OSError, ValueError, KeyError):
        raise StoreError(f"{name}: no readable manifest.json; convert the case again") from None


def _write_manifest(folder: Path) -> None:
    """List the files that no manifest further down lists; flush everything."""
    nested = [path.parent for path in folder.rglob("manifest.json")]
    files: dict[str, NDArray | dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            _flush(path)
        elif not any(path.is_relative_to(other) for other in nested):
            with path.open("rb+") as stream:
                os.fsync(stream.fileno())
            files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    write_json(folder / "manifest.json", {"files": files})


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
