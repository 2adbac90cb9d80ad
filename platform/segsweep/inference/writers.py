"""Writes label maps and images with their exact geometry; a file is there complete or not at all."""

import gzip
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from segsweep.data.geometry import Geometry
from segsweep.data.readers import is_scan
from segsweep.data.storage import appearing
from segsweep.errors import InputError

# ITK would print its warnings to the terminal.
sitk.ProcessObject.SetGlobalWarningDisplay(False)


def write_label_map(label: NDArray, *, geometry: Geometry, path: Path) -> None:
    """A label map (z, y, x) on `geometry`, in the smallest unsigned type that holds its values.

    Raises InputError for values other than whole numbers from 0 to 2^32 - 1, and for another shape than the geometry's.
    """
    if label.dtype.kind not in "biu" or (label.size and int(label.min()) < 0):
        raise InputError(
            f"{path.name}: the label is an array of {label.dtype}; expected whole numbers from 0; convert it first"
        )
    kind = np.min_scalar_type(int(label.max()) if label.size else 0)
    if kind.itemsize > 4:
        raise InputError(
            f"{path.name}: the largest label is {label.max()}; expected less than 2^32; renumber the labels"
        )
    _write(label.astype(kind), geometry=geometry, path=path)


def write_image(voxels: NDArray, *, geometry: Geometry, path: Path) -> None:
    """An image (z, y, x), int16 or float32, on `geometry`. Raises InputError for another type or shape."""
    if voxels.dtype not in (np.int16, np.float32):
        raise InputError(f"{path.name}: the image holds {voxels.dtype}; expected int16 or float32; convert it first")
    _write(voxels, geometry=geometry, path=path)


def _write(voxels: NDArray, *, geometry: Geometry, path: Path) -> None:
    if voxels.shape != geometry.shape:
        raise InputError(
            f"{path.name}: the array is {voxels.shape}; expected the grid's {geometry.shape}; pass its own grid"
        )
    if not is_scan(path) or path.suffix == ".mhd":
        raise InputError(f"{path.name} cannot be written; expected a name that ends with .nii.gz, .nii, .nrrd or .mha")
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels))
    image.SetSpacing([float(value) for value in geometry.spacing[::-1]])
    image.SetOrigin([float(value) for value in geometry.origin])
    image.SetDirection([float(value) for value in geometry.direction])
    with appearing(path) as unfinished:
        try:
            sitk.WriteImage(image, str(unfinished), useCompression=True)
            _demand_whole(unfinished, num_bytes=voxels.nbytes)
        except (RuntimeError, EOFError) as error:
            raise OSError(str(error).strip().splitlines()[-1]) from None


def _demand_whole(path: Path, *, num_bytes: int) -> None:
    """Raise OSError unless a NIfTI file holds so many bytes of voxels: of a full disk ITK tells in the other formats alone."""
    if path.name.endswith(".nii"):
        found = path.stat().st_size
    elif path.name.endswith(".nii.gz"):
        with gzip.open(path) as stream:  # raises EOFError where the file ends too early
            found = sum(map(len, iter(lambda: stream.read(2**20), b"")))
    else:
        return
    if found < num_bytes:
        raise OSError(f"it ends after {found} of {num_bytes} bytes")
