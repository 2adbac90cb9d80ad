"""Label maps to score and to score against: a folder of predictions or references, or a store; all in canonical orientation."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segsweep.data.geometry import Geometry, Reorientation, Spacing
from segsweep.data.placement import same_place
from segsweep.data.readers import is_scan, is_stack, open_stack, read_labels, stem
from segsweep.data.store import Store
from segsweep.data.structures import encode
from segsweep.errors import InputError, unknown
from segsweep.evaluation.masks import MaskFiles, Submission
from segsweep.evaluation.surface import Box, union

Values = Mapping[str, tuple[int, ...]]
IN_PLACE = Reorientation(axes=(0, 1, 2), flips=(False, False, False))


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """One case's label map (z, y, x) in canonical orientation, and the values that each structure consists of.

    `turn` leads to that orientation from the file's own order of axes, in which organisers count slices. `largest` is the largest value
    that the case's files hold. Where a reference has the value `ignored`, nothing is scored.
    """

    case: str
    label: NDArray
    geometry: Geometry
    values: Values
    largest: int
    turn: Reorientation = IN_PLACE
    ignored: int | None = None

    @property
    def file_spacing(self) -> Spacing:
        """mm in the file's own order of axes, that of `turn.invert(mask)`."""
        z, y, x = (self.geometry.spacing[self.turn.axes.index(axis)] for axis in range(3))
        return z, y, x

    def mask(self, structure: str, *, box: Box | None = None) -> NDArray[np.bool_]:
        """Voxels of a structure, of the whole map or of a box; none for a structure that is not among `values`."""
        label = self.label if box is None else self.label[box]
        mask = np.zeros(label.shape, dtype=bool)
        for value in self.values.get(structure, ()):
            mask |= label == value
        return mask

    def boxes(self) -> dict[str, Box]:
        """Bounding box of every structure that is present."""
        found = ndimage.find_objects(self.label)
        within = {value: box for value, box in enumerate(found, start=1) if box is not None}
        boxes = {name: union([within[v] for v in values if v in within]) for name, values in self.values.items()}
        return {name: box for name, box in boxes.items() if box is not None}


class Source(Protocol):
    """Something that holds label maps of cases."""

    @property
    def cases(self) -> tuple[str, ...]: ...

    def read(self, case: str) -> Labelled: ...

    def image(self, case: str) -> NDArray | None: ...


@dataclass(frozen=True, kw_only=True)
class MapFolder:
    """A folder with one label map a case; `values` None takes a map's own ids as names."""

    files: Mapping[str, Path]
    values: Values | None

    @property
    def cases(self) -> tuple[str, ...]:
        return tuple(sorted(self.files))

    def read(self, case: str) -> Labelled:
        scan = read_labels(self.files[case])
        values = self.values
        if values is None:
            values = {str(value): (int(value),) for value in np.unique(scan.voxels) if value}
        turn = scan.geometry.reorientation
        return Labelled(
            case=case,
            label=turn.apply(scan.voxels),
            geometry=scan.geometry.canonical(),
            values=values,
            largest=int(scan.voxels.max()),
            turn=turn,
        )

    def image(self, case: str) -> None:
        """No images lie beside label maps."""


@dataclass(frozen=True, kw_only=True)
class MaskFolders:
    """A folder with one sub-folder a case and in it one mask file a structure (voxels above 0); structures may overlap."""

    files: Mapping[str, Mapping[str, Path]]

    @property
    def cases(self) -> tuple[str, ...]:
        return tuple(sorted(self.files))

    def read(self, case: str) -> Labelled:
        return _encoded(MaskFiles(case=case, files=self.files[case]), case=case)

    def image(self, case: str) -> None:
        """No images lie beside masks."""


@dataclass(frozen=True, kw_only=True)
class Submissions:
    """A folder with one of SegRap2023's 4D files a case: 45 organs or 2 tumours in the official order."""

    files: Mapping[str, Path]

    @property
    def cases(self) -> tuple[str, ...]:
        return tuple(sorted(self.files))

    def read(self, case: str) -> Labelled:
        path = self.files[case]
        if not is_stack(path):
            raise InputError(
                f"{path.name}: is no 4D .mha as others of the folder are; expected one kind; export it again"
            )
        return _encoded(Submission(open_stack(path)), case=case)

    def image(self, case: str) -> None:
        """No images lie beside masks."""


@dataclass(frozen=True, kw_only=True)
class StoreLabels:
    """A store's own labels on the scans' native grids; only structures that were annotated in the case count."""

    store: Store

    @property
    def cases(self) -> tuple[str, ...]:
        return tuple(sorted(self.store.cases))

    def read(self, case: str) -> Labelled:
        grid = self.store.grid(case)
        values = {name: self.store.table.values(name) for name in self.store.cases[case].annotated}
        source = self.store.cases[case].source_geometry
        label = grid.read_label(_whole(grid.shape))
        return Labelled(
            case=case,
            label=label,
            geometry=source.canonical(),
            values=values,
            largest=int(label.max()),
            turn=source.reorientation,
            ignored=self.store.table.ignored,
        )

    def image(self, case: str) -> NDArray:
        """The first channel in HU (z, y, x)."""
        grid = self.store.grid(case)
        return grid.read_image(_whole(grid.shape))[0]


def open_reference(reference: Store | Path, *, labels: Path | None) -> Source:
    """A store, a store's folder, or a folder of label maps or masks. Raises InputError when there is nothing to read."""
    if isinstance(reference, Store):
        return StoreLabels(store=reference)
    return open_folder(reference, labels=labels)


def open_folder(folder: Path, *, labels: Path | None = None) -> MapFolder | MaskFolders | Submissions:
    """Label maps `<case>.nii.gz` (names from `labels` or the folder's own labels.json), masks `<case>/<structure>.nii.gz`, or 4D files
    `<case>.mha` as SegRap2023 takes them."""
    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder; expected one with label maps or with a sub-folder of masks a case")
    own = folder / "labels.json"
    table = labels or (own if own.is_file() else None)
    maps = _by_name(folder)
    if any(is_stack(path) for path in maps.values()):
        return Submissions(files=maps)
    if maps:
        return MapFolder(files=maps, values=read_values(table) if table else None)
    shown = (child for child in sorted(folder.iterdir()) if child.is_dir() and not child.name.startswith("."))
    masks = {child.name: _by_name(child) for child in shown}
    masks = {case: files for case, files in masks.items() if files}
    if not masks:
        raise InputError(
            f"{folder}: holds no label map; expected <case>.nii.gz files or <case>/<structure>.nii.gz masks"
        )
    return MaskFolders(files=masks)


def read_values(path: Path) -> Values:
    """labels.json: structure name -> label value or list of values. Raises InputError that names file and structure."""
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read as JSON ({error}); expected {{structure: value or [values]}}"
        ) from None
    if not isinstance(table, dict) or not table:
        raise InputError(f"{path}: holds no structure; expected {{structure: value or [values]}}")
    return {str(name): _values(name, given=given, path=path) for name, given in table.items() if given != 0}


def read_case(source: Source, *, case: str, like: Labelled) -> Labelled:
    """A case's predicted label map, without what the reference ignores.

    Raises InputError that names the case when it does not lie on the reference's grid, in whatever order of axes.
    """
    found = source.read(case)
    if not same_place(found.geometry, other=like.geometry):
        raise InputError(
            f"{case}: the prediction lies on a grid of {found.geometry.shape} at {_rounded(found.geometry.spacing)} mm, the reference "
            f"on {like.geometry.shape} at {_rounded(like.geometry.spacing)} mm, {found.geometry.corner_distance(like.geometry):.2f} mm "
            "apart; expected the scan's own grid; export the prediction on it"
        )
    if named_by_ids(source):
        found = dataclasses.replace(found, values={**like.values, **found.values})
    if like.ignored is None:
        return found
    return dataclasses.replace(
        found, label=np.where(like.label == like.ignored, found.label.dtype.type(0), found.label)
    )


def named_by_ids(source: Source) -> bool:
    """Whether the ids of its label maps are the structures' names, so that any may occur in any case."""
    return isinstance(source, MapFolder) and source.values is None


def require(case: str, *, source: Source) -> None:
    """Raises InputError with the nearest names when the reference lacks the case."""
    if case not in source.cases:
        raise InputError(unknown(case, kind="cases of the reference", known=source.cases))


def _encoded(masks: MaskFiles | Submission, *, case: str) -> Labelled:
    atoms = encode(masks, shape=masks.geometry.canonical().shape)
    values = {
        name: tuple(value for value, atom in enumerate(atoms.atoms) if i in atom) for i, name in enumerate(masks.names)
    }
    return Labelled(
        case=case,
        label=atoms.label,
        geometry=masks.geometry.canonical(),
        values=values,
        largest=masks.largest,
        turn=masks.geometry.reorientation,
    )


def _values(name: str, *, given: object, path: Path) -> tuple[int, ...]:
    values: list[Any] = given if isinstance(given, list) else [given]
    if not all(isinstance(value, int) and not isinstance(value, bool) and value > 0 for value in values):
        raise InputError(f"{path}: {name!r} has {given!r}; expected a whole number above 0 or a list of them")
    return tuple(values)


def _by_name(folder: Path) -> dict[str, Path]:
    """Label maps of a folder by their names without suffix; hidden files are somebody's unfinished ones."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not is_scan(path) or path.name.startswith("."):
            continue
        other = found.setdefault(stem(path), path)
        if other != path:
            raise InputError(f"{folder}: holds {other.name} and {path.name}; expected one file a name; remove one")
    return found


def _whole(shape: tuple[int, int, int]) -> Box:
    return slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])


def _rounded(spacing: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in spacing)
