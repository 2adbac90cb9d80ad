"""How much memory a case takes while it is converted, from headers alone."""

import gzip
import math
import re
import struct
import zlib

from segsweep.data.case import CaseSource, ChannelFile, Image, LabelFile, Labels, MaskFile, SegmentFile, Series
from segsweep.data.geometry import Spacing
from segsweep.data.index import CaseRecord
from segsweep.data.intake import MAX_VOXELS_AN_AXIS

# A worker with its libraries, before it holds a voxel (bytes).
AT_REST = 250 * 2**20
# Measured bytes a voxel: for the case (label, order of its voxels), for each channel, for each mask.
A_CASE, A_CHANNEL, A_MASK = 22, 10, 1
# DICOM slices may be compressed; 16-bit CT shrinks to about a third.
UNPACKED = 4

_HEADER_BYTES = 4096
_SIZES = re.compile(rb"^(?:sizes:|DimSize\s*=)\s*([\d ]+?)\s*$", re.MULTILINE)


def to_convert(source: CaseSource) -> int:
    """Bytes that reading and writing the case takes at its peak. Files that cannot be read count nothing: reading them says why."""
    masks = sum(map(_num_masks, source.labels))
    each = A_CASE + A_CHANNEL * source.num_channels + A_MASK * masks
    return AT_REST + each * max(map(_num_voxels, source.images))


def to_resample(record: CaseRecord, *, spacing: Spacing, num_channels: int) -> int:
    """Bytes that deriving a grid at a spacing (mm) takes at its peak."""
    voxels = math.prod(record.geometry.shape) + math.prod(record.geometry.resampled(spacing).shape)
    return AT_REST + (A_CASE + A_CHANNEL * num_channels) * voxels


def _num_masks(file: Labels) -> int:
    match file:
        case LabelFile():
            return len({name for names in file.values.values() for name in names})
        case SegmentFile():
            return len(set(file.names.values()))
        case MaskFile():
            return 1


def _num_voxels(image: Image) -> int:
    """Of one channel."""
    if isinstance(image, ChannelFile):
        return _num_voxels(image.path)
    try:
        if isinstance(image, Series):
            return sum(path.stat().st_size for path in image.files) * UNPACKED // 2
        if not image.is_file():  # a named pipe would be waited for
            return 0
        with gzip.open(image) if image.name.lower().endswith(".gz") else image.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except (OSError, EOFError, zlib.error):
        return 0
    shape = _shape(header)
    return math.prod(shape) if all(1 <= size <= MAX_VOXELS_AN_AXIS for size in shape) else 0


def _shape(header: bytes) -> tuple[int, ...]:
    """Voxels along the three axes, as NIfTI, NRRD and MetaImage headers state them; (0,) for anything else."""
    named = _SIZES.search(header)
    if named:
        return tuple(int(size) for size in named[1].split()[-3:])
    if len(header) < 48 or header[:4] not in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):
        return (0,)
    return struct.unpack_from("<3h" if header[:4] == b"\x5c\x01\0\0" else ">3h", header, 42)
