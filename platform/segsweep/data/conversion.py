"""Raw scans to a Store: cases in parallel as Ray tasks, then the plan, the training grids and, last of all, the index.

Running the same conversion again keeps every finished case whose files did not change.
"""

import dataclasses
import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from segsweep.data import footprint, storage
from segsweep.data.case import CaseSource, lies_below
from segsweep.data.dataset import Dataset, describe
from segsweep.data.fingerprint import find_planner, make_plan, read_fingerprints
from segsweep.data.geometry import Spacing
from segsweep.data.index import INDEX, CaseRecord, make_index
from segsweep.data.joint import JointStore
from segsweep.data.lock import LOCK, locked
from segsweep.data.manifest import MANIFEST, Depth, remove_leftovers, seal
from segsweep.data.parallel import Outcome, Piece, Progress, run_all
from segsweep.data.splits import Folds, demand_fitting, read_folds
from segsweep.data.store import Store, open_store, store_from_index
from segsweep.data.structures import LabelSet, labels_json
from segsweep.errors import InputError, StoreError

Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ConversionOptions:
    """What the store holds already is verified to `depth`. `planner` is one of nnU-Net's (`fingerprint.PLANNERS`).

    `folds` is a file for `splits.read_folds`; without it the store keeps the folds that it was given before, or they are drawn.
    """

    depth: Depth = "quick"
    planner: str = "plain"
    folds: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What a conversion did. `failures` maps case id -> the sentence that says why its files are not in the store.

    `gone` are cases that the store held and the dataset has no more; their folders stay, so that they are kept if they come back.
    `num_bytes` is the size on disk of the cases with their training grids, `raw_bytes` that of their images at two bytes a voxel.
    """

    store: Store
    written: tuple[str, ...]
    kept: tuple[str, ...]
    gone: tuple[str, ...]
    failures: Mapping[str, str]
    num_bytes: int
    raw_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _Cases:
    """The cases that the new index will hold, the ones among them that were written now, and why others are not there."""

    records: Mapping[str, Record]
    written: frozenset[str]
    failures: Mapping[str, str]


def convert(
    dataset: str | Dataset,
    *,
    raw: Path,
    store: str | Path,
    options: ConversionOptions | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Convert `raw` with a dataset recipe into `store` (a folder or `s3://BUCKET/FOLDER`), plan it and derive its training grids.

    `dataset` is the recipe's name, or what `describe` made of it and `raw`.
    Bad cases are left out and named in `failures`; the others go on. A case whose files have become bad stays as it was converted
    before. What the store holds already is written again where it is damaged. A plan.json that a person has edited is kept. The index is
    written last: until then the store is what it was.

    Raises InputError when no case is usable or the folds do not fit, RecipeError for an unknown dataset, StoreError while another
    conversion is at work.
    """
    started = time.monotonic()
    chosen = options or ConversionOptions()
    find_planner(chosen.planner)
    place = storage.address(store)
    described = describe(dataset, raw=raw) if isinstance(dataset, str) else dataset
    sources = _sources(described.cases, raw=raw)
    earlier = _earlier_store(place, dataset=described.name, raw=raw)
    given = read_folds(chosen.folds) if chosen.folds else None
    if not storage.is_remote(place):
        Path(place, "cases").mkdir(parents=True, exist_ok=True)
    with locked(place):
        _remove_leftovers(place)
        cases = _build_all(sources, labels=described.labels, store=place, depth=chosen.depth, progress=progress)
        _remove_leftovers(place)  # of workers that died meanwhile
        draft = _draft(described, cases=cases, store=place, raw=raw)
        if given and chosen.folds:
            demand_fitting(given, cases=draft.candidates, name=chosen.folds.name)
        folds = given or _earlier_folds(draft, earlier=earlier)
        made = _made_plan(draft, planner=chosen.planner)
        edited = _is_edited(f"{place}/plan.json", made=made, earlier=earlier)
        spacing = draft.plan.spacing if edited else json.loads(made)["spacing"]
        derived = _derive_all(draft, spacing=spacing, depth=chosen.depth, progress=progress)
        cases = _without(cases, failures={name: found.failure for name, found in derived.items() if found.failure})
        draft = _draft(described, cases=cases, store=place, raw=raw)
        if not edited:
            storage.write_bytes(f"{place}/plan.json", made)
        index = _index(described, cases=cases, folds=folds, plan=hashlib.sha256(made).hexdigest())
        storage.write_bytes(f"{place}/{INDEX}", seal(index, indent=None))
    return Converted(
        store=open_store(place),
        written=tuple(sorted(cases.written)),
        kept=tuple(sorted(cases.records.keys() - cases.written - cases.failures.keys())),
        gone=tuple(sorted(set(earlier.cases if earlier else ()) - {source.case_id for source in sources})),
        failures=cases.failures,
        num_bytes=sum(derived[name].value for name in cases.records),
        raw_bytes=2
        * len(described.channels)
        * sum(math.prod(record.geometry.shape) for record in draft.cases.values()),
        seconds=time.monotonic() - started,
    )


def derive(store: Store, *, spacing: Spacing, progress: Progress | None = None) -> None:
    """Write the training grids at a spacing (mm) that cases of a store, or of the stores of a joint one, do not have yet.

    Trials of a sweep may want the same ones at once: the first writes them, the others wait. Raises StoreError that names a case
    whose grid cannot be made.
    """
    for part in store.parts.values() if isinstance(store, JointStore) else (store,):
        if _lacking(part, spacing=spacing):
            with locked(part.uri, waiting=True):
                needed = dataclasses.replace(part, cases=_lacking(part, spacing=spacing))
                outcomes = _derive_all(needed, spacing=spacing, depth="quick", progress=progress)
            for outcome in outcomes.values():
                if outcome.failure:
                    raise StoreError(outcome.failure)


def _lacking(store: Store, *, spacing: Spacing) -> Mapping[str, CaseRecord]:
    """The cases without a grid at a spacing (mm)."""
    # In a bucket every answer takes a while, so they are waited for together.
    with ThreadPoolExecutor(16) as pool:
        there = list(pool.map(partial(store.has_grid, spacing=spacing), store.cases))
    return {case_id: store.cases[case_id] for case_id, done in zip(store.cases, there, strict=True) if not done}


def _build_all(
    sources: Iterable[CaseSource], *, labels: LabelSet, store: str, depth: Depth, progress: Progress | None
) -> _Cases:
    pieces = [
        Piece(
            name=source.case_id,
            arguments=(source, labels, f"{store}/cases/{source.case_id}", depth),
            num_bytes=footprint.to_convert(source),
        )
        for source in sources
    ]
    outcomes = run_all(pieces, work=_build, label="cases", progress=progress)
    failures = {name: found.failure for name, found in outcomes.items() if found.failure}
    done = {name: found.value for name, found in outcomes.items() if not found.failure}
    records = {name: built["record"] for name, built in done.items()}
    for name in failures:
        record = _earlier_case(f"{store}/cases/{name}", labels=labels)
        if record:
            records[name] = record
            failures[name] += " (the store keeps its earlier conversion)"
    written = frozenset(name for name, built in done.items() if built["written"])
    return _Cases(records=records, written=written, failures=failures)


def _build(source: CaseSource, labels: LabelSet, uri: str, depth: Depth) -> dict[str, Any]:
    from segsweep.data import building  # noqa: PLC0415  50 MB of file readers, which the driver does without

    record = building.current_case(uri, source=source, labels=labels, depth=depth)
    if record is not None:
        return {"record": _indexed(record), "written": False}
    with storage.replaced(uri, last=MANIFEST) as folder:
        return {"record": _indexed(building.build_case(source, labels=labels, folder=folder)), "written": True}


def _indexed(record: Record) -> Record:
    """What the index keeps of a case: not the labels, which are the dataset's and would fill the driver's memory once a case."""
    return {name: value for name, value in record.items() if name != "labels"}


def _earlier_case(uri: str, *, labels: LabelSet) -> Record | None:
    """The record of a case whose files cannot be read now, if it is intact and its atoms mean what the labels say now."""
    from segsweep.data.building import read_case  # noqa: PLC0415

    try:
        record = read_case(uri)
    except StoreError:
        return None
    return _indexed(record) if record["labels"] == json.loads(json.dumps(labels_json(labels))) else None


def _derive_all(store: Store, *, spacing: Spacing, depth: Depth, progress: Progress | None) -> Mapping[str, Outcome]:
    """Make sure that every case has its grid at a spacing (mm); case id -> bytes on disk of the case with that grid."""
    pieces = [
        Piece(
            name=case_id,
            arguments=(store.home(case_id), tuple(spacing), depth),
            num_bytes=footprint.to_resample(record, spacing=spacing, num_channels=len(store.channels)),
        )
        for case_id, record in sorted(store.cases.items())
    ]
    return run_all(pieces, work=_derive, label="training grids", progress=progress)


def _derive(uri: str, spacing: Spacing, depth: Depth) -> int:
    from segsweep.data.building import derive_grid  # noqa: PLC0415

    return derive_grid(uri, spacing=spacing, depth=depth)


def _without(cases: _Cases, *, failures: Mapping[str, str]) -> _Cases:
    return _Cases(
        records={name: record for name, record in cases.records.items() if name not in failures},
        written=cases.written - failures.keys(),
        failures={**cases.failures, **failures},
    )


def _sources(cases: Iterable[CaseSource], *, raw: Path) -> list[CaseSource]:
    sources = sorted(cases, key=lambda source: source.case_id)
    if not sources:
        raise InputError(f"{raw}: no cases found; expected the layout that the dataset's recipe describes")
    twice = [case_id for case_id, count in Counter(source.case_id for source in sources).items() if count > 1]
    if twice:
        raise InputError(f"{raw}: case id {twice[0]!r} occurs more than once; expected distinct ids")
    return sources


def _earlier_store(store: str, *, dataset: str, raw: Path) -> Store | None:
    """The store as it is before this conversion. Raises InputError when the place holds something else, the raw scans for one."""
    cases = Path(store, "cases")
    if not storage.is_remote(store) and lies_below(raw, root=cases):
        raise InputError(
            f"{raw}: lies where the store keeps its cases, which would replace the scans; choose another --store"
        )
    if storage.exists(f"{store}/{INDEX}"):
        found = open_store(store)
        if found.dataset != dataset:
            raise InputError(f"{store}: holds dataset {found.dataset!r}, expected {dataset!r}; choose another --store")
        return found
    if storage.exists(store):
        raise InputError(f"{store}: is a file; expected a folder to write the store into")
    names = set(storage.names(store))
    if names - {"cases", LOCK} and "cases" not in names:
        raise InputError(f"{store}: is not empty and not a store; choose another --store")
    # An upload that was interrupted leaves cases without a manifest, but a bucket holds no raw scans.
    if cases.is_dir() and not all((case / MANIFEST).is_file() for case in cases.glob("[!.]*")):
        raise InputError(f"{cases}: holds other things than a store's cases; choose another --store")
    return None


def _remove_leftovers(store: str) -> None:
    """What killed conversions left; uploads leave nothing but what the next ones replace."""
    if not storage.is_remote(store):
        folder = Path(store)
        for place in (folder, folder / "cases", *(folder / "cases").glob("*/grids")):
            remove_leftovers(place)


def _draft(described: Dataset, *, cases: _Cases, store: str, raw: Path) -> Store:
    """The store as its new index will describe it. Raises InputError when no case is left."""
    if not cases.records:
        first = next(iter(cases.failures.values()))
        raise InputError(f"{raw}: none of {len(cases.failures)} cases could be converted; the first: {first}")
    return store_from_index(_index(described, cases=cases), uri=store)


def _index(described: Dataset, *, cases: _Cases, folds: Folds | None = None, plan: str = "") -> dict[str, Any]:
    records, labels = cases.records.values(), described.labels
    return make_index(
        records, dataset=described.name, channels=described.channels, labels=labels, folds=folds, plan=plan
    )


def _earlier_folds(store: Store, *, earlier: Store | None) -> Folds | None:
    """Held-out cases of each fold where somebody gave them earlier, among the cases that are left."""
    if earlier is None or earlier.given_folds is None:
        return None
    return tuple(tuple(case_id for case_id in fold if case_id in store.candidates) for fold in earlier.given_folds)


def _made_plan(store: Store, *, planner: str) -> bytes:
    """Content of plan.json by the rules, from the training cases."""
    plan = make_plan(read_fingerprints(store), channels=store.channels, labels=store.table.labels, planner=planner)
    return json.dumps(plan.to_json(), indent=1).encode()


def _is_edited(uri: str, *, made: bytes, earlier: Store | None) -> bool:
    """Whether plan.json is neither what the rules say now nor what they said when the index was written."""
    try:
        found = storage.read_bytes(uri)
    except FileNotFoundError:
        return False
    return found != made and (earlier is None or hashlib.sha256(found).hexdigest() != earlier.plan_digest)
