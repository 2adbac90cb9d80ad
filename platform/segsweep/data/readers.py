"""Reads images and label maps from NIfTI, NRRD and MetaImage files as arrays with their exact geometry."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from segsweep.data import storage
from segsweep.data.geometry import Geometry
from segsweep.data.intake import MAX_BYTES, MAX_VOXELS_AN_AXIS, ORTHONORMAL_WITHIN, SPACING_MM, check_nifti
from segsweep.data.intake_text import (
    META,
    NRRD,
    NumLayers,
    check_text,
    layer_bytes,
    layer_type,
    num_layers,
    voxel_file,
)
from segsweep.errors import InputError

if TYPE_CHECKING:
    import SimpleITK as sitk  # noqa: N813

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
MAX_LABEL = 65535
# A label stored with a slope, as some programs do, comes back as 2.9999998.
LABEL_WITHIN = 1e-3

_FORMATS = {".nii.gz": "NiftiImageIO", ".nii": "NiftiImageIO", ".nrrd": "NrrdImageIO"}
_TEXT = (*NRRD, *META)


def _itk() -> ModuleType:
    """SimpleITK, once a file is read: it takes 40 MB, and recipes, which need nothing but names from here, are imported everywhere."""
    import SimpleITK  # noqa: PLC0415

    # It would print its warnings to the terminal; what matters is checked here and said as an InputError.
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What ties a DICOM series to the objects drawn on it: UIDs, and the files of the slices, in the order of z. Never stored."""

    frame_of_reference: str = field(repr=False)
    series_uid: str = field(repr=False)
    sop_uids: tuple[str, ...] = field(repr=False)
    files: tuple[Path, ...] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Voxels (z, y, x) in the file's own axis order, the file's geometry, and the sha256 of the file's bytes.

    For a header with its voxels in another file (.mhd, detached .nrrd) the digest covers both files.
    """

    voxels: NDArray
    geometry: Geometry
    digest: str
    reference: Reference | None = None


@dataclass(frozen=True, kw_only=True)
class Layers:
    """A NRRD file of one or more label maps on one grid: voxels (layer, z, y, x), and the header's own key/value pairs."""

    voxels: NDArray
    geometry: Geometry
    fields: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A MetaImage file of several masks on one grid along its fourth axis. `layers` unpacks them in turn, as masks (z, y, x) of what is
    not 0, in the file's own axis order."""

    path: Path
    geometry: Geometry
    num_layers: int

    def layers(self) -> Iterator[NDArray[np.bool_]]:
        kind = layer_type(self.path)
        for held in layer_bytes(self.path):
            yield np.frombuffer(held, dtype=kind).reshape(self.geometry.shape) != 0


def is_scan(path: Path) -> bool:
    """Whether the name ends like a file that can be read, in capitals or not."""
    return path.name.lower().endswith(SUFFIXES)


def stem(path: Path) -> str:
    """The file's name without its suffix (`case_0000` for `case_0000.nii.gz`)."""
    return path.name[: -len(_suffix(path))]


def read_scan(path: Path) -> Scan:
    """An image as int16 where that is lossless, else float32, in the file's own units (HU for CT); padding is kept.

    Raises InputError for a damaged file, NaN or infinite voxels, and an image of one single value.
    """
    scan = _read(path)
    return replace(scan, voxels=_image(scan.voxels, name=path.name))


def read_channels(path: Path, *, num_channels: int) -> tuple[Scan, ...]:
    """All channels of a NIfTI file that holds that many along its fourth axis, each as `read_scan` gives an image.

    Raises InputError as `read_scan` does, and for another format or number of channels.
    """
    if path.suffix.lower() in _TEXT:
        raise InputError(f"{path.name}: is to hold {num_channels} channels; expected a NIfTI file; convert the file")
    scan = _read(path, num_channels=num_channels)
    channels = scan.voxels.reshape(num_channels, *scan.geometry.shape)
    return tuple(
        replace(scan, voxels=_image(voxels, name=f"{path.name} (channel {index})"))
        for index, voxels in enumerate(channels)
    )


def read_labels(path: Path) -> Scan:
    """A label map as uint8, or uint16 where values exceed 255.

    Raises InputError for a damaged file, fractions, negative values and values above 65535.
    """
    scan = _read(path)
    if not _whole(scan.voxels, within=LABEL_WITHIN):
        raise InputError(
            f"{path.name}: the label map holds fractions; expected whole numbers; resample it with nearest neighbour"
        )
    whole = np.rint(scan.voxels) if scan.voxels.dtype.kind == "f" else scan.voxels
    low, high = int(whole.min()), int(whole.max())
    if low < 0 or high > MAX_LABEL:
        raise InputError(
            f"{path.name}: label values from {low} to {high}; expected 0 to {MAX_LABEL}; is this the label map?"
        )
    voxels = whole.astype(np.uint8 if high <= 255 else np.uint16)
    return Scan(voxels=voxels, geometry=scan.geometry, digest=scan.digest)


def is_stack(path: Path) -> bool:
    """Whether a MetaImage file's header speaks of several masks. A damaged header does not; reading it says what is wrong."""
    if path.suffix.lower() not in META:
        return False
    try:
        return num_layers(path) > 1
    except (InputError, OSError):
        return False


def open_stack(path: Path) -> Stack:
    """A MetaImage file of several masks, checked whole. Raises InputError for a damaged file."""
    with _reading(path, kind=".mha"):
        check_text(path, layers="many")
        count = num_layers(path)
        reader = _opened(path, suffix=path.suffix.lower(), num_channels=count)
    return Stack(path=path, geometry=_geometry(reader, name=path.name), num_layers=count)


def read_layers(path: Path) -> Layers:
    """All layers of a NRRD file, layers first, in the file's own axis order. Raises InputError for a damaged file and fractions."""
    with _reading(path, kind=".nrrd"):
        check_text(path, layers="many")
        reader = _opened(path, suffix=".nrrd", layers="many")
        voxels = _itk().GetArrayFromImage(reader.Execute())
    if not np.isfinite(voxels).all() or not _whole(voxels):
        raise InputError(f"{path.name}: its layers hold fractions; expected whole numbers; save the segmentation again")
    voxels = np.moveaxis(voxels, 3, 0) if voxels.ndim == 4 else voxels[np.newaxis]
    return Layers(voxels=voxels, geometry=_geometry(reader, name=path.name), fields=_fields(reader, name=path.name))


def read_layer_fields(path: Path) -> Mapping[str, str]:
    """The `fields` that reading the layers would give, from the header alone. Raises InputError for a damaged header."""
    with _reading(path, kind=".nrrd"):
        reader = _opened(path, suffix=".nrrd", layers="many")
    return _fields(reader, name=path.name)


def file_digest(path: Path) -> str:
    """The `digest` that reading this file would give, without decoding it. Raises InputError when it is not there."""
    with _reading(path, kind="readable"):
        other = voxel_file(path) if path.suffix.lower() in _TEXT else None
        return storage.sha256(path, *([other] if other else []))


def _image(voxels: NDArray, *, name: str) -> NDArray:
    """As int16 where that is lossless, else float32."""
    low, high = voxels.min(), voxels.max()
    if low == high:
        raise InputError(f"{name}: all voxels are {low}; expected an image with contrast; export the scan again")
    if low >= -32768 and high <= 32767 and _whole(voxels):
        return voxels.astype(np.int16)
    if max(abs(float(low)), abs(float(high))) > np.finfo(np.float32).max:
        raise InputError(f"{name}: voxels reach {high:g}; expected values that fit 32 bits; rescale the scan")
    return voxels.astype(np.float32)


def _whole(voxels: NDArray, *, within: float = 0.0) -> bool:
    return voxels.dtype.kind in "iu" or all(float(np.abs(plane - np.rint(plane)).max()) <= within for plane in voxels)


def _suffix(path: Path) -> str:
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return suffix
    raise InputError(f"{path.name} is no scan that can be read; expected a name that ends with {', '.join(SUFFIXES)}")


def _read(path: Path, *, num_channels: int = 1) -> Scan:
    """One scan; of several channels, all voxels as they lie in the file (channels first)."""
    suffix = _suffix(path)
    with _reading(path, kind=suffix), _by_itself(path, suffix=suffix) as file:
        if suffix in _TEXT:
            check_text(path)
        else:
            check_nifti(path, num_channels=num_channels)
        reader = _opened(file, suffix=suffix, num_channels=num_channels)
        voxels = _itk().GetArrayFromImage(reader.Execute())
        digest = file_digest(path)
    if not np.isfinite(voxels).all():
        raise InputError(
            f"{path.name}: some voxels are NaN or infinite; expected finite numbers; export the scan again"
        )
    if num_channels == 1:
        voxels = voxels.reshape(voxels.shape[-3:])
    return Scan(voxels=voxels, geometry=_geometry(reader, name=path.name), digest=digest)


@contextmanager
def _by_itself(path: Path, *, suffix: str) -> Iterator[Path]:
    """A NIfTI file as a link in a folder of its own, with its suffix in small letters: ITK would take the voxels of X.nii.gz from an X.nii
    beside it, and knows no suffix in mixed capitals. Others stay, since their voxels may be in a file beside them."""
    if suffix in _TEXT:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"{stem(path)}{suffix}"
        link.symlink_to(path.absolute())
        yield link


@contextmanager
def _reading(path: Path, *, kind: str) -> Iterator[None]:
    """Turns what ITK and the system raise while a file is read into one InputError, and keeps ITK quiet."""
    if not str(path).isprintable():
        raise InputError(
            f"{str(path)!r} cannot be read; expected names of printable characters in UTF-8; rename file or folder"
        )
    try:
        if not path.is_file():
            found = "is no file but a folder or a device" if path.exists() else f"is not there (in {path.parent})"
            raise InputError(f"{path.name} {found}; expected a {kind} file; check the path")
        with quiet():
            yield
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"{path.name} cannot be read ({_reason(error)}); expected an intact {kind} file; copy or export it again"
        ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps ITK's C libraries, which print on the process's own error stream, off the terminal (for all threads)."""
    terminal = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def _opened(path: Path, *, suffix: str, layers: NumLayers = "one", num_channels: int = 1) -> "sitk.ImageFileReader":
    """The reader with the header read and judged, so that no memory is taken for a header's absurd claim."""
    reader = _itk().ImageFileReader()
    reader.SetImageIO(_FORMATS.get(suffix, "MetaImageIO"))
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    size, numbers = reader.GetSize(), reader.GetNumberOfComponents()
    if len(size) < 3 or np.prod(size[3:], dtype=object) != num_channels or (numbers != 1 and layers == "one"):
        raise InputError(
            f"{path.name}: size is {size} with {numbers} numbers a voxel; "
            "expected one 3D scan with one; split or convert the file"
        )
    if (
        not all(1 <= count <= MAX_VOXELS_AN_AXIS for count in size)
        or 8 * np.prod((*size, numbers), dtype=object) > 4 * MAX_BYTES
    ):
        raise InputError(
            f"{path.name}: size is {size}; expected 1 to {MAX_VOXELS_AN_AXIS} voxels an axis; crop or export it again"
        )
    return reader


def _geometry(reader: "sitk.ImageFileReader", *, name: str) -> Geometry:
    """The grid of the file in array order. A fourth axis of length 1 is dropped."""
    rank = reader.GetDimension()
    size, spacing, origin = reader.GetSize()[:3], reader.GetSpacing()[:3], reader.GetOrigin()[:3]
    direction = np.asarray(reader.GetDirection(), dtype=float).reshape(rank, rank)[:3, :3]
    low, high = SPACING_MM
    if not all(low <= value <= high for value in spacing):
        raise InputError(f"{name}: spacing is {spacing} mm; expected {low} to {high}; correct the spacing")
    if (
        not np.allclose(direction.T @ direction, np.eye(3), atol=2 * ORTHONORMAL_WITHIN)
        or not np.isfinite(origin).all()
    ):
        raise InputError(f"{name}: the axes are not at right angles or the origin is not finite; resample the scan")
    return Geometry(
        shape=(size[2], size[1], size[0]),
        spacing=(spacing[2], spacing[1], spacing[0]),
        origin=(origin[0], origin[1], origin[2]),
        direction=tuple(direction.ravel().tolist()),
    )


def _fields(reader: "sitk.ImageFileReader", *, name: str) -> Mapping[str, str]:
    fields = {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}
    try:
        "".join(fields.values()).encode()
    except UnicodeEncodeError:  # SimpleITK smuggles other bytes through as lone surrogates
        raise InputError(f"{name}: its header is not UTF-8 text; expected UTF-8; save the segmentation again") from None
    return fields


def _reason(error: Exception) -> str:
    """The last line of an ITK message, without the source file that raised it; of the system's, without the path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rpartition("): ")[2][:160] if lines else type(error).__name__
