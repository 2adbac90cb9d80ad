"""Where scans to segment come from: files, DICOM series, or the cases of a store; all are read into one value."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast, get_args

import numpy as np
from numpy.typing import NDArray

from segsweep.data.case import CASE_ID, Series, Split
from segsweep.data.dicom import CLASSES, read_series
from segsweep.data.dicom_cases import name_series
from segsweep.data.geometry import Geometry
from segsweep.data.joint import JointStore, is_store, open_stores
from segsweep.data.placement import same_place
from segsweep.data.readers import SUFFIXES, Reference, is_scan, read_scan, stem
from segsweep.data.segmented_nrrd import is_segmented
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
            if not same_place(scan.geometry, other=source):
                raise InputError(
                    f"{self.case_id}: {path.name} lies on another grid ({scan.geometry}) than {self.images[0].name} ({source}); "
                    "expected one grid for all channels; resample the channels onto one"
                )
        image = np.stack([scan.geometry.reorientation.apply(scan.voxels) for scan in scans])
        return LoadedScan(image=image, geometry=canonical, source=source)


@dataclass(frozen=True, kw_only=True)
class SeriesCase:
    """A case that is one DICOM series. `hidden` says that its id is a pseudonym, since its folder's name tells who the patient is."""

    case_id: str
    series: Series
    hidden: bool = False

    def load(self) -> LoadedScan:
        """The series in its scanner's units, HU for CT. Raises InputError that names case and file."""
        try:
            scan = read_series(self.series)
        except InputError as error:
            raise InputError(f"{self.case_id}: {error}") from None
        image = scan.geometry.reorientation.apply(scan.voxels)[np.newaxis]
        return LoadedScan(
            image=image, geometry=scan.geometry.canonical(), source=scan.geometry, reference=scan.reference
        )


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """A case among others that cannot be segmented, for a reason that its files' names tell."""

    case_id: str
    reason: str

    def load(self) -> LoadedScan:
        """Raises InputError with the reason."""
        raise InputError(self.reason)


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


def files_of(scan: Segmentable) -> tuple[Path, ...]:
    """The files that a scan is read from, as far as that is known; a store's case has none."""
    if isinstance(scan, ScanCase):
        return scan.images
    return scan.series.files if isinstance(scan, SeriesCase) else ()


def find_scans(path: str | Path, *, channels: Sequence[str], split: str = "validation") -> Sequence[Segmentable]:
    """The cases at `path`, sorted by id: a scan file, a folder of scan files, a folder of DICOM series, or a store's `split`.

    A folder is searched for DICOM series, in all folders below too, when no scan file lies directly in it.
    """
    if is_store(path):
        return find_in_store(open_stores(path), channels=channels, split=split)
    folder = Path(path)
    if folder.is_dir() and not _scan_files(folder):
        return find_dicom(folder, channels=channels)
    return find_files(folder, channels=channels)


def find_dicom(folder: Path, *, channels: Sequence[str]) -> list[SeriesCase]:
    """The series in a folder and below, for a model of one channel; where that is named after a modality, those of this modality.

    Raises InputError when there are none, and for a model of several channels.
    """
    modality = channels[0].upper() if len(channels) == 1 and channels[0].upper() in CLASSES.values() else ""
    found = name_series(folder, modality=modality)
    if not found and modality and name_series(folder):
        raise InputError(
            f"{folder} holds DICOM series, but none of modality {modality}, which the model expects; choose its series"
        )
    if not found:
        raise InputError(
            f"{folder} holds no scans; expected files that end with {', '.join(SUFFIXES)}, or DICOM series; choose another folder"
        )
    if len(channels) != 1:
        raise InputError(
            f"{folder} holds DICOM series of one channel each; the model expects {len(channels)} ({', '.join(channels)}); "
            f"convert them to files CASE_0000{SUFFIXES[0]}, CASE_0001{SUFFIXES[0]}, ... on one grid"
        )
    return [SeriesCase(case_id=one.case_id, series=one.series, hidden=one.hidden) for one in found]


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


def find_files(path: Path, *, channels: Sequence[str]) -> list[ScanCase | Misfit]:
    """The cases of a file or folder: `CASE.nii.gz`, or `CASE_0000.nii.gz`, `CASE_0001.nii.gz`, ... with several channels.

    A case with another number of channels than the model's, with two files for one, or whose name is no case id, is a `Misfit` among
    others. Raises InputError when there are no others, and for a path without scans.
    """
    if not path.exists():
        raise InputError(f"{path} is not there; expected a scan, a folder of scans or a store; check the path")
    if path.is_file() and not _is_scan(path):
        raise InputError(
            f"{path.name} is no scan; expected a file that ends with {', '.join(SUFFIXES)}, or the folder of a DICOM series"
        )
    groups = _groups(_scan_files(path if path.is_dir() else path.parent))
    if path.is_file():
        groups = {case_id: files for case_id, files in groups.items() if any(path in paths for paths in files.values())}
    if not groups:
        raise InputError(f"{path} holds no scans; expected files that end with {', '.join(SUFFIXES)}")
    cases = [_case(case_id, found=files, channels=channels) for case_id, files in sorted(groups.items())]
    if all(isinstance(case, Misfit) for case in cases):
        cases[0].load()
    return cases


def _scan_files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if _is_scan(file) and not file.name.startswith(".")]


def _is_scan(path: Path) -> bool:
    """Whether a file may be a scan by its name, which 3D Slicer's segmentations are not."""
    return is_scan(path) and not is_segmented(path)


def _groups(files: Sequence[Path]) -> dict[str, dict[int, list[Path]]]:
    """Case id -> channel -> its files, one if all is well.

    `_0007` at the end of a name is a channel only where the folder has that name's `_0000` too.
    """
    stems = {stem(file) for file in files}
    groups: dict[str, dict[int, list[Path]]] = {}
    for file in files:
        match = _CHANNEL.fullmatch(stem(file))
        multiple = match is not None and f"{match[1]}_0000" in stems
        case_id, channel = (match[1], int(match[2])) if match and multiple else (stem(file), 0)
        groups.setdefault(case_id, {}).setdefault(channel, []).append(file)
    return groups


def _case(case_id: str, *, found: dict[int, list[Path]], channels: Sequence[str]) -> ScanCase | Misfit:
    files = {channel: paths[0] for channel, paths in found.items()}
    if not CASE_ID.fullmatch(case_id):
        name = files[min(files)].name
        reason = f"{name} gives the case id {case_id!r}; expected letters, digits, '.', '_' and '-'; rename the file"
        return Misfit(case_id=case_id, reason=reason)
    for one, other, *_ in (paths for paths in found.values() if len(paths) > 1):
        reason = f"{case_id}: both {one.name} and {other.name} are there; expected one; remove the other"
        return Misfit(case_id=case_id, reason=reason)
    if sorted(files) != list(range(len(channels))):
        expected = [f"{case_id}_{index:04d} ({name})" for index, name in enumerate(channels)]
        named = ", ".join(files[index].name for index in sorted(files))
        reason = f"{case_id}: found {len(files)} channels ({named}), the model expects {len(channels)}: {', '.join(expected)}"
        return Misfit(case_id=case_id, reason=reason)
    return ScanCase(case_id=case_id, images=tuple(files[index] for index in sorted(files)))
