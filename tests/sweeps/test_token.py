"""The token is made once, closed to others, and shown where it is found."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from segsweep.sweeps import token

SHOWN = "import os; from segsweep.sweeps import token; print(token.use_token(), os.environ.get(token.MODE))"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without a token."""
    for name in (token.MODE, token.TOKEN, token.TOKEN_PATH):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_made_once_for_its_owner_alone(home: Path) -> None:
    assert token.find_token() == ""
    path = token.keep_token()
    assert path == home / ".ray" / "auth_token"
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    first = token.find_token()
    assert len(first) == 64
    token.keep_token()
    assert token.find_token() == first
    assert [found.name for found in path.parent.iterdir()] == ["auth_token"]


def test_the_file_that_ray_wrote_is_closed(home: Path) -> None:
    path = home / ".ray" / "auth_token"
    path.parent.mkdir(mode=0o755)
    path.write_text("of Ray\n")
    path.chmod(0o644)
    token.keep_token()
    assert (mode(path), mode(path.parent), token.find_token()) == (0o600, 0o700, "of Ray")


def test_the_environment_counts_before_the_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token.keep_token()
    monkeypatch.setenv(token.TOKEN_PATH, str(home / "mine"))
    assert token.find_token() == ""
    (home / "mine").write_text("in another file")
    assert token.find_token() == "in another file"
    monkeypatch.setenv(token.TOKEN, "in the environment")
    assert token.find_token() == "in the environment"


def test_a_token_is_shown_unless_the_user_says_otherwise() -> None:
    """In a process of its own: one that has joined a cluster with another token would be ended by Ray."""
    for made, mode_here, shown, mode_then in (
        (False, None, False, None),
        (True, None, True, "token"),
        (True, "disabled", False, "disabled"),
    ):
        if made:
            token.keep_token()
        environment = os.environ | ({} if mode_here is None else {token.MODE: mode_here})
        said = subprocess.run(
            [sys.executable, "-c", SHOWN], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        assert said.stdout == f"{token.find_token() if shown else ''} {mode_then}\n"
