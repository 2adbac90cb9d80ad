"""The cache stays below its limit and never shows half an entry, whoever uses it and whoever is killed."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from segsweep.data.cache import LocalCache, configured_cache
from segsweep.errors import ResourceError

SIZE = 1000


def filling(content: bytes = b"x", *, counted: list[bytes] | None = None) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "data").write_bytes(content * SIZE)
        if counted is not None:
            counted.append(content)

    return fill


def names(cache: LocalCache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir() if path.name != ".lock")


def age(cache: LocalCache, key: str, *, seconds: float) -> None:
    past = time.time() - seconds
    os.utime(cache.folder / key, (past, past))


@pytest.fixture
def cache(tmp_path: Path) -> LocalCache:
    return LocalCache(folder=tmp_path / "cache", limit_bytes=3 * SIZE)


def test_an_entry_is_filled_once(cache: LocalCache) -> None:
    counted: list[bytes] = []
    folders = [cache.entry("a", size=SIZE, fill=filling(b"a", counted=counted)) for _ in range(3)]
    assert folders == [cache.folder / "a"] * 3
    assert counted == [b"a"]
    assert (cache.folder / "a" / "data").read_bytes() == b"a" * SIZE


def test_the_least_recently_asked_for_goes_first(cache: LocalCache) -> None:
    for index, key in enumerate("abc"):
        cache.entry(key, size=SIZE, fill=filling())
        age(cache, key, seconds=100 - index)
    cache.entry("a", size=SIZE, fill=filling())
    cache.entry("d", size=SIZE, fill=filling())
    assert names(cache) == ["a", "c", "d"]
    cache.entry("e", size=2 * SIZE, fill=filling())
    assert names(cache) == ["d", "e"]


def test_what_cannot_fit_is_not_filled(cache: LocalCache) -> None:
    cache.entry("a", size=SIZE, fill=filling())
    counted: list[bytes] = []
    assert cache.entry("b", size=4 * SIZE, fill=filling(counted=counted)) is None
    assert names(cache) == ["a"]
    assert not counted


def test_entries_in_recent_use_are_spared(cache: LocalCache) -> None:
    for key in "abc":
        cache.entry(key, size=SIZE, fill=filling())
    assert cache.entry("d", size=SIZE, fill=filling(), spare_seconds=50) is None
    assert names(cache) == ["a", "b", "c"]
    age(cache, "b", seconds=100)
    assert cache.entry("d", size=SIZE, fill=filling(), spare_seconds=50) == cache.folder / "d"
    assert names(cache) == ["a", "c", "d"]


def test_what_is_read_or_spared_stays(cache: LocalCache) -> None:
    for index, key in enumerate("abc"):
        cache.entry(key, size=SIZE, fill=filling())
        age(cache, key, seconds=100 - index)
    with cache.reading("a") as first, cache.reading("nothing") as nothing:
        assert (first, nothing) == (cache.folder / "a", None)
        assert cache.entry("d", size=SIZE, fill=filling(), spare={"b"}) == cache.folder / "d"
        assert names(cache) == ["a", "b", "d"]
        assert cache.entry("e", size=SIZE, fill=filling(), spare={"b", "d"}) is None
        assert cache.entry("e", size=3 * SIZE, fill=filling()) is None
        assert names(cache) == ["a", "b", "d"]
    cache.entry("e", size=SIZE, fill=filling(), spare={"b", "d"})
    assert names(cache) == ["b", "d", "e"]


def test_a_mapping_outlives_its_entry(cache: LocalCache) -> None:
    folder = cache.entry("a", size=SIZE, fill=filling(b"a"))
    assert folder is not None
    mapped = np.memmap(folder / "data", dtype=np.uint8, mode="r")
    cache.drop("a")
    cache.drop("a")
    assert names(cache) == []
    assert (mapped == ord("a")).all()


def test_a_fill_that_fails_leaves_nothing(cache: LocalCache) -> None:
    def fail(folder: Path) -> None:
        (folder / "data").write_bytes(b"half")
        raise RuntimeError("the source is gone")

    def disk_full(folder: Path) -> None:
        (folder / "data").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RuntimeError, match="the source is gone"):
        cache.entry("a", size=SIZE, fill=fail)
    with pytest.raises(OSError, match="No space left"):
        cache.entry("a", size=SIZE, fill=disk_full)
    assert names(cache) == []
    assert cache.entry("a", size=SIZE, fill=filling()) == cache.folder / "a"


@pytest.mark.parametrize("key", ["", ".", "..", ".a", "a/b", "../a", "a\n", "-a", "a" * 200])
def test_a_key_is_a_plain_name(cache: LocalCache, key: str) -> None:
    with pytest.raises(ValueError, match="cannot name a cache entry"):
        cache.entry(key, size=1, fill=filling())
    assert not cache.folder.exists()


def program(folder: Path, body: str) -> "subprocess.Popen[bytes]":
    code = f"""
import fcntl, os, random, signal, sys, time
from pathlib import Path
from segsweep.data.cache import LocalCache
cache = LocalCache(folder=Path({str(folder)!r}), limit_bytes={3 * SIZE})
{body}
"""
    return subprocess.Popen([sys.executable, "-c", code])


def test_what_a_killed_process_left_is_cleared_away(cache: LocalCache) -> None:
    body = """
def fill(folder):
    (folder / "data").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
cache.entry("a", size=3000, fill=fill)
"""
    assert program(cache.folder, body).wait(60) == -signal.SIGKILL
    assert [name.startswith(".a.3000.") for name in names(cache)] == [True]
    assert cache.entry("b", size=SIZE, fill=filling(b"b")) == cache.folder / "b"
    assert names(cache) == ["b"]


def test_processes_that_want_the_same_entry_fill_it_once(cache: LocalCache, tmp_path: Path) -> None:
    body = f"""
def fill(folder):
    with open({str(tmp_path / "fills")!r}, "a") as log:
        log.write("x")
    (folder / "data").write_bytes(b"half")
    time.sleep(0.5)
    (folder / "data").write_bytes(b"a" * {SIZE})
found = cache.entry("a", size={SIZE}, fill=fill)
sys.exit(0 if (found / "data").read_bytes() == b"a" * {SIZE} else 1)
"""
    processes = [program(cache.folder, body) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert (tmp_path / "fills").read_text() == "x"


def test_processes_that_want_too_much_never_exceed_the_limit(cache: LocalCache) -> None:
    body = f"""
random.seed(os.getpid())
def fill(folder):
    (folder / "data").write_bytes(folder.name[1:2].encode() * {SIZE})
    with open(cache.folder / ".lock") as lock:  # no name changes while we look
        fcntl.flock(lock, fcntl.LOCK_EX)
        held = sum(file.stat().st_size for file in cache.folder.rglob("data"))
    assert held <= {3 * SIZE}, held
for _ in range(150):
    key = random.choice("abcdefgh")
    found = cache.entry(key, size={SIZE}, fill=fill)
    try:
        content = (found / "data").read_bytes() if found else None
    except FileNotFoundError:  # evicted in between: the caller would ask again
        continue
    assert content in (None, key.encode() * {SIZE}), (key, content)
"""
    processes = [program(cache.folder, body) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0] * 3
    assert len(names(cache)) == 3
    assert not [name for name in names(cache) if name.startswith(".")]


def test_the_environment_names_folder_and_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEGSWEEP_CACHE", raising=False)
    monkeypatch.delenv("SEGSWEEP_CACHE_GB", raising=False)
    assert configured_cache() is None
    monkeypatch.setenv("SEGSWEEP_CACHE", str(tmp_path))
    assert configured_cache() == LocalCache(folder=tmp_path, limit_bytes=50_000_000_000)
    monkeypatch.setenv("SEGSWEEP_CACHE_GB", "0.5")
    assert configured_cache() == LocalCache(folder=tmp_path, limit_bytes=500_000_000)
    for wrong in ("many", "-1", "0", "inf", "nan"):
        monkeypatch.setenv("SEGSWEEP_CACHE_GB", wrong)
        with pytest.raises(ResourceError, match=r"SEGSWEEP_CACHE_GB=.*expected gigabytes above 0"):
            configured_cache()
    monkeypatch.setenv("SEGSWEEP_CACHE_GB", "1")
    (tmp_path / "file").touch()
    monkeypatch.setenv("SEGSWEEP_CACHE", str(tmp_path / "file" / "folder"))
    with pytest.raises(ResourceError, match=r"SEGSWEEP_CACHE=.* cannot be made"):
        configured_cache()
