"""Keeps two processes from writing into one folder at the same time: a store that is converted, a sweep that runs."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segsweep.data.storage import is_remote
from segsweep.errors import SegsweepError, StoreError

LOCK = ".lock"


@contextmanager
def locked(store: str | Path, *, waiting: bool = False) -> Iterator[None]:
    """Hold the store for writing; the system lets go of it when the process ends, however it ends.

    An object storage knows no locks, and there nothing is held: two conversions of the same files write the same bytes, and
    what a mixture of different ones leaves does not fit the index. Where another process holds the store, `waiting` waits until it
    lets go; else StoreError is raised.
    """
    if is_remote(store):
        yield
        return
    busy = StoreError(
        f"{store}: another conversion is writing into this store; wait until it ends, or choose another --store"
    )
    with held(Path(store), otherwise=None if waiting else busy):
        yield


@contextmanager
def held(folder: Path, *, otherwise: SegsweepError | None) -> Iterator[None]:
    """Hold a folder of this machine, or of a shared disk, for this process alone; the system lets go of it when the process ends.

    Where another process holds it, `otherwise` is raised; None waits.
    """
    with Path(folder, LOCK).open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX if otherwise is None else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if otherwise is None:
                raise
            raise otherwise from None
        yield
