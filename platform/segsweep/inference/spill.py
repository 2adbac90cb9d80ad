"""Slices that wait on disk where main memory is short: exact, and gone with the process however that ends."""

import tempfile
import weakref

import numpy as np
from numpy.typing import NDArray


class Spilled:
    """Slices (k, y, x) of one shape in a file without a name, in the folder for temporary files (TMPDIR; on a disk, to save memory).

    It is read and written, not mapped: mapped pages would count as this process's memory. Writing raises OSError when the disk is full.
    """

    def __init__(self) -> None:
        self._shape: tuple[int, ...] = ()
        self._file = tempfile.TemporaryFile(prefix="segsweep-", buffering=0)  # noqa: SIM115  (it lives as long as this)
        weakref.finalize(self, self._file.close)

    def __setitem__(self, index: int, plane: NDArray[np.float32]) -> None:
        """Keep a slice, in place of the one that had this index."""
        self._shape = plane.shape
        self._file.seek(index * plane.nbytes)
        rest = np.ascontiguousarray(plane).data.cast("B")
        while rest:  # a single call writes 2 GB at most
            rest = rest[self._file.write(rest) :]

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        """The slice that was kept under this index."""
        plane = np.empty(self._shape, dtype=np.float32)
        self._file.seek(index * plane.nbytes)
        rest = plane.data.cast("B")
        while rest:
            rest = rest[self._file.readinto(rest) :]
        return plane
