"""Keeps two processes from writing into one folder at the same time: a store that is converted, a sweep that runs."""

import _thread
import contextlib
import fcntl
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segsweep.data import storage
from segsweep.data.storage import is_remote
from segsweep.errors import SegsweepError, StoreError

LOCK = ".lock"
# Seconds: a lease that nobody renewed for so long is free, and is renewed so often; who took it at the same moment is seen after the last.
LEASE, RENEWAL, TOGETHER = 120.0, 30.0, 1.0


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


@contextmanager
def leased(uri: str, *, otherwise: SegsweepError) -> Iterator[None]:
    """Hold a file of a bucket, which has no locks: it names its holder by a random word and the time, and is renewed while it is held.

    Raises `otherwise` where another process holds it; one that died does for two minutes. A holder that could not renew it for so long
    and finds another one in its place is interrupted as by Ctrl-C.
    """
    own, over = secrets.token_hex(8), threading.Event()
    if _holder(uri) is not None:
        raise otherwise
    _take(uri, own=own)
    # Object storages of all kinds know no write that fails where there is a file: of two that write now the later one stays.
    time.sleep(TOGETHER)
    if _holder(uri) != own:
        raise otherwise
    renewing = threading.Thread(target=_renew, args=(uri,), kwargs={"own": own, "over": over}, daemon=True)
    renewing.start()
    try:
        yield
    finally:
        over.set()
        renewing.join()
        with contextlib.suppress(StoreError):  # away: then it runs out
            if _holder(uri) in (own, None):
                storage.remove(uri)


def _renew(uri: str, *, own: str, over: threading.Event) -> None:
    while not over.wait(RENEWAL):
        with contextlib.suppress(StoreError):  # away: the next time
            if _holder(uri) not in (own, None):
                return _thread.interrupt_main()
            _take(uri, own=own)
    return None


def _take(uri: str, *, own: str) -> None:
    # Always as many bytes: who asks for a file's length, and then reads another one, would have half of it.
    storage.write_bytes(uri, json.dumps({"holder": own, "renewed": int(time.time())}).encode())


def _holder(uri: str) -> str | None:
    """Who holds a lease; None where it is free, or damaged: who holds it writes it again."""
    try:
        lease = json.loads(storage.read_bytes(uri))
        return lease["holder"] if time.time() - lease["renewed"] < LEASE else None
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None
