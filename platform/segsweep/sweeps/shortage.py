"""A training that ran out of memory, or of disk: how its error tells so, and what its folder keeps of it for the study."""

import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segsweep.data.cache import DISK_FULL
from segsweep.data.manifest import read_json, write_json
from segsweep.errors import ResourceError
from segsweep.sweeps.folds import FOLD_FOLDERS

SHORTAGE = "out_of_memory.json"
# Python's, torch's, NumPy's and Ray's error stand at the beginning of a traceback's line; torch on a CPU and Ray's monitor use words.
LACKING = re.compile(
    r"^\s*(?:[\w.]*\.)?\w*MemoryError\b|can't allocate memory|due to the node running low on memory", re.MULTILINE
)


def ran_out(error: BaseException) -> bool:
    """Whether a training failed for lack of memory, on whichever worker: that fails again however often it is tried."""
    workers = getattr(error, "worker_failures", {}).values()
    return any(LACKING.search(f"{type(found).__name__}: {found}") is not None for found in (error, *workers))


def note(folder: Path, *, patch_size: Sequence[int], batch_size: int) -> None:
    """Write down in a run's folder what was too large: the patch (voxels z, y, x) and the patches of a batch."""
    write_json(folder / SHORTAGE, {"patch_size": list(patch_size), "batch_size": batch_size})


def noted(folder: Path) -> dict[str, Any] | None:
    """What `note` wrote there, or in the folder of a trial's fold; None for a run that had memory enough."""
    found = [path for path in (folder / SHORTAGE, *folder.glob(f"{FOLD_FOLDERS}/{SHORTAGE}")) if path.is_file()]
    return read_json(found[0], do="delete it: the run goes on from its last checkpoint") if found else None


@contextmanager
def full_disks(folder: Path) -> Iterator[None]:
    """Raise ResourceError, which says where, when a disk is full in the block; `folder` is told of when the system names no file."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise ResourceError(
            f"node {socket.gethostname()}: the disk of {error.filename or folder} is full; "
            "free space there, then give the same command again"
        ) from error
