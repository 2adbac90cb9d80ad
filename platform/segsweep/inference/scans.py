"""Where scans to segment come from: a file, a folder of files, or the cases of a store; all are read into one value."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast, get_args

import numpy as np
from numpy.typing import NDArray

from segsweep.data.case import CASE_ID, Split
from segsweep.data.geometry import Geometry
from segsweep.data.joint import JointStore, is_store, open_stores
from segsweep.data.readers import SUFFIXES, Reference, is_scan, read_scan, stem
from segsweep.data.store import Store
from segsweep.errors import InputError, unknown

_CHANNEL = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True, kw_only=True)
class LoadedScan:
    """A scan in canonical orientation, (c, z, y, x) in the file's units, its canonical grid, and the grid of its file.

    `structures` are those to look for (all that the model knows by default); `reference` the UIDs of a DICOM series.
    """

    image: NDArray
    geometry: Geometry
    source: Geometry
    structures: tuple[str, ...] = ()
    reference: Reference | None = None


class Segmentable(Protocol):
    """A case that can be read; nothing is read before `load`."""

    @property
    def case_id(self) -> str: ...
    def load(self) -> LoadedScan: ...


@dataclass(frozen=True, kw_only=True)
class ScanCase:
    """A case in files, one a channel, in the model's order of channels."""

    case_id: str
    images: tuple[Path, ...]

    def load(self) -> LoadedScan:
        """All channels, on one grid. Raises InputError that names the file."""
        scans = [read_scan(path) for path in self.images]
        source = scans[0].geometry
        canonical = source.canonical()
        for path, scan in zip(self.images, scans, strict=True):
            if not scan.geometry.canonical().same_grid(canonical):
                raise InputError(
                    f"{self.case_id}: {path.name} lies on another grid ({scan.geometry}) than {self.images[0].name} ({source}); "
                    "expected one grid for all channels; resample the channels onto one"
                )
        image = np.stack([scan.geometry.reorientation.apply(scan.voxels) for scan in scans])
        return LoadedScan(image=image, geometry=canonical, source=source)


@dataclass(frozen=True, kw_only=True)
class StoreCase:
    """A case of a store, on its native grid. Of a joint store, only structures of the case's own dataset are looked for."""

    case_id: str
    store: Store

    def load(self) -> LoadedScan:
        """The native scan. Raises StoreError when it is damaged."""
        grid = self.store.grid(self.case_id)
        z, y, x = grid.shape
        image = grid.read_image((slice(0, z), slice(0, y), slice(0, x)))
        source = self.store.cases[self.case_id].source_geometry
        structures = self.store.structures(self.case_id) if isinstance(self.store, JointStore) else ()
        return LoadedScan(image=image, geometry=grid.geometry, source=source, structures=structures)


def find_scans(path: str | Path, *, channels: Sequence[str], split: str = "validation") -> Sequence[Segmentable]:
    """The cases at `path`: a scan file, a folder of scans, or a store (then those of `split`), sorted by id."""
    if is_store(path):
        return find_in_store(open_stores(path), channels=channels, split=split)
    return find_files(Path(path), channels=channels)


def find_in_store(store: Store, *, channels: Sequence[str], split: str) -> list[StoreCase]:
    """The cases of a store's split. Raises InputError when there are none or the channels differ from the model's."""
    if split not in get_args(Split):
        raise InputError(unknown(split, kind="splits", known=get_args(Split)))
    if tuple(store.channels) != tuple(channels):
        raise InputError(
            f"{store.uri} holds the channels {tuple(store.channels)}, the model expects {tuple(channels)}; "
            "choose a model of this dataset"
        )
    cases = store.held_out(cast("Split", split))
    if not cases:
        counts = {name: len(store.held_out(name)) for name in get_args(Split)}
        raise InputError(f"{store.uri} has no cases in the split {split!r} (there are: {counts}); choose another split")
    return [StoreCase(case_id=case_id, store=store) for case_id in cases]


def find_files(path: Path, *, channels: Sequence[str]) -> list[ScanCase]:
    """The cases of a file or folder: `CASE.nii.gz`, or `CASE_0000.nii.gz`, `CASE_0001.nii.gz`, ... with several channels.

    Raises InputError for a path without scans, and a case with another number of channels than the model's.
    """
    if not path.exists():
        raise InputError(f"{path} is not there; expected a scan, a folder of scans or a store; check the path")
    if path.is_file() and not is_scan(path):
        raise InputError(f"{path.name} is no scan; expected a file that ends with {', '.join(SUFFIXES)}")
    folder = path if path.is_dir() else path.parent
    groups = _groups([file for file in sorted(folder.iterdir()) if is_scan(file) and not file.name.startswith(".")])
    if path.is_file():
        groups = {case_id: files for case_id, files in groups.items() if path in files.values()}
    if not groups:
        raise InputError(f"{path} holds no scans; expected files that end with {', '.join(SUFFIXES)}")
    return [_case(case_id, files=files, channels=channels) for case_id, files in sorted(groups.items())]


def _groups(files: Sequence[Path]) -> dict[str, dict[int, Path]]:
    """Case id -> channel -> file. `_0007` at the end of a name is a channel only where the folder has that name's `_0000` too."""
    stems = {stem(file) for file in files}
    groups: dict[str, dict[int, Path]] = {}
    for file in files:
        match = _CHANNEL.fullmatch(stem(file))
        multiple = match is not None and f"{match[1]}_0000" in stems
        case_id, channel = (match[1], int(match[2])) if match and multiple else (stem(file), 0)
        other = groups.setdefault(case_id, {}).setdefault(channel, file)
        if other != file:
            raise InputError(f"{case_id}: both {other.name} and {file.name} are there; expected one; remove the other")
    return groups


def _case(case_id: str, *, files: dict[int, Path], channels: Sequence[str]) -> ScanCase:
    if not CASE_ID.fullmatch(case_id):
        raise InputError(
            f"{files[min(files)].name} gives the case id {case_id!r}; expected letters, digits, '.', '_' and '-'; rename the file"
        )
    if sorted(files) != list(range(len(channels))):
        expected = [f"{case_id}_{index:04d} ({name})" for index, name in enumerate(channels)]
        raise InputError(
            f"{case_id}: found {len(files)} channels ({', '.join(files[index].name for index in sorted(files))}), "
            f"the model expects {len(channels)}: {', '.join(expected)}"
        )
    return ScanCase(case_id=case_id, images=tuple(files[index] for index in sorted(files)))
