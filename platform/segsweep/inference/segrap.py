"""SegRap2023's own file of a result: one 4D `.mha` a case, 45 organs or 2 tumour volumes as masks in the official order.

As the organisers' `stacked_results_to_4d_mha.py` writes it: axes (x, y, z, structure), 8 bits, compressed, the scan's spacing and 1, no
origin and no direction.
"""

import shutil
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from segsweep.data.geometry import Geometry
from segsweep.data.storage import appearing
from segsweep.data.structures import LabelTable
from segsweep.errors import InputError

HEADER = """ObjectType = Image
NDims = 4
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = True
CompressedDataSize = {size}
TransformMatrix = 1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1
Offset = 0 0 0 0
CenterOfRotation = 0 0 0 0
ElementSpacing = {spacing} 1
DimSize = {shape} {channels}
AnatomicalOrientation = ????
ElementType = MET_UCHAR
ElementDataFile = LOCAL
"""


def demand_structures(table: LabelTable, *, structures: Sequence[str]) -> None:
    """Raise InputError with what is missing when a model does not segment all structures of the challenge."""
    missing = [name for name in structures if name not in table.labels.structures]
    if missing:
        raise InputError(
            f"the model does not segment {', '.join(missing)}; expected all {len(structures)} structures of SegRap2023's task; "
            "choose another --format"
        )


def write_stacked(
    label: NDArray, *, geometry: Geometry, table: LabelTable, structures: Sequence[str], path: Path
) -> None:
    """The masks of `structures`, one after the other, for atom values (z, y, x) on `geometry`. The file is there whole or not at all.

    They are compressed slice by slice: all of them at once would take gigabytes. Raises InputError when a structure is missing, or the
    file cannot be written.
    """
    demand_structures(table, structures=structures)
    with appearing(path) as unfinished, tempfile.TemporaryFile(dir=path.parent) as voxels:
        # The header, which comes first, says how long the voxels are, so these wait in a file without a name.
        _pack(label, table=table, structures=structures, into=voxels)
        header = HEADER.format(
            size=voxels.tell(),
            spacing=" ".join(repr(float(mm)) for mm in geometry.spacing[::-1]),
            shape=" ".join(map(str, geometry.shape[::-1])),
            channels=len(structures),
        )
        with unfinished.open("wb") as whole:
            whole.write(header.encode())
            voxels.seek(0)
            shutil.copyfileobj(voxels, whole)


def _pack(label: NDArray, *, table: LabelTable, structures: Sequence[str], into: IO[bytes]) -> None:
    packer = zlib.compressobj()
    for name in structures:
        for plane in label:
            into.write(packer.compress(table.mask(plane, structure=name).astype(np.uint8).tobytes()))
    into.write(packer.flush())
