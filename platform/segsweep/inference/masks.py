"""A segmentation as a folder of masks, `CASE/STRUCTURE.nii.gz`, as `evaluate` reads them and TotalSegmentator writes them.

Names of structures come with the model, perhaps from a stranger: one that is no plain file name, on any system, is refused.
"""

import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsweep.data.geometry import Geometry
from segsweep.data.structures import LabelTable
from segsweep.errors import InputError
from segsweep.inference.writers import write_label_map

SUFFIX = ".nii.gz"
# File systems allow 255 bytes, and an unfinished file's name is longer than its own.
MOST_BYTES = 200
_FORBIDDEN = re.compile(r'[\\/:*?"<>|\x00-\x1f\x7f]|^[. ]|[. ]$|^$')
# Names of devices on Windows, whatever follows their first dot.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}


def demand_file_names(table: LabelTable) -> None:
    """Raise InputError that names the first structure whose name no file can have, or that differs from another in capitals alone."""
    seen: dict[str, str] = {}
    for name in table.labels.structures:
        device = name.partition(".")[0].strip().lower() in _DEVICES
        if _FORBIDDEN.search(name) or device or len(name.encode()) > MOST_BYTES:
            cure = "name one of the model's datasets with --dataset" if "/" in name else "choose another --format"
            raise InputError(f"structure {name!r} is no name for a file; expected one without path or device; {cure}")
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise InputError(
                f"structures {other!r} and {name!r} are one file where capitals do not count; expected names that differ; "
                "choose another --format"
            )


def write_masks(label: NDArray, *, geometry: Geometry, table: LabelTable, folder: Path) -> None:
    """Masks (0 and 1) of every structure of the table, of absent ones too, for atom values (z, y, x) on `geometry`.

    The folder is there whole or not at all; an older one with masks of the same structures is replaced. Raises InputError when it
    holds anything else, or a structure's name is none for a file.
    """
    demand_file_names(table)
    files = {f"{name}{SUFFIX}": name for name in table.labels.structures}
    _demand_ours(folder, names=set(files))
    with _appearing(folder) as partial:
        for file, name in files.items():
            mask = table.mask(label, structure=name).astype(np.uint8)
            write_label_map(mask, geometry=geometry, path=partial / file)


def _demand_ours(folder: Path, *, names: set[str]) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder} is there and no folder; expected none, or one of masks; choose an empty folder")
    others = sorted({path.name for path in folder.iterdir()} - names) if folder.is_dir() else []
    if others:
        raise InputError(
            f"{folder} holds {others[0]!r}, which is no mask of this model's; expected a folder that may be replaced; "
            "choose an empty folder"
        )


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A hidden folder to write into, which then takes the place of `folder`; after an error nothing is left of it."""
    hidden = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    old = hidden.with_suffix(".old")
    try:
        hidden.mkdir(parents=True)
        yield hidden
        if folder.is_dir():
            folder.rename(old)
        hidden.rename(folder)
    finally:
        if old.is_dir() and not folder.exists():
            old.rename(folder)
        for leftover in (hidden, old):
            shutil.rmtree(leftover, ignore_errors=True)
