"""The label model: named structures that may overlap, kept in one exclusive array of atoms.

An atom is one distinct set of structures that occurs at a voxel; atom 0 is the empty set. The table atom -> structures makes the
array lossless, and turns a softmax over atoms and a sigmoid per structure into one another.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segsweep.errors import InputError

Atom = tuple[int, ...]

# Where nobody knows what a voxel is. The atom stands in a case's own atoms only, never in a table: it belongs to no structure, not even
# to background, and an array of a table's values has the first value after the table there (`LabelTable.ignored`).
IGNORE = -1
IGNORED: Atom = (IGNORE,)


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """What a dataset can label: structures in their fixed order, and the left/right pairs among them."""

    structures: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not all(isinstance(name, str) for name in self.structures):
            raise InputError(f"structures {self.structures} are not all texts; expected names")
        if len(set(self.structures)) != len(self.structures):
            raise InputError(f"structures {self.structures} hold a name twice; expected distinct names")
        for name in (name for pair in self.pairs for name in pair):
            if name not in self.structures:
                raise InputError(f"pairs name {name!r}, which is not among the structures {self.structures}")

    @property
    def mirrored(self) -> tuple[int, ...]:
        """Index of each structure's counterpart under a left/right flip (itself where it has none)."""
        partner = dict(self.pairs) | {right: left for left, right in self.pairs}
        return tuple(self.structures.index(partner.get(name, name)) for name in self.structures)


def labels_json(labels: LabelSet) -> dict[str, Any]:
    """JSON-able dictionary; `labels_from_json` takes it back."""
    return {"structures": list(labels.structures), "pairs": [list(pair) for pair in labels.pairs]}


def labels_from_json(values: Mapping[str, Any]) -> LabelSet:
    """The LabelSet that `labels_json` wrote."""
    pairs = tuple((left, right) for left, right in values["pairs"])
    return LabelSet(structures=tuple(values["structures"]), pairs=pairs)


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """The atoms of a store or a model: `atoms[i]` holds the indices of the structures at voxels of value i; `atoms[0] == ()`."""

    labels: LabelSet
    atoms: tuple[Atom, ...]

    def __post_init__(self) -> None:
        if not self.atoms or self.atoms[0] != ():
            raise InputError("an atom table starts with the empty set (background)")
        if not all(
            0 <= index < len(self.labels.structures) for atom in self.atoms for index in atom if atom != IGNORED
        ):
            raise InputError("an atom table holds a structure that the labels do not name")
        if IGNORED in self.atoms:
            raise InputError("an atom table holds the ignored atom (-1,); expected it in a case's own atoms only")

    @property
    def ignored(self) -> int:
        """Value of ignored voxels in an array of atom values: the first that is no atom's."""
        return len(self.atoms)

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        """The smallest integers that hold every atom's value and `ignored`."""
        return np.uint8 if self.ignored <= np.iinfo(np.uint8).max else np.uint16

    @property
    def membership(self) -> NDArray[np.bool_]:
        """(atoms, structures): whether the structure is present at voxels of the atom."""
        table = np.zeros((len(self.atoms), len(self.labels.structures)), dtype=bool)
        for row, atom in enumerate(self.atoms):
            table[row, list(atom)] = True
        return table

    @property
    def mirrored_atoms(self) -> tuple[int, ...] | None:
        """Each atom's value after a left/right flip; None when a flipped atom is not in the table."""
        swap = self.labels.mirrored
        index = {atom: value for value, atom in enumerate(self.atoms)}
        flipped = [tuple(sorted(swap[structure] for structure in atom)) for atom in self.atoms]
        return tuple(index[atom] for atom in flipped) if all(atom in index for atom in flipped) else None

    def values(self, structure: str) -> tuple[int, ...]:
        """Atom values whose voxels belong to the structure."""
        wanted = self.labels.structures.index(structure)
        return tuple(value for value, atom in enumerate(self.atoms) if wanted in atom)

    def within(self, structures: Collection[str]) -> NDArray[np.uint8 | np.uint16]:
        """Atom values that consist of these structures alone, ascending; background is the first."""
        allowed = {self.labels.structures.index(name) for name in structures}
        return np.asarray(
            [value for value, atom in enumerate(self.atoms) if allowed.issuperset(atom)], dtype=self.dtype
        )

    def mask(self, label: NDArray, *, structure: str) -> NDArray[np.bool_]:
        """Voxels of one structure in an array of atom values; ignored ones are not among them."""
        wanted = np.zeros(len(self.atoms) + 1, dtype=bool)
        wanted[list(self.values(structure))] = True
        return wanted[label]


@dataclass(frozen=True, kw_only=True)
class Atoms:
    """One case's voxels (z, y, x) as atom values, with the atoms that these values mean."""

    label: NDArray
    atoms: tuple[Atom, ...]


def encode(masks: Mapping[int, NDArray[np.bool_]], *, shape: tuple[int, int, int]) -> Atoms:
    """Overlapping structure masks (structure index -> mask) as one exclusive array; exact, whatever overlaps.

    The voxels of the mask of IGNORE become the atom IGNORED, whatever else covers them; it stands after all others.
    """
    label = np.zeros(shape, dtype=np.int32)
    atoms: list[Atom] = [()]
    for structure in sorted(masks.keys() - {IGNORE}):
        mask = masks[structure]
        inside = np.unique(label[mask])
        lookup = np.arange(len(atoms) + len(inside), dtype=np.int32)
        for value in inside:
            lookup[value] = len(atoms)
            atoms.append((*atoms[value], structure))
        label[mask] = lookup[label[mask]]
    if IGNORE in masks:
        label[masks[IGNORE]] = len(atoms)
        atoms.append(IGNORED)
    return _compact(label, atoms)


def join(tables: Iterable[tuple[Atom, ...]]) -> tuple[Atom, ...]:
    """The atoms of several cases as one table: the empty set, then by number of structures and their order; never IGNORED."""
    every = {atom for table in tables for atom in table if atom != IGNORED} | {()}
    return tuple(sorted(every, key=lambda atom: (len(atom), atom)))


def lookup(source: tuple[Atom, ...], *, target: tuple[Atom, ...]) -> NDArray[np.int64]:
    """For each value of the source table, its value in the target table (which must hold every source atom but IGNORED)."""
    index = {atom: value for value, atom in enumerate((*target, IGNORED))}
    return np.asarray([index[atom] for atom in source], dtype=np.int64)


def _compact(label: NDArray, atoms: list[Atom]) -> Atoms:
    used = sorted({0, *np.unique(label).tolist()})
    order = sorted(used, key=lambda value: (atoms[value] == IGNORED, len(atoms[value]), atoms[value]))
    lookup_table = np.zeros(len(atoms), dtype=np.uint8 if len(used) <= 256 else np.uint16)
    lookup_table[order] = np.arange(len(order))
    return Atoms(label=lookup_table[label], atoms=tuple(atoms[value] for value in order))
