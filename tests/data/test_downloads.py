"""Folders of a bucket in the local cache: fetched once, verified, fetched again when the copy is not what it should be."""

import os
from pathlib import Path
from typing import Any

import pytest

from segsweep.data import storage
from segsweep.data.downloads import downloaded
from segsweep.data.manifest import MANIFEST, Manifest, committed, read_manifest
from segsweep.errors import ResourceError, StoreError

CONTENT = bytes(range(256)) * 100


@pytest.fixture
def uri(object_storage: Any, tmp_path: Path) -> str:
    """A committed folder with one shard, in a bucket."""
    with committed(tmp_path / "a") as folder:
        (folder / "image" / "c").mkdir(parents=True)
        (folder / "image" / "c" / "0").write_bytes(CONTENT)
    address = f"{object_storage.uri}/cases/a"
    storage.upload(tmp_path / "a", uri=address, last=MANIFEST)
    object_storage.requests.clear()
    return address


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEGSWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def shard(folder: Path) -> bytes:
    return (folder / "image" / "c" / "0").read_bytes()


def fetch(uri: str, manifest: Manifest | None = None) -> bytes:
    return downloaded(uri, manifest=manifest or read_manifest(uri, name="a"), name="a", use=shard)


def test_it_is_downloaded_once(uri: str, object_storage: Any) -> None:
    manifest = read_manifest(uri, name="a")
    assert fetch(uri, manifest) == CONTENT
    object_storage.requests.clear()
    assert fetch(uri, manifest) == CONTENT
    assert object_storage.requests == []


def test_a_damaged_or_vanished_copy_is_downloaded_again(uri: str, cache: Path) -> None:
    fetch(uri)
    (copy,) = cache.rglob("c/0")
    copy.write_bytes(CONTENT[:-1])
    assert fetch(uri) == CONTENT
    seen = []

    def use(folder: Path) -> bytes:
        seen.append(folder)
        if len(seen) == 1:
            (folder / "image" / "c" / "0").unlink()
        return shard(folder)

    assert downloaded(uri, manifest=read_manifest(uri, name="a"), name="a", use=use) == CONTENT
    assert len(seen) == 2


def test_other_bytes_than_were_written_are_never_kept(uri: str, cache: Path) -> None:
    storage.write_bytes(f"{uri}/image/c/0", CONTENT[::-1])
    with pytest.raises(StoreError, match=r"a: image, shard c/0 holds other bytes than were written"):
        fetch(uri)
    assert not list(cache.rglob("c/0"))


def test_another_conversion_is_another_entry(uri: str, tmp_path: Path, cache: Path) -> None:
    fetch(uri)
    with committed(tmp_path / "a") as folder:
        (folder / "image" / "c").mkdir(parents=True)
        (folder / "image" / "c" / "0").write_bytes(b"new")
    storage.upload(tmp_path / "a", uri=uri, last=MANIFEST)
    assert fetch(uri) == b"new"
    assert len(list(cache.rglob("c/0"))) == 2


def test_a_cache_without_room_says_what_to_set(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSWEEP_CACHE_GB", "1e-5")
    with pytest.raises(
        ResourceError, match=r"a: needs .* GB in .*, which may hold 1e-05 GB in all; set SEGSWEEP_CACHE_GB higher"
    ):
        fetch(uri)


def test_without_a_cache_folder_a_temporary_one_of_the_user_is_taken(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEGSWEEP_CACHE")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert fetch(uri) == CONTENT
    folder = tmp_path / f"segsweep-cache-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rename(tmp_path / "other")
    folder.symlink_to(tmp_path / "other")
    with pytest.raises(ResourceError, match="belongs to somebody else; set SEGSWEEP_CACHE"):
        fetch(uri)
