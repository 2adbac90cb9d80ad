"""What is said of a database: never its passwords, always in one line, and at once when it cannot be used."""

import sys
from pathlib import Path
from typing import Any

import pytest

from segsweep.errors import ResourceError
from segsweep.models.databases import demand_database, public, sqlite_file
from segsweep.models.tracking import connect
from segsweep.workspace import Workspace


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:secret@host/runs", "postgresql://host/runs"),
        ("postgresql+psycopg://me:se/cr@et@host:5432/runs", "postgresql+psycopg://host:5432/runs"),
        ("postgresql:///runs?user=me&password=secret&host=/run", "postgresql:///runs?user=me&password=***&host=/run"),
        ("could not reach https://me:secret@host/a or http://b/c", "could not reach https://host/a or http://b/c"),
        ("['s3://key:secret@bucket']", "['s3://bucket']"),
        ("https://token@host/team", "https://host/team"),
        ("http://host:5000/team and s3://bucket/a", "http://host:5000/team and s3://bucket/a"),
        ("models:/unet@champion in sqlite:////a/b@c.db", "models:/unet@champion in sqlite:////a/b@c.db"),
    ],
)
def test_passwords_are_left_out_of_addresses_and_of_texts_with_them(text: str, shown: str) -> None:
    assert public(text) == shown


@pytest.mark.parametrize(
    ("address", "file"),
    [
        ("sqlite:////a/b c.db", "/a/b c.db"),
        ("sqlite:///b.db?timeout=60", "b.db"),
        ("sqlite://", None),
        ("sqlite:b.db", None),
        ("postgresql:///runs", None),
    ],
)
def test_the_file_of_a_database_is_known_whatever_stands_behind_it(address: str, file: str | None) -> None:
    assert sqlite_file(address) == (None if file is None else Path(file))


def test_a_database_that_cannot_be_used_is_one_sentence(
    postgres: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    postgres.create("asked")
    demand_database(postgres.network("asked"), variable="V")
    demand_database(postgres.socket("asked"), variable="V")
    for address, sentence in {
        "postgresql://me:secret@127.0.0.1:1/runs": "'postgresql://127.0.0.1:1/runs' cannot be used .*refused",
        postgres.network(
            "asked", password="secret"
        ): "password authentication failed for user .* see that it runs and V is",
        postgres.network("nowhere"): 'database "nowhere" does not exist',
        "postgresql://me:secret@127.0.0.1:port/runs": "cannot be used",
    }.items():
        with pytest.raises(ResourceError, match=sentence) as raised:
            demand_database(address, variable="V")
        assert not [word for word in ("secret", postgres.password, "\n") if word in str(raised.value)]
    # MLflow itself asks again for minutes.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgres.network("nowhere"))
    with pytest.raises(ResourceError, match="MLFLOW_TRACKING_URI is right"):
        connect(Workspace(root=tmp_path))


def test_a_driver_that_is_not_installed_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ResourceError, match=r"its driver psycopg is not installed; pip install 'segsweep\[cluster\]'"):
        demand_database("postgresql://me:secret@host/runs", variable="V")
