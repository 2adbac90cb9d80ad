"""Several stores as one: their cases side by side, each annotated in its own dataset's structures alone (MultiTalent).

Labels of different datasets are never merged: the livers of two datasets are the structures `a/liver` and `b/liver`, with atoms of
their own. Nothing is copied: voxels are read from the stores, in the joint table's values.
"""

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from segsweep.data import storage
from segsweep.data.case import CASE_ID
from segsweep.data.fingerprint import CaseFingerprint, are_ct, make_plan, normalisation_of, read_fingerprints
from segsweep.data.geometry import Spacing
from segsweep.data.index import CaseRecord
from segsweep.data.planning import Normalisation, Plan
from segsweep.data.remote import Grid
from segsweep.data.store import Store, open_store
from segsweep.data.structures import IGNORED, Atom, LabelSet, LabelTable, join, lookup
from segsweep.errors import StoreError, unknown
from segsweep.run import Fold

# Names of stores within a joint one: no dot and no slash, which stand behind them in the names of cases and structures.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
# A joint store's dataset is part of the names of models, runs and folders.
LONGEST_TITLE = 64


@dataclass(frozen=True, kw_only=True)
class JointStore(Store):
    """Stores as one, with cases `name.case`. `parts` holds each by its name: its own case ids, the joint structures and atoms.

    `channels` are those of the part that has most of them.
    """

    parts: Mapping[str, Store]

    @cached_property
    def plan(self) -> Plan:
        """Planned from the training cases of all stores together; no file holds it, so a run's own parameters alone change it.

        Its normalisation is that of the part with most channels; `normalisation` has each part's.
        """
        cases = [found for found_in_part in self._fingerprints.values() for found in found_in_part]
        widest = next(name for name, part in self.parts.items() if part.channels == self.channels)
        plan = make_plan(cases, channels=(), labels=self.table.labels)
        return dataclasses.replace(plan, normalisation=self.normalisation[widest])

    @property
    def alike(self) -> bool:
        """Whether the scans of all parts have as many channels of the same kinds (CT or not), and so one normalisation."""
        return len({are_ct(part.channels) for part in self.parts.values()}) == 1

    @cached_property
    def normalisation(self) -> Mapping[str, tuple[Normalisation, ...]]:
        """Of each part, one rule a channel, from the training cases of all parts whose channels are of the same kinds (CT or not)."""
        alike: dict[tuple[bool, ...], list[CaseFingerprint]] = {}
        for name, part in self.parts.items():
            alike.setdefault(are_ct(part.channels), []).extend(self._fingerprints[name])
        return {
            name: normalisation_of(alike[are_ct(part.channels)], channels=part.channels)
            for name, part in self.parts.items()
        }

    @cached_property
    def _fingerprints(self) -> Mapping[str, list[CaseFingerprint]]:
        return {name: read_fingerprints(part) for name, part in self.parts.items()}

    def structures(self, case_id: str) -> tuple[str, ...]:
        """What the case's own dataset knows, annotated in the case or not."""
        name, _, _ = case_id.partition(".")
        return tuple(one for one in self.table.labels.structures if one.startswith(f"{name}/"))

    @property
    def num_folds(self) -> int:
        """As many as each of the stores has."""
        return min(part.num_folds for part in self.parts.values())

    def validation(self, fold: Fold) -> tuple[str, ...]:
        """What the stores' own folds hold out."""
        held_out = (
            _joint_id(case_id, name=name) for name, part in self.parts.items() for case_id in part.validation(fold)
        )
        return tuple(sorted(held_out))

    def grid(self, case_id: str, spacing: Spacing | None = None) -> Grid:
        """One case's grid, as its own store checks it, in the joint table's values."""
        if case_id not in self.cases:
            raise StoreError(unknown(case_id, kind=f"cases of {self.uri}", known=self.cases))
        name, _, own_id = case_id.partition(".")
        return self.parts[name].grid(own_id, spacing)


def open_stores(uri: str | Path) -> Store:
    """Open a store, or several as one: `stores/a,stores/b`. Raises StoreError for stores that cannot be opened or do not fit together."""
    addresses = _addresses(uri)
    return open_store(uri) if len(addresses) == 1 else _joined([open_store(address) for address in addresses])


def is_store(uri: str | Path) -> bool:
    """Whether an address is that of a store, or of several joined by commas. In a bucket nothing but stores is looked for."""
    places = [storage.address(given) for given in _addresses(uri)]
    return all(storage.is_remote(place) or storage.exists(f"{place}/index.json") for place in places)


def _addresses(uri: str | Path) -> list[str]:
    """The addresses that commas join; a folder that exists under the whole name is one."""
    whole = str(uri)
    return [whole] if Path(whole).exists() else [address.strip() for address in whole.split(",")]


def _joined(stores: Sequence[Store]) -> JointStore:
    names = _names(stores)
    labels = _labels(stores, names=names)
    offsets = [sum(len(store.table.labels.structures) for store in stores[:index]) for index in range(len(stores))]
    atoms = join(_moved(store.table.atoms, by=offset) for store, offset in zip(stores, offsets, strict=True))
    table = LabelTable(labels=labels, atoms=atoms)
    parts = {
        name: _part(store, name=name, offset=offset, table=table)
        for name, store, offset in zip(names, stores, offsets, strict=True)
    }
    text = json.dumps([[name, part.digest] for name, part in parts.items()])
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    title = "+".join(names)
    return JointStore(
        uri=",".join(store.uri for store in stores),
        dataset=title if len(title) <= LONGEST_TITLE else f"{len(names)}-datasets-{digest[:8]}",
        channels=max((store.channels for store in stores), key=len),
        table=table,
        cases={
            _joint_id(case_id, name=name): _joint_record(part.cases[case_id], name=name)
            for name, part in parts.items()
            for case_id in part.cases
        },
        digest=digest,
        plan_digest="",
        parts=parts,
    )


def _names(stores: Sequence[Store]) -> list[str]:
    """The stores' datasets; their folders' names where two are of one dataset."""
    names = [store.dataset for store in stores]
    if len(set(names)) < len(names):
        names = [Path(store.uri).name for store in stores]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise StoreError(
            f"two of the joined stores are named {twice[0]!r}; expected stores of different datasets or folders"
        )
    for name in names:
        if not NAME.fullmatch(name):
            raise StoreError(
                f"a store named {name!r} cannot be joined; expected letters, digits, '_' and '-'; rename its folder"
            )
    return names


def _labels(stores: Sequence[Store], *, names: Sequence[str]) -> LabelSet:
    named = list(zip(names, (store.table.labels for store in stores), strict=True))
    return LabelSet(
        structures=tuple(f"{name}/{structure}" for name, labels in named for structure in labels.structures),
        pairs=tuple((f"{name}/{left}", f"{name}/{right}") for name, labels in named for left, right in labels.pairs),
    )


def _moved(atoms: Sequence[Atom], *, by: int) -> tuple[Atom, ...]:
    return tuple(atom if atom == IGNORED else tuple(index + by for index in atom) for atom in atoms)


def _part(store: Store, *, name: str, offset: int, table: LabelTable) -> Store:
    """The store with everything that speaks of structures or atoms in the joint table."""
    values = lookup((*_moved(store.table.atoms, by=offset), IGNORED), target=table.atoms)
    cases = {
        case_id: dataclasses.replace(
            record,
            annotated=tuple(f"{name}/{structure}" for structure in record.annotated),
            atoms=_moved(record.atoms, by=offset),
            voxels={int(values[value]): count for value, count in record.voxels.items()},
        )
        for case_id, record in store.cases.items()
    }
    return dataclasses.replace(store, table=table, cases=cases)


def _joint_record(record: CaseRecord, *, name: str) -> CaseRecord:
    group = f"{name}.{record.group}" if record.group else ""
    return dataclasses.replace(record, case_id=_joint_id(record.case_id, name=name), group=group)


def _joint_id(case_id: str, *, name: str) -> str:
    joint = f"{name}.{case_id}"
    if not CASE_ID.fullmatch(joint):
        raise StoreError(
            f"case {case_id}: its joint name {joint!r} is too long; expected at most 128 letters; shorten the id"
        )
    return joint
