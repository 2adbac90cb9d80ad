"""Keeps two conversions from writing into one store at the same time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segsweep.errors import StoreError

LOCK = ".lock"


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """Hold the store for writing; the system lets go of it when the process ends, however it ends.

    Raises StoreError when another process holds it.
    """
    with (store / LOCK).open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"{store}: another conversion is writing into this store; wait until it ends, or choose another --store"
            ) from None
        yield
