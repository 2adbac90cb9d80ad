"""Raw scans to a Store: cases in parallel as Ray tasks, then the plan, the training grids and the index.

Running the same conversion again keeps every finished case whose files did not change.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray

from segsweep.data.building import build_case, derive_grid, is_current, read_case
from segsweep.data.case import CaseSource
from segsweep.data.dataset import describe
from segsweep.data.fingerprint import CaseFingerprint, make_plan
from segsweep.data.geometry import Spacing
from segsweep.data.store import FORMAT, Store, open_store, write_json
from segsweep.data.structures import LabelSet, join, labels_json
from segsweep.errors import InputError, SegsweepError

# Told after each finished piece of work: what it is called, how many are done, of how many.
Progress = Callable[[str, int, int], None]

_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What a conversion did. `failures` maps case id -> the sentence that says why it is not in the store."""

    store: Store
    written: tuple[str, ...]
    kept: tuple[str, ...]
    failures: Mapping[str, str]


def convert(dataset: str, *, raw: Path, store: Path, progress: Progress | None = None) -> Converted:
    """Convert `raw` with a dataset recipe into `store`, plan it and derive its training grids.

    Bad cases are left out and named in `failures`; the others go on. Raises InputError when no case is usable, RecipeError for an
    unknown dataset, StoreError when the store belongs to another dataset. A plan.json that a person has edited is kept.
    """
    described = describe(dataset, raw=raw)
    sources = _sources(described.cases, raw=raw)
    _demand_same_dataset(store, dataset=dataset)
    cases = store / "cases"
    cases.mkdir(parents=True, exist_ok=True)
    outcomes = dict(
        _in_parallel(sources, work=_build, fixed=(described.labels, str(cases)), label="cases", progress=progress)
    )
    by_id = {source.case_id: outcomes[index] for index, source in enumerate(sources)}
    failures = {case_id: text for case_id, (kind, text) in by_id.items() if kind == "failed"}
    good = [source.case_id for source in sources if source.case_id not in failures]
    if not good:
        raise InputError(
            f"{raw}: none of {len(sources)} cases could be converted; the first: {next(iter(failures.values()))}"
        )
    records = [read_case(cases / case_id) for case_id in good]
    _write_index(store, dataset=dataset, channels=described.channels, labels=described.labels, records=records)
    opened = open_store(store)
    _write_plan(opened)
    opened = open_store(store)
    derive(opened, spacing=opened.plan.spacing, progress=progress)
    return Converted(
        store=opened,
        written=tuple(case_id for case_id in good if by_id[case_id][0] == "written"),
        kept=tuple(case_id for case_id in good if by_id[case_id][0] == "kept"),
        failures=failures,
    )


def derive(store: Store, *, spacing: Spacing, progress: Progress | None = None) -> None:
    """Make sure that every case has its grid at a spacing (mm). Raises StoreError that names a damaged case."""
    folders = [str(store.folder / "cases" / case_id) for case_id in sorted(store.cases)]
    for _, outcome in _in_parallel(folders, work=_derive, fixed=(spacing,), label="training grids", progress=progress):
        if outcome is not None:
            raise InputError(outcome)


def _build(source: CaseSource, labels: LabelSet, cases: str) -> tuple[str, str]:
    folder = Path(cases) / source.case_id
    try:
        if is_current(folder, source=source, labels=labels):
            return ("kept", "")
        build_case(source, labels=labels, folder=folder)
    except SegsweepError as error:
        return ("failed", str(error))
    except OSError as error:
        return ("failed", f"case {source.case_id}: {error.strerror} ({Path(error.filename or '').name})")
    return ("written", "")


def _derive(folder: str, spacing: Spacing) -> str | None:
    try:
        derive_grid(Path(folder), spacing=spacing)
    except SegsweepError as error:
        return str(error)
    return None


def _in_parallel(
    items: Sequence[_Item], *, work: Callable[..., Any], fixed: tuple[Any, ...], label: str, progress: Progress | None
) -> Iterator[tuple[int, Any]]:
    """(index, result) of each item as it ends; few tasks are in flight, so memory does not grow with the dataset."""
    task: Any = ray.remote(num_cpus=1, max_retries=2)(work)
    waiting = iter(enumerate(items))
    running: dict[ray.ObjectRef, int] = {}
    in_flight = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
    done = 0
    while True:
        for index, item in _take(waiting, count=in_flight - len(running)):
            running[task.remote(item, *fixed)] = index
        if not running:
            return
        finished, _ = ray.wait(list(running), num_returns=1)
        done += 1
        if progress:
            progress(label, done, len(items))
        yield running.pop(finished[0]), ray.get(finished[0])


def _take(iterator: Iterator[tuple[int, _Item]], *, count: int) -> list[tuple[int, _Item]]:
    return [pair for _, pair in zip(range(count), iterator, strict=False)]


def _sources(cases: Iterable[CaseSource], *, raw: Path) -> list[CaseSource]:
    sources = sorted(cases, key=lambda source: source.case_id)
    if not sources:
        raise InputError(f"{raw}: no cases found; expected the layout that the dataset's recipe describes")
    twice = [case_id for case_id, count in Counter(source.case_id for source in sources).items() if count > 1]
    if twice:
        raise InputError(f"{raw}: case id {twice[0]!r} occurs more than once; expected distinct ids")
    return sources


def _demand_same_dataset(store: Path, *, dataset: str) -> None:
    if (store / "index.json").is_file():
        found = open_store(store).dataset
        if found != dataset:
            raise InputError(f"{store}: holds dataset {found!r}, expected {dataset!r}; choose another --store")
    elif store.exists() and not store.is_dir():
        raise InputError(f"{store}: is a file; expected a folder to write the store into")
    elif store.is_dir() and any(store.iterdir()) and not (store / "cases").is_dir():
        raise InputError(f"{store}: is not empty and not a store; choose another --store")


def _write_index(
    store: Path, *, dataset: str, channels: tuple[str, ...], labels: LabelSet, records: list[dict[str, Any]]
) -> None:
    atoms = join(tuple(tuple(atom) for atom in record["atoms"]) for record in records)
    text = json.dumps([[record["case_id"], record["digest"]] for record in records])
    index = {
        "format": FORMAT,
        "dataset": dataset,
        "channels": list(channels),
        "labels": labels_json(labels),
        "atoms": [list(atom) for atom in atoms],
        "digest": hashlib.sha256(text.encode()).hexdigest()[:16],
        "cases": [{name: value for name, value in record.items() if name != "labels"} for record in records],
    }
    write_json(store / "index.json", index)


def _write_plan(store: Store) -> None:
    """Plan from the training cases; a plan that was edited since it was made stays."""
    path, made = store.folder / "plan.json", store.folder / ".plan-as-made.json"
    if path.exists() and (not made.exists() or path.read_text() != made.read_text()):
        return
    train = [store.cases[case_id] for case_id in store.held_out("train")] or list(store.cases.values())
    plan = make_plan(
        [
            CaseFingerprint(
                case_id=record.case_id,
                shape=record.geometry.shape,
                spacing=record.geometry.spacing,
                intensities=np.load(store.folder / "cases" / record.case_id / "intensities.npy", allow_pickle=False),
                annotated=record.annotated,
                atoms=record.atoms,
            )
            for record in train
        ],
        channels=store.channels,
        labels=store.table.labels,
    )
    write_json(path, plan.to_json())
    write_json(made, plan.to_json())
