"""Folders of a bucket in the local cache: fetched once, verified, fetched again when the copy is not what it should be."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segsweep.data import downloads, storage
from segsweep.data.downloads import Download
from segsweep.data.manifest import MANIFEST, Manifest, committed
from segsweep.errors import ResourceError, StorageAwayError, StoreError

CONTENT = bytes(range(256)) * 100


def put(uri: str, folder: Path, content: bytes = CONTENT) -> str:
    """A committed folder with one shard, in a bucket."""
    with committed(folder) as partial:
        (partial / "image" / "c").mkdir(parents=True)
        (partial / "image" / "c" / "0").write_bytes(content)
    storage.upload(folder, uri=uri, last=MANIFEST)
    return uri


@pytest.fixture
def uri(object_storage: Any, tmp_path: Path) -> str:
    address = put(f"{object_storage.uri}/cases/a", tmp_path / "a")
    object_storage.requests.clear()
    return address


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEGSWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def shard(folder: Path) -> bytes:
    return (folder / "image" / "c" / "0").read_bytes()


def demand_any(_manifest: Manifest) -> None: ...


def download(uri: str, *, opened: Callable[[Path], Path] = Path) -> Download[Path]:
    return Download(uri, name="a", demand=demand_any, opened=opened)


def entries(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.name != ".lock")


def test_making_one_asks_for_nothing_and_reading_downloads_once(uri: str, object_storage: Any) -> None:
    one, other = download(uri), download(uri)
    assert (one.key, object_storage.requests) == ("", [])
    assert one.read(shard) == CONTENT
    object_storage.requests.clear()
    assert one.read(shard) == CONTENT
    assert object_storage.requests == []
    assert other.read(shard) == CONTENT
    assert {request.rpartition("/")[2] for request in object_storage.requests} == {MANIFEST}


def test_a_damaged_or_vanished_copy_is_downloaded_again(uri: str, cache: Path) -> None:
    download(uri).read(shard)
    (copy,) = cache.rglob("c/0")
    copy.write_bytes(CONTENT[:-1])
    assert download(uri).read(shard) == CONTENT
    seen = []

    def use(folder: Path) -> bytes:
        seen.append(folder)
        if len(seen) == 1:
            (folder / "image" / "c" / "0").unlink()
        return shard(folder)

    assert download(uri).read(use) == CONTENT
    assert len(seen) == 2


def test_other_bytes_than_were_written_are_never_kept(uri: str, cache: Path) -> None:
    storage.write_bytes(f"{uri}/image/c/0", CONTENT[::-1])
    with pytest.raises(StoreError, match=r"a: image, shard c/0 holds other bytes than were written"):
        download(uri).read(shard)
    assert entries(cache) == []


def test_another_conversion_is_another_entry(uri: str, tmp_path: Path, cache: Path) -> None:
    download(uri).read(shard)
    put(uri, tmp_path / "a", b"new")
    assert download(uri).read(shard) == b"new"
    assert len(entries(cache)) == 2


def test_a_manifest_that_is_not_wanted_is_refused_before_anything_is_downloaded(uri: str, cache: Path) -> None:
    def demand(_manifest: Manifest) -> None:
        raise StoreError("a: is of another conversion")

    with pytest.raises(StoreError, match="is of another conversion"):
        Download(uri, name="a", demand=demand, opened=Path).fetch()
    assert not cache.exists() or entries(cache) == []


def test_a_cache_without_room_says_what_to_set(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSWEEP_CACHE_GB", "1e-5")
    with pytest.raises(
        ResourceError, match=r"a: needs .* GB in .*, which may hold 1e-05 GB in all; set SEGSWEEP_CACHE_GB higher"
    ):
        download(uri).read(shard)


def test_room_is_made_of_what_is_neither_read_nor_spared(
    uri: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGSWEEP_CACHE_GB", str(1.5 * len(CONTENT) / 1e9))
    one, other = download(uri), download(put(f"{uri}-2", tmp_path / "b", CONTENT[::-1]))
    assert one.read(shard) == CONTENT
    assert not other.fetch({one.key})
    assert entries(cache) == [one.key]

    def meanwhile(folder: Path) -> bytes:
        assert not other.fetch()
        return shard(folder)

    assert one.read(meanwhile) == CONTENT
    assert other.read(shard) == CONTENT[::-1]
    assert entries(cache) == [other.key]


def test_who_finds_no_room_waits_until_others_have_read(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGSWEEP_CACHE_GB", str(1.5 * len(CONTENT) / 1e9))
    one, other = download(uri), download(put(f"{uri}-2", tmp_path / "b", CONTENT[::-1]))
    found: list[bytes] = []
    waiting = threading.Thread(target=lambda: found.append(other.read(shard)))

    def meanwhile(folder: Path) -> bytes:
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        return shard(folder)

    assert one.read(meanwhile) == CONTENT
    waiting.join(30)
    assert found == [CONTENT[::-1]]
    monkeypatch.setattr(downloads, "ROOM_SECONDS", 0.0)
    with pytest.raises(ResourceError, match=r"a: no room in .* SEGSWEEP_CACHE_GB higher, or run fewer at a time"):
        other.read(lambda _: one.read(shard))


def test_processes_share_one_download(uri: str, object_storage: Any) -> None:
    code = f"""
from pathlib import Path
from segsweep.data.downloads import Download
Download({uri!r}, name="a", demand=lambda _: None, opened=Path).read(lambda folder: (folder / "image/c/0").read_bytes())
"""
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    gets = [request for request in object_storage.requests if request.startswith("GET") and request.endswith("/c/0")]
    assert len(gets) == 1


def test_a_full_disk_is_said_in_one_sentence(uri: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, folder: Path, **__: Any) -> None:
        (folder / "half").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "download", full)
    with pytest.raises(
        ResourceError, match=r"a: the disk of .*/cache is full; free space there, set SEGSWEEP_CACHE_GB"
    ):
        download(uri).read(shard)
    assert entries(cache) == []


@pytest.mark.usefixtures("hasty")
def test_a_storage_that_is_away_for_a_while_is_waited_for(
    uri: str, object_storage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    away = f"{uri.removeprefix('s3:/')}/image/c/0"
    object_storage.faults = {away: [503] * 2, f"{uri.removeprefix('s3:/')}/{MANIFEST}": [500]}
    assert download(uri).read(shard) == CONTENT
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].endswith("or try again later; work goes on once it answers")


@pytest.mark.usefixtures("hasty")
def test_a_storage_that_stays_away_is_given_up(uri: str, object_storage: Any, cache: Path) -> None:
    one = download(uri)
    object_storage.faults = {"/image/c/0": [503] * 100}
    with pytest.raises(StorageAwayError, match=r"image/c/0: the object storage failed \(UNKNOWN, status 503\)"):
        one.fetch()
    assert len(object_storage.faults["/image/c/0"]) == 97
    assert entries(cache) == []


def test_credentials_that_ran_out_are_named_at_once(uri: str, object_storage: Any) -> None:
    object_storage.faults = {"/image/c/0": [400] * 2}
    with pytest.raises(StoreError, match=r"image/c/0: .* credentials that have run out; renew AWS_SESSION_TOKEN"):
        download(uri).fetch()
    assert len(object_storage.faults["/image/c/0"]) == 1


def test_without_a_cache_folder_a_temporary_one_of_the_user_is_taken(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEGSWEEP_CACHE")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert download(uri).read(shard) == CONTENT
    folder = tmp_path / f"segsweep-cache-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rename(tmp_path / "other")
    folder.symlink_to(tmp_path / "other")
    with pytest.raises(ResourceError, match="belongs to somebody else; set SEGSWEEP_CACHE"):
        download(uri).read(shard)
