"""Folders of a remote store on this machine: every byte compared with the manifest, then kept in the node-local cache.

Entries go by the digest of their manifest, so a case that was converted again is downloaded again.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from segsweep.data import storage
from segsweep.data.cache import FOLDER_VARIABLE, LIMIT_VARIABLE, LocalCache, configured_cache, configured_limit
from segsweep.data.manifest import MANIFEST, Manifest, check_folder
from segsweep.errors import ResourceError, StoreError

Opened = TypeVar("Opened")

# A manifest takes so many bytes for itself, and for each file that it lists.
_MANIFEST_BYTES = 512


def downloaded(uri: str, *, manifest: Manifest, name: str, use: Callable[[Path], Opened]) -> Opened:
    """What `use` makes of the local copy of a remote folder; whatever it wants to read later, it must open.

    A copy that is damaged, or was dropped at this very moment, is downloaded again. `name` is what messages call the folder.
    Raises StoreError that names the file that is not as the manifest says, ResourceError when the cache has no room.
    """
    cache = download_cache()
    size = manifest.num_bytes + _MANIFEST_BYTES * (1 + len(manifest.files))

    def fill(folder: Path) -> None:
        storage.download(uri, folder=folder, only=[*manifest.files, MANIFEST])
        check_folder(folder, name=name, depth="deep")

    def attempt() -> Opened:
        folder = cache.entry(manifest.digest, size=size, fill=fill)
        if folder is None:
            raise ResourceError(
                f"{name}: needs {size / 1e9:.3g} GB in {cache.folder}, which may hold {cache.limit_bytes / 1e9:.3g} GB in all; "
                f"set {LIMIT_VARIABLE} higher, or {FOLDER_VARIABLE} to a folder on a larger disk"
            )
        check_folder(folder, name=name)
        return use(folder)

    try:
        return attempt()
    except (StoreError, FileNotFoundError):
        cache.drop(manifest.digest)
        return attempt()


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
