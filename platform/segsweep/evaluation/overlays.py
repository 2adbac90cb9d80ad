"""An axial slice of a scan with the outlines of the truth and of what was found, as a small PNG; a worker loads nothing more for it."""

import struct
import zlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segsweep.data.geometry import Spacing

# Okabe and Ito's palette: told apart with any colour vision.
REFERENCE_COLOUR = "#E69F00"
PREDICTION_COLOUR = "#56B4E9"
BOTH_COLOUR = "#009E73"
WINDOW_HU = (-160.0, 240.0)
MARGIN_MM = 40.0
# Pixels of the longer side, of a line's width; few greys make small files.
SIDE, LINE, GREYS = 480, 2, 64
COLOURS = (REFERENCE_COLOUR, PREDICTION_COLOUR, BOTH_COLOUR)

Mask = NDArray[np.bool_]


def fullest_slice(label: NDArray) -> int:
    """Index of the axial slice of a label map (z, y, x) with most values other than 0; of equal ones that with most such voxels."""

    def fullness(index: int) -> tuple[int, int]:
        counts = np.bincount(label[index].ravel())[1:]
        return int(np.count_nonzero(counts)), int(counts.sum())

    return max(range(len(label)), key=fullness)


def overlay(
    image: NDArray, *, truth: Iterable[Mask], found: Iterable[Mask], spacing: Spacing, window: tuple[float, float]
) -> bytes:
    """PNG of a slice (y, x) around its masks, one a structure: the truth orange, what was found blue, green where both lines run.

    `window` has the values that become black and white, `spacing` is the scan's (z, y, x, mm). The patient's right is on the left.
    """
    pairs = [list(truth), list(found)]
    region = _region([mask for masks in pairs for mask in masks], shape=image.shape, spacing=spacing)
    rows, columns = (
        _nearest(part, mm=mm, pixel=_pixel(region, spacing=spacing))
        for part, mm in zip(region, spacing[1:], strict=True)
    )
    low, high = window
    grey = (np.clip((image[np.ix_(rows, columns)] - low) / (high - low), 0.0, 1.0) * (GREYS - 1)).astype(np.uint8)
    lines = [np.zeros(grey.shape, bool), np.zeros(grey.shape, bool)]
    for line, masks in zip(lines, pairs, strict=True):
        for mask in masks:
            shown = mask[np.ix_(rows, columns)]
            line |= shown & np.logical_not(ndimage.binary_erosion(shown, iterations=LINE))
    reference, prediction = lines
    for place, line in enumerate((reference, prediction, reference & prediction)):
        grey[line] = GREYS + place
    return _png(grey)


def _region(masks: Iterable[Mask], *, shape: tuple[int, ...], spacing: Spacing) -> tuple[slice, slice]:
    """Rows and columns of all masks with a margin, the whole slice where they are empty."""
    marked = np.zeros(shape, bool)
    for mask in masks:
        marked |= mask
    if not marked.any():
        return slice(0, shape[0]), slice(0, shape[1])
    parts = []
    for axis in (0, 1):
        places = np.flatnonzero(marked.any(axis=1 - axis))
        margin = round(MARGIN_MM / spacing[1 + axis])
        parts.append(slice(max(0, int(places[0]) - margin), min(shape[axis], int(places[-1]) + 1 + margin)))
    return parts[0], parts[1]


def _pixel(region: tuple[slice, slice], *, spacing: Spacing) -> float:
    """Side of a picture's pixel in mm."""
    return max((part.stop - part.start) * mm for part, mm in zip(region, spacing[1:], strict=True)) / SIDE


def _nearest(part: slice, *, mm: float, pixel: float) -> NDArray[np.intp]:
    """The voxel that each pixel along an axis shows."""
    pixels = max(1, round((part.stop - part.start) * mm / pixel))
    return part.start + ((np.arange(pixels) + 0.5) * (part.stop - part.start) / pixels).astype(np.intp)


def _png(indices: NDArray[np.uint8]) -> bytes:
    """A PNG with a palette (ISO/IEC 15948): greys, then the colours of the lines."""
    greys = [bytes([value] * 3) for value in np.linspace(0, 255, GREYS).astype(int).tolist()]
    palette = b"".join([*greys, *(bytes.fromhex(colour[1:]) for colour in COLOURS)])
    height, width = indices.shape
    # A zero before every row: it is stored as it is.
    rows = np.pad(indices, ((0, 0), (1, 0))).tobytes()
    chunks = {
        b"IHDR": struct.pack(">2I5B", width, height, 8, 3, 0, 0, 0), b"PLTE": palette, b"IDAT": zlib.compress(rows, 9), b"IEND": b"",
    }  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )
