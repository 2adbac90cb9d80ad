"""Names of cases say nothing, stay the same with one key, and differ with another."""

import multiprocessing
from pathlib import Path

import pytest

from segsweep.data.pseudonyms import VARIABLE, project_key, pseudonym
from segsweep.errors import InputError

KEY, OTHER = b"k" * 32, b"o" * 32


def test_names_depend_on_key_and_identifiers_alone() -> None:
    assert pseudonym("p1", "1.2", key=KEY) == pseudonym("p1", "1.2", key=KEY)
    names = {
        pseudonym("p1", "1.2", key=KEY),
        pseudonym("p1", "1.2", key=OTHER),
        pseudonym("p11", ".2", key=KEY),
        pseudonym("p1", key=KEY),
    }
    assert len(names) == 4
    assert all(len(name) == 12 and set(name) <= set("0123456789abcdef") for name in names)


def test_the_key_file_is_made_once_and_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    key = project_key()
    path = tmp_path / "segsweep" / "case-key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(key) == 64 and key == project_key()
    assert [file.name for file in path.parent.iterdir()] == ["case-key"]
    path.unlink()
    assert project_key() != key


def test_processes_agree_on_one_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert len(set(pool.map(_key, range(8)))) == 1


def _key(_: int) -> bytes:
    return project_key()


def test_a_key_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, " a long text of our own \n")
    assert project_key() == b"a long text of our own"
    monkeypatch.setenv(VARIABLE, "short")
    with pytest.raises(InputError, match=f"{VARIABLE}: holds a key of 5 characters; expected at least 16"):
        project_key()


def test_a_key_file_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file" / "folder"))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=rf"case-key cannot be made or read \(NotADirectoryError\).*set {VARIABLE}"):
        project_key()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "segsweep").mkdir()
    (tmp_path / "segsweep" / "case-key").write_bytes(b"\xff" * 40)
    with pytest.raises(InputError, match=rf"\(UnicodeDecodeError\).*set {VARIABLE}"):
        project_key()
