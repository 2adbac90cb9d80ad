"""index.json, by which a store opens in one read: its labels and one record a case; what many cases have alike stands there once."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segsweep.data import storage
from segsweep.data.arrays import geometry_from_json
from segsweep.data.case import Split
from segsweep.data.geometry import Geometry
from segsweep.data.manifest import is_sealed
from segsweep.data.splits import Folds
from segsweep.data.structures import Atom, LabelSet, LabelTable, join, labels_from_json, labels_json, lookup
from segsweep.data.untrusted import demand_case
from segsweep.errors import StoreError

INDEX, FORMAT = "index.json", 3
# What of a case's own record stands in the index as it is, and what by its number among those that cases have.
_OWN = ("case_id", "split", "group", "geometry", "source_geometry", "voxels", "digest", "source_digests")
_ALIKE = ("annotated", "atoms")


@dataclass(frozen=True, kw_only=True)
class CaseRecord:
    """What the index knows of a case. `voxels` counts native voxels by atom value of the store's table, ignored ones too.

    `digest` stands for every byte of the case as it was converted.
    """

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


def make_index(
    records: Iterable[Mapping[str, Any]],
    *,
    dataset: str,
    channels: Sequence[str],
    labels: LabelSet,
    folds: Folds | None = None,
    plan: str = "",
) -> dict[str, Any]:
    """The index of cases by their own records (case.json). `plan` is the sha256 of plan.json as it was made."""
    ordered = sorted(records, key=lambda record: record["case_id"])
    text = json.dumps([[[record["case_id"], record["digest"]] for record in ordered], folds])
    alike = {name: {json.dumps(record[name]): record[name] for record in ordered} for name in _ALIKE}
    numbers = {name: {key: number for number, key in enumerate(found)} for name, found in alike.items()}
    return {
        "format": FORMAT,
        "dataset": dataset,
        "channels": list(channels),
        "labels": labels_json(labels),
        "folds": folds,
        "atoms": [list(atom) for atom in join(tuple(map(tuple, table)) for table in alike["atoms"].values())],
        "digest": hashlib.sha256(text.encode()).hexdigest()[:16],
        "plan": plan,
        "alike": {name: list(found.values()) for name, found in alike.items()},
        "cases": [
            {name: record[name] for name in _OWN} | {name: numbers[name][json.dumps(record[name])] for name in _ALIKE}
            for record in ordered
        ],
    }


def read_index(uri: str) -> Mapping[str, Any]:
    """The index of the store at an address, every byte verified. Raises StoreError when it is damaged or of another format."""
    path = f"{uri}/{INDEX}"
    text = storage.read_bytes(path)
    try:
        index = json.loads(text)
        found = index["format"]
    except (ValueError, TypeError, KeyError):
        raise StoreError(f"{path}: cannot be read; delete it and convert again, the cases are kept") from None
    if found != FORMAT:
        raise StoreError(
            f"{uri}: store format {found!r} found, this segsweep reads {FORMAT}; "
            "update segsweep, or delete index.json and convert the dataset again: the cases are kept"
        )
    if not is_sealed(text):
        raise StoreError(
            f"{path}: is damaged (its checksum does not fit); delete it and convert again, the cases are kept"
        )
    return index


def table_of(index: Mapping[str, Any]) -> LabelTable:
    """What the voxels of all cases mean."""
    return LabelTable(labels=labels_from_json(index["labels"]), atoms=_atoms(index["atoms"]))


def records_of(index: Mapping[str, Any], *, table: LabelTable) -> dict[str, CaseRecord]:
    """Its cases by their ids. Raises what an index that nobody of us made runs into."""
    annotated = [tuple(names) for names in index["alike"]["annotated"]]
    atoms = [_atoms(own) for own in index["alike"]["atoms"]]
    targets = [lookup(own, target=table.atoms).tolist() for own in atoms]
    found = {}
    for values in index["cases"]:
        demand_case(values)
        found[values["case_id"]] = CaseRecord(
            case_id=values["case_id"],
            annotated=annotated[values["annotated"]],
            split=values["split"],
            group=values["group"],
            geometry=geometry_from_json(values["geometry"]),
            source_geometry=geometry_from_json(values["source_geometry"]),
            atoms=atoms[values["atoms"]],
            voxels=dict(zip(targets[values["atoms"]], values["voxels"], strict=True)),
            digest=values["digest"],
            source_digests=tuple(values["source_digests"]),
        )
    return found


def _atoms(values: Iterable[Iterable[int]]) -> tuple[Atom, ...]:
    return tuple(tuple(atom) for atom in values)
