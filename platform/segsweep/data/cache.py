"""A folder on a fast local disk that keeps what is dear to make again: uncompressed copies of grids, downloads.

    KEY/                          a complete entry; its modification time is when it was last asked for
    .KEY.SIZE.TOKEN.partial/      an entry being filled (its filler holds a lock on it) or being deleted
    .lock                         held for the moments in which names change

Several processes may share the folder. Processes that were killed leave only hidden names, which the next miss deletes.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from segsweep.errors import ResourceError

FOLDER_VARIABLE, LIMIT_VARIABLE = "SEGSWEEP_CACHE", "SEGSWEEP_CACHE_GB"
DEFAULT_LIMIT_GB = 50.0
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_PARTIAL = re.compile(r"\.(?P<key>.+)\.(?P<size>\d+)\.[0-9a-f]+\.partial")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, kw_only=True)
class LocalCache:
    """Entries below `folder` that together stay below `limit_bytes`; the least recently used go first."""

    folder: Path
    limit_bytes: int

    def entry(self, key: str, *, size: int, fill: Callable[[Path], object], spare_seconds: float = 0.0) -> Path | None:
        """The folder of an entry; on a miss `fill` writes it (at most `size` bytes) into a folder that it is given.

        None when there is no room, even after dropping entries that nobody asked for within `spare_seconds`. Waits
        while another process fills the same entry. Whatever `fill` raises comes through, and nothing is left behind.

        Files that are open or mapped outlive the entry, but it can vanish before they are opened: a caller that meets
        FileNotFoundError below the folder asks again.
        """
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} cannot name a cache entry; expected letters, digits, '.', '_' and '-'")
        while True:
            with self._locked():
                if (found := self._touched(key)) is not None:
                    return found
                other = self._sweep(key)
                partial = None if other is not None else self._reserve(key, size=size, spare_seconds=spare_seconds)
            if other is not None:
                _wait(other)
            elif partial is None:
                return None
            elif self._filled(partial, fill=fill):
                return self.folder / key
            else:
                return None

    def drop(self, key: str) -> None:
        """Delete an entry, if it is there."""
        with self._locked(), contextlib.suppress(FileNotFoundError):
            self._delete(self.folder / key)

    def _touched(self, key: str) -> Path | None:
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.folder / key)
            return self.folder / key
        return None

    def _sweep(self, key: str) -> int | None:
        """Delete what killed processes left; a descriptor of the folder in which another one fills `key`, if any."""
        filling = None
        for path in self.folder.glob(".*.partial"):
            descriptor = os.open(path, os.O_RDONLY)
            if _try_lock(descriptor):
                shutil.rmtree(path)
            elif (match := _PARTIAL.fullmatch(path.name)) and match["key"] == key:
                filling = descriptor
                continue
            os.close(descriptor)
        return filling

    def _reserve(self, key: str, *, size: int, spare_seconds: float) -> "_Partial | None":
        """A locked hidden folder whose name claims `size` bytes, after making room for it."""
        used = sum(_claim(path) for path in self.folder.iterdir())
        idle_since = time.time() - spare_seconds
        ages = sorted((path.stat().st_mtime, path) for path in self.folder.iterdir() if _KEY.fullmatch(path.name))
        victims = [path for used_at, path in ages if used_at <= idle_since]
        if used - sum(map(_claim, victims)) + size > self.limit_bytes:
            return None
        for victim in victims:
            if used + size <= self.limit_bytes:
                break
            used -= _claim(victim)
            self._delete(victim)
        partial = self._hidden(key, size=size)
        partial.mkdir()
        descriptor = os.open(partial, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return _Partial(path=partial, key=key, descriptor=descriptor)

    def _filled(self, partial: "_Partial", *, fill: Callable[[Path], object]) -> bool:
        """Fill and publish; False when the disk is full."""
        try:
            fill(partial.path)
            with self._locked():
                os.utime(partial.path)
                partial.path.rename(self.folder / partial.key)
        except BaseException as error:
            with self._locked():
                shutil.rmtree(partial.path, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in _DISK_FULL:
                return False
            raise
        finally:
            os.close(partial.descriptor)
        return True

    def _delete(self, path: Path) -> None:
        """The rename first, so that nobody ever sees half of it."""
        hidden = path.rename(self._hidden(path.name, size=0))
        shutil.rmtree(hidden)

    def _hidden(self, key: str, *, size: int) -> Path:
        return self.folder / f".{key}.{size}.{secrets.token_hex(4)}.partial"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


@dataclass(frozen=True, kw_only=True)
class _Partial:
    path: Path
    key: str
    descriptor: int


def configured_cache() -> LocalCache | None:
    """The cache that the environment asks for: folder SEGSWEEP_CACHE (none unless set), limit SEGSWEEP_CACHE_GB (default 50).

    Raises ResourceError when the folder cannot be made or the limit is no positive number.
    """
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return None
    limit_bytes = configured_limit()
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"{FOLDER_VARIABLE}={folder!r} cannot be made ({error.strerror}); name another folder"
        ) from None
    return LocalCache(folder=path, limit_bytes=limit_bytes)


def configured_limit() -> int:
    """Bytes by SEGSWEEP_CACHE_GB. Raises ResourceError when it is no positive number."""
    given = os.environ.get(LIMIT_VARIABLE, str(DEFAULT_LIMIT_GB))
    try:
        limit = float(given)
    except ValueError:
        limit = 0.0
    if not 0 < limit < float("inf"):
        raise ResourceError(f"{LIMIT_VARIABLE}={given!r} found, expected gigabytes above 0; correct it or unset it")
    return int(limit * 1e9)


def _claim(path: Path) -> int:
    """Bytes that an entry holds or, while it is being filled, has reserved."""
    if match := _PARTIAL.fullmatch(path.name):
        return int(match["size"])
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(descriptor: int) -> None:
    """Wait until the other process is done, whatever became of it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)
