"""The masks of one case in canonical orientation, each read only when it is asked for: 45 masks of a large scan are gigabytes."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsweep.data.placement import same_place
from segsweep.data.readers import Stack, read_labels
from segsweep.errors import InputError
from segsweep.evaluation.profiles import SEGRAP_ORGANS, SEGRAP_TUMOURS

# SegRap2023's submissions name nothing: the number of masks tells the task, and their order is the official one.
SUBMISSIONS = {len(names): names for names in (SEGRAP_ORGANS, SEGRAP_TUMOURS)}


class MaskFiles(Mapping[int, NDArray[np.bool_]]):
    """A case's mask files by the place of their names. `geometry` is the first file's, `largest` the largest value met so far."""

    def __init__(self, *, case: str, files: Mapping[str, Path]) -> None:
        self.names, self.largest = tuple(sorted(files)), 0
        self.geometry = read_labels(files[self.names[0]]).geometry
        self._case, self._files = case, files

    def __getitem__(self, place: int) -> NDArray[np.bool_]:
        if not 0 <= place < len(self.names):
            raise KeyError(place)
        name = self.names[place]
        scan = read_labels(self._files[name])
        if not same_place(scan.geometry, other=self.geometry):
            raise InputError(
                f"{self._case}: mask {name!r} lies on another grid than {self.names[0]!r}; expected one grid a case; "
                "export the masks on it"
            )
        self.largest = max(self.largest, int(scan.voxels.max()))
        return scan.geometry.reorientation.apply(scan.voxels > 0)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.names)))

    def __len__(self) -> int:
        return len(self.names)


class Submission(Mapping[int, NDArray[np.bool_]]):
    """The masks of one of SegRap2023's 4D files, which must be asked for in their order: they are unpacked one after the other.

    Raises InputError for another number of masks than that of its two tasks.
    """

    def __init__(self, stack: Stack) -> None:
        names = SUBMISSIONS.get(stack.num_layers)
        if names is None:
            raise InputError(
                f"{stack.path.name}: holds {stack.num_layers} masks; expected {' or '.join(map(str, SUBMISSIONS))} in the order of "
                "SegRap2023, or a label map; split the file"
            )
        self.names, self.geometry, self.largest = names, stack.geometry, 1
        self._layers, self._next = stack.layers(), 0

    def __getitem__(self, place: int) -> NDArray[np.bool_]:
        if not 0 <= place < len(self.names):
            raise KeyError(place)
        assert place == self._next, "masks are unpacked in their order"
        self._next += 1
        return self.geometry.reorientation.apply(next(self._layers))

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.names)))

    def __len__(self) -> int:
        return len(self.names)
