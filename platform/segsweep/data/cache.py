"""A folder on a fast local disk that keeps what is dear to make again: uncompressed copies of grids, downloads.

    KEY/                          a complete entry; its modification time is when it was last asked for (its readers hold a lock on it)
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
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from segsweep.data.shards import let_go
from segsweep.errors import ResourceError

FOLDER_VARIABLE, LIMIT_VARIABLE = "SEGSWEEP_CACHE", "SEGSWEEP_CACHE_GB"
DEFAULT_LIMIT_GB = 50.0
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_PARTIAL = re.compile(r"\.(?P<key>.+)\.(?P<size>\d+)\.[0-9a-f]+\.partial")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, kw_only=True)
class LocalCache:
    """Entries below `folder` that together stay below `limit_bytes`; the least recently used go first."""

    folder: Path
    limit_bytes: int

    def entry(
        self,
        key: str,
        *,
        size: int,
        fill: Callable[[Path], object],
        spare_seconds: float = 0.0,
        spare: Collection[str] = (),
    ) -> Path | None:
        """The folder of an entry; on a miss `fill` writes it (at most `size` bytes) into a folder that it is given.

        None when there is no room, even after dropping entries that nobody reads, nobody asked for within `spare_seconds`, and that are
        none of `spare`. Waits while somebody else fills the same entry. Whatever `fill` raises comes through (a full disk as OSError),
        and nothing is left behind.

        Files that are open or mapped outlive the entry, but it can vanish before they are opened: a caller that meets
        FileNotFoundError below the folder asks again, or reads within `reading`.
        """
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} cannot name a cache entry; expected letters, digits, '.', '_' and '-'")
        while True:
            with self._locked():
                if (found := self._touched(key)) is not None:
                    return found
                other = self._sweep(key)
                partial = None
                if other is None:
                    partial = self._reserve(key, size=size, idle_since=time.time() - spare_seconds, spare=spare)
            if other is not None:
                _wait(other)
            elif partial is None:
                return None
            else:
                self._fill(partial, fill=fill)
                return self.folder / key

    @contextmanager
    def reading(self, key: str) -> Iterator[Path | None]:
        """The folder of an entry, which nobody drops for want of room before the block ends; None where there is none."""
        path, descriptor = self.folder / key, None
        try:
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDONLY)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield path if descriptor is not None and _is_at(path, descriptor=descriptor) else None
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def touch(self, key: str) -> bool:
        """Count an entry as just asked for; False where there is none."""
        return self._touched(key) is not None

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

    def _reserve(self, key: str, *, size: int, idle_since: float, spare: Collection[str]) -> "_Partial | None":
        """A locked hidden folder whose name claims `size` bytes, after making room for it."""
        paths = [path for path in self.folder.iterdir() if not path.name.startswith(".lock")]
        lacking = sum(_claim(path) for path in paths) + size - self.limit_bytes
        with contextlib.ExitStack() as locks:
            victims = []
            for path in self._idle(paths, since=idle_since, spare=spare):
                if lacking <= 0:
                    break
                descriptor = os.open(path, os.O_RDONLY)
                locks.callback(os.close, descriptor)
                if _try_lock(descriptor):
                    victims.append(path)
                    lacking -= _claim(path)
            if lacking > 0:
                return None
            if victims:
                let_go()  # as long as files of theirs are mapped, they hold their disk
            for victim in victims:
                self._delete(victim)
        partial = self._hidden(key, size=size)
        partial.mkdir()
        descriptor = os.open(partial, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return _Partial(path=partial, key=key, descriptor=descriptor)

    def _idle(self, paths: Collection[Path], *, since: float, spare: Collection[str]) -> list[Path]:
        """Entries that nobody asked for since a time, the least recently used first."""
        entries = [path for path in paths if _KEY.fullmatch(path.name) and path.name not in spare]
        used = sorted((path.stat().st_mtime, path) for path in entries)
        return [path for used_at, path in used if used_at <= since]

    def _fill(self, partial: "_Partial", *, fill: Callable[[Path], object]) -> None:
        """Fill and publish."""
        try:
            fill(partial.path)
            with self._locked():
                os.utime(partial.path)
                partial.path.rename(self.folder / partial.key)
        except BaseException:
            with self._locked():
                shutil.rmtree(partial.path, ignore_errors=True)
            raise
        finally:
            os.close(partial.descriptor)

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
    return _num_bytes(path, path.stat().st_ino)


@lru_cache(maxsize=2**16)
def _num_bytes(path: Path, _inode: int) -> int:
    """What an entry holds, which does not change: a thousand entries are not counted again for each that comes."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _is_at(path: Path, *, descriptor: int) -> bool:
    """Whether an open folder is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


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
