"""Folders that are there whole or not at all, each with a manifest of size and sha256 of every file in it.

The manifest and the index are sealed: JSON whose first field is the sha256 of all that follows, so that no byte can change unseen.
Equal content gives equal digests, whatever order or machine it was written in.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from segsweep.data import storage
from segsweep.errors import InputError, StoreError, understood

MANIFEST = "manifest.json"
# The quick check reads so much of the end of each file: all of the metadata, and of a shard its index, which tells shards apart.
TAIL_BYTES = 2**16
REPAIR = "run `segsweep convert DATASET RAW --store STORE --deep` to write it again"

# "quick": sizes and the end of every file; "deep": every byte.
Depth = Literal["quick", "deep"]

_SEAL = re.compile(rb'\{\n "sha256": "([0-9a-f]{64})",')


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """The content of a sealed JSON file; `digest` is the sha256 that seals it."""

    digest: str
    body: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a committed folder holds: relative path -> `bytes`, `sha256` and `tail` (sha256 of the last 64 KiB).

    `digest` stands for all of it. `source` is the digest of the folder that this one was derived from, or empty.
    """

    digest: str
    source: str
    files: Mapping[str, Mapping[str, Any]]

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(entry["bytes"] for entry in self.files.values())


def seal(body: Mapping[str, Any], *, indent: int | None = 1) -> bytes:
    """JSON text that carries its own checksum; `unseal` verifies it. `body` must not be empty.

    Without an indent it is a third shorter and made ten times as fast.
    """
    rest = json.dumps(body, indent=indent).encode()[1:]
    return b'{\n "sha256": "%s",%s' % (hashlib.sha256(rest).hexdigest().encode(), rest)


def unseal(text: bytes, *, name: str) -> Sealed:
    """The content of sealed JSON. Raises StoreError that names the file when any byte is not as it was written."""
    start = _SEAL.match(text)
    if start is None or not is_sealed(text):
        raise StoreError(f"{name} is damaged: its checksum does not fit its content; {REPAIR}")
    with understood(name, otherwise=StoreError, do=REPAIR):
        return Sealed(digest=start[1].decode(), body=json.loads(b"{" + text[start.end() :]))


def is_sealed(text: bytes) -> bool:
    """Whether a text is what `seal` made, to the last byte."""
    start = _SEAL.match(text)
    return start is not None and hashlib.sha256(memoryview(text)[start.end() :]).hexdigest() == start[1].decode()


def read_manifest(folder: str | Path, *, name: str) -> Manifest:
    """The manifest of a committed folder. Raises StoreError when it is absent or damaged; `name` is what messages call the folder."""
    try:
        text = storage.read_bytes(f"{folder}/{MANIFEST}")
    except OSError:
        raise StoreError(f"{name}: no readable {MANIFEST}; {REPAIR}") from None
    sealed = unseal(text, name=f"{name}: {MANIFEST}")
    with understood(f"{name}: {MANIFEST}", otherwise=StoreError, do=REPAIR):
        return Manifest(digest=sealed.digest, source=str(sealed.body["source"]), files=_entries(sealed.body["files"]))


def check_folder(folder: str | Path, *, name: str, depth: Depth = "quick") -> Manifest:
    """Compare every file with the manifest. Raises StoreError that names the first that differs, by array and shard."""
    manifest = read_manifest(folder, name=name)
    for message in differences(folder, manifest=manifest, depth=depth):
        raise StoreError(f"{name}: {message}; {REPAIR}")
    return manifest


def differences(folder: str | Path, *, manifest: Manifest, depth: Depth) -> Iterator[str]:
    """One phrase for every file that is not as the manifest says. What the manifest does not list is not looked at.

    Of a remote folder the quick check knows sizes alone.
    """
    remote = storage.is_remote(folder)
    sizes = storage.sizes(str(folder)) if remote else _sizes(Path(folder), names=manifest.files)
    for relative, entry in manifest.files.items():
        path = Path(folder, relative)
        if PurePosixPath(relative).is_absolute() or ".." in PurePosixPath(relative).parts or path.is_symlink():
            yield f"{place(relative)} is a link or lies outside the folder"
        elif relative not in sizes:
            yield f"{place(relative)} is missing"
        elif sizes[relative] != entry["bytes"]:
            yield f"{place(relative)} has {sizes[relative]} bytes, expected {entry['bytes']}"
        elif depth == "quick" and not remote and _tail(path) != entry["tail"]:
            yield f"{place(relative)} ends with other bytes than were written"
        elif depth == "deep" and _sha256(f"{folder}/{relative}") != entry["sha256"]:
            yield f"{place(relative)} holds other bytes than were written"


def read_file(folder: str | Path, *, relative: str, manifest: Manifest, name: str) -> bytes:
    """One file of a committed folder, every byte verified. Raises StoreError when it is not as the manifest says."""
    entry = manifest.files[relative]
    try:
        content = storage.read_bytes(f"{folder}/{relative}")
    except FileNotFoundError:
        raise StoreError(f"{name}: {place(relative)} is missing; {REPAIR}") from None
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise StoreError(f"{name}: {place(relative)} holds other bytes than were written; {REPAIR}")
    return content


def place(relative: str) -> str:
    """A file of a store in words: `grids/native/image, shard c/0/0/0/0` for a shard of an array."""
    array, chunks, key = relative.partition("/c/")
    return f"{array}, shard c/{key}" if chunks else relative


@contextmanager
def committed(folder: Path, *, source: str = "") -> Iterator[Path]:
    """A hidden folder to write into; on success it gets a manifest, is flushed to disk and takes the place of `folder`.

    Raises StoreError when another conversion has taken it for a leftover: part of it may be missing then.
    """
    partial = _hidden(folder, what="partial")
    partial.mkdir(parents=True)
    # Held open, so that no other folder can be given its number.
    begun = os.open(partial, os.O_RDONLY)
    try:
        yield partial
        _write_manifest(partial, source=source)
        if not os.path.samestat(os.fstat(begun), partial.stat()):
            raise StoreError(f"{folder.name}: another conversion has taken over; run the command again")
        _put_in_place(partial, folder=folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(begun)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that a reader sees the old content or the new, never a part."""
    storage.write_bytes(str(path), json.dumps(value, indent=1).encode())


def read_json(uri: str | Path, *, do: str) -> dict[str, Any]:
    """The object in a JSON file of ours. Raises InputError, which ends in the advice `do`, where it is damaged."""
    content = storage.read_bytes(str(uri))
    with understood(str(uri), otherwise=InputError, do=do):
        return dict(json.loads(content))


def remove_leftovers(folder: Path) -> None:
    """Delete what interrupted commits left in a folder. What a worker that outlives its conversion still writes stays until next time."""
    for path in folder.glob(".*"):
        if not path.name.endswith((".partial", ".old")):
            continue
        if path.is_dir():
            # Out of the way at once: a worker that still writes here must not commit what is left while it is deleted.
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(path.rename(path.with_name(f".{secrets.token_hex(8)}.old")), ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _entries(files: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """A manifest's files: that it fits its own checksum says nothing of who wrote it."""
    return {
        name: {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"]), "tail": str(entry["tail"])}
        for name, entry in files.items()
    }


def _hidden(folder: Path, *, what: str) -> Path:
    # A worker that outlives a killed conversion must not write where the next one does.
    return folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.{what}")


def _put_in_place(partial: Path, *, folder: Path) -> None:
    old = _hidden(folder, what="old")
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    storage.flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _write_manifest(folder: Path, *, source: str) -> None:
    """List all files; flush everything."""
    paths = sorted(folder.rglob("*"))
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": _sha256(path),
            "tail": _tail(path),
        }
        for path in paths
        if path.is_file()
    }
    # Flushes wait for the disk, so they wait together.
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(storage.flush, paths))
    storage.write_bytes(f"{folder}/{MANIFEST}", seal({"source": source, "files": files}))


def _sizes(folder: Path, *, names: Iterable[str]) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in names if (folder / name).is_file()}


def _sha256(uri: str | Path) -> str:
    if storage.is_remote(uri):
        return hashlib.sha256(storage.read_bytes(str(uri))).hexdigest()
    with Path(uri).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _tail(path: Path) -> str:
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return hashlib.sha256(stream.read()).hexdigest()
