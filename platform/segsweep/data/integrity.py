"""The deep check of a store: every byte against its checksum, every chunk decoded, every file accounted for."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from segsweep.data import storage
from segsweep.data.arrays import GridReader
from segsweep.data.lock import LOCK
from segsweep.data.manifest import MANIFEST, REPAIR, Manifest, differences, read_manifest
from segsweep.data.store import NATIVE, Store, grid_key, open_store
from segsweep.errors import StoreError

# Told after each case: how many are done, of how many.
Progress = Callable[[int, int], None]

# What belongs into a store's folder.
_BELONGING = {"index.json", "plan.json", "quality.html", "quality.json", "cases", LOCK}


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One thing that is not as it was written. `case_id` is empty for the store's own files; `message` names array and shard.

    An "error" makes something unusable. A "note" does not: an edited plan, a file that does not belong to the store.
    """

    severity: Literal["error", "note"]
    case_id: str
    message: str


def deep_check(store: str | Path, *, progress: Progress | None = None) -> tuple[Damage, ...]:
    """Read the whole store and report all damage. Raises StoreError where there is no store at all.

    A remote store comes down case by case, and nothing of it stays. Without a usable index the cases are checked for themselves.
    """
    place = storage.address(store)
    files = storage.names(place)
    if "cases" not in files:
        raise StoreError(f"{place}: no store found (no folder cases); expected what `segsweep convert` writes")
    found: list[Damage] = []
    opened = None
    try:
        opened = open_store(place)
    except StoreError as error:
        found.append(_error("", str(error)))
    there = storage.names(f"{place}/cases")
    cases = sorted(opened.cases) if opened else [name for name in there if not name.startswith(".")]
    found += [_note("", f"{name} does not belong to the store") for name in files if name not in _BELONGING]
    found += _plan(opened) if opened else []
    found += [_note("", f"cases/{name} is not in index.json") for name in there if name not in cases]
    for done, case_id in enumerate(cases, start=1):
        with storage.mirrored(f"{place}/cases/{case_id}") as folder:
            found += _case(folder, store=opened)
        if progress:
            progress(done, len(cases))
    return tuple(found)


def _error(case_id: str, message: str) -> Damage:
    return Damage(severity="error", case_id=case_id, message=message)


def _note(case_id: str, message: str) -> Damage:
    return Damage(severity="note", case_id=case_id, message=message)


def _plan(store: Store) -> Iterator[Damage]:
    try:
        _ = store.plan
    except StoreError as error:
        yield _error("", str(error))
        return
    if hashlib.sha256(storage.read_bytes(f"{store.uri}/plan.json")).hexdigest() != store.plan_digest:
        yield _note("", "plan.json was changed since it was made; where nobody meant to, delete it and convert again")


def _case(folder: Path, *, store: Store | None) -> Iterator[Damage]:
    """A case with all its grids."""
    name = folder.name
    try:
        case = read_manifest(folder, name=name)
    except StoreError as error:
        yield _error(name, str(error))
        return
    if store and case.digest != store.cases[name].digest:
        yield _error(name, f"{name}: {MANIFEST} is of another conversion than index.json speaks of; {REPAIR}")
    keys = {path.name for path in (folder / "grids").glob("[!.]*")} | _expected_grids(name, store=store)
    derived = [folder / "grids" / key for key in sorted(keys - {NATIVE})]
    for grid in derived:
        yield from _derived(grid, case=case, case_id=name)
    yield from _files(folder, manifest=case, name=name, grid=folder / "grids" / NATIVE, case_id=name)
    yield from _extra_files(folder, manifest=case, name=name, but=derived, case_id=name)


def _expected_grids(case_id: str, *, store: Store | None) -> set[str]:
    try:
        return {grid_key(store.cases[case_id].geometry, spacing=store.plan.spacing)} if store else set()
    except StoreError:
        return set()


def _derived(folder: Path, *, case: Manifest, case_id: str) -> Iterator[Damage]:
    name = f"{case_id}/{folder.name}"
    try:
        manifest = read_manifest(folder, name=name)
    except StoreError as error:
        yield _error(case_id, str(error))
        return
    if manifest.source != case.digest:
        yield _error(case_id, f"{name}: was not derived from this conversion of the case; {REPAIR}")
    yield from _files(folder, manifest=manifest, name=name, grid=folder, case_id=case_id)
    yield from _extra_files(folder, manifest=manifest, name=name, but=[], case_id=case_id)


def _files(folder: Path, *, manifest: Manifest, name: str, grid: Path, case_id: str) -> Iterator[Damage]:
    """Files that are not as the manifest says; where all are, chunks that cannot be decoded."""
    messages = list(differences(folder, manifest=manifest, depth="deep"))
    yield from (_error(case_id, f"{name}: {message}; {REPAIR}") for message in messages)
    if messages:
        return
    reader = GridReader(grid, name=f"{case_id}/{grid.name}", lookup=np.arange(2**16, dtype=np.uint16))
    try:
        for read in (reader.read_image, reader.read_label, lambda: reader.foreground):
            read()
    except StoreError as error:
        yield _error(case_id, str(error))


def _extra_files(folder: Path, *, manifest: Manifest, name: str, but: list[Path], case_id: str) -> Iterator[Damage]:
    """Files that the manifest does not list, those in the folders `but` left out."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        listed = relative == MANIFEST or relative in manifest.files
        if not (path.is_dir() or listed or any(path.is_relative_to(other) for other in but)):
            yield _note(case_id, f"{name}: {relative} does not belong to it")
