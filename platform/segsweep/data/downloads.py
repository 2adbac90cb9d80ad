"""Folders of a remote store on this machine: every byte compared with the manifest, then kept in the node-local cache.

Entries go by the digest of their manifest, so a case that was converted again is downloaded again.
"""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from segsweep.data import storage
from segsweep.data.cache import (
    DISK_FULL,
    FOLDER_VARIABLE,
    LIMIT_VARIABLE,
    LocalCache,
    configured_cache,
    configured_limit,
)
from segsweep.data.manifest import MANIFEST, Manifest, check_folder, read_manifest
from segsweep.data.storage import Result
from segsweep.errors import ResourceError, StorageAwayError, StoreError

Opened = TypeVar("Opened")

# A manifest takes so many bytes for itself, and for each file that it lists.
_MANIFEST_BYTES = 512
# How often room is looked for while others read or fill all that the cache may hold, and for how long (seconds).
ROOM_EVERY, ROOM_SECONDS = 0.05, 600.0


class Download(Generic[Opened]):
    """The copy of a remote folder on this machine: made when it is read, or fetched before. Making this object asks for nothing.

    `name` is what messages call the folder, `demand` raises StoreError for the manifest of another conversion than is wanted, and `opened`
    makes of the copy what is read from; it must not keep files open, nor mapped beyond `shards.let_go`: the copy may go between two reads.
    """

    def __init__(
        self, uri: str, *, name: str, demand: Callable[[Manifest], None], opened: Callable[[Path], Opened]
    ) -> None:
        self._uri, self._name, self._demand, self._open = uri, name, demand, opened
        # Not a cached_property: in Python 3.11 these share one lock among all objects, which would then wait for each other's requests.
        self._lock = threading.Lock()
        self._manifest: Manifest | None = None
        self._opened: Opened | None = None

    @cached_property
    def _cache(self) -> LocalCache:
        return download_cache()

    @property
    def key(self) -> str:
        """Name of its entry in the cache; empty before its manifest was read."""
        return self._manifest.digest if self._manifest else ""

    def fetch(self, spare: Collection[str] = ()) -> bool:
        """Have the copy in the cache, as its latest; False where that has no room now unless entries of `spare` go.

        Raises StoreError that names a file that is not as the manifest says, or when the storage does not answer; ResourceError
        when the cache cannot hold the folder at all, or its disk is full.
        """
        manifest = self._known_manifest()
        cache = self._cache
        size = manifest.num_bytes + _MANIFEST_BYTES * (1 + len(manifest.files))
        if size > cache.limit_bytes:
            raise ResourceError(
                f"{self._name}: needs {size / 1e9:.3g} GB in {cache.folder}, which may hold {cache.limit_bytes / 1e9:.3g} GB in all; "
                f"set {LIMIT_VARIABLE} higher, or {FOLDER_VARIABLE} to a folder on a larger disk"
            )
        if cache.touch(manifest.digest):
            return True
        try:
            return cache.entry(manifest.digest, size=size, fill=self._fill, spare=spare) is not None
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise ResourceError(
                f"{self._name}: the disk of {cache.folder} is full; free space there, set {LIMIT_VARIABLE} to what it can spare, "
                f"or {FOLDER_VARIABLE} to a folder on a larger disk"
            ) from None

    def read(self, use: Callable[[Opened], Result]) -> Result:
        """What `use` makes of the opened copy, which stays until then. A copy that is damaged is downloaded again, once."""
        try:
            return self._read(use)
        except StorageAwayError:
            raise
        except (StoreError, FileNotFoundError):
            if not self._manifest:
                raise
            self._cache.drop(self._manifest.digest)
            self._opened = None
            return self._read(use)

    def _read(self, use: Callable[[Opened], Result]) -> Result:
        digest, cache = self._known_manifest().digest, self._cache
        patience = time.monotonic() + ROOM_SECONDS
        while True:
            with cache.reading(digest) as folder:
                if folder is not None:
                    return use(self._opened_at(folder))
            if not self.fetch():
                if time.monotonic() > patience:
                    raise ResourceError(
                        f"{self._name}: no room in {cache.folder} for {ROOM_SECONDS / 60:.0f} minutes, other processes use all of it; "
                        f"set {LIMIT_VARIABLE} higher, or run fewer at a time"
                    )
                time.sleep(ROOM_EVERY)

    def _opened_at(self, folder: Path) -> Opened:
        opened = self._opened
        if opened is None:
            check_folder(folder, name=self._name)
            # Another thread may have opened it meanwhile; both serve.
            opened = self._opened = self._open(folder)
        return opened

    def _known_manifest(self) -> Manifest:
        if self._manifest is None:
            with self._lock:
                if self._manifest is None:
                    found = storage.patiently(lambda: read_manifest(self._uri, name=self._name))
                    self._demand(found)
                    self._manifest = found
        return self._manifest

    def _fill(self, folder: Path) -> None:
        assert self._manifest
        wanted = [*self._manifest.files, MANIFEST]
        storage.patiently(lambda: storage.download(self._uri, folder=folder, only=wanted))
        check_folder(folder, name=self._name, depth="deep")


def download_cache() -> LocalCache:
    """The cache at SEGSWEEP_CACHE or, where that is not set, in a folder of this user's own among the system's temporary ones.

    Raises ResourceError when it cannot be used.
    """
    configured = configured_cache()
    if configured is not None:
        return configured
    folder = Path(tempfile.gettempdir()) / f"segsweep-cache-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise ResourceError(f"{folder} belongs to somebody else; set {FOLDER_VARIABLE} to a folder of your own")
    return LocalCache(folder=folder, limit_bytes=configured_limit())
