"""A folder that machines share by a bucket: what changed travels, what is gone goes, markers come last; a shared disk needs nothing."""

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from segsweep.data import mirror, storage
from segsweep.data.mirror import HERE, Mirror, shared, working
from segsweep.data.storage import Found
from segsweep.errors import StoreError
from segsweep.workspace import Workspace

CHECKPOINT = "checkpoints/epoch-00000"


@pytest.fixture
def one(object_storage: Any, tmp_path: Path) -> Mirror:
    """A machine's copy of a run's folder."""
    (tmp_path / "one").mkdir()
    return Mirror(uri=f"{object_storage.uri}/run", folder=tmp_path / "one")


@pytest.fixture
def other(one: Mirror, tmp_path: Path) -> Mirror:
    """Another machine's."""
    return Mirror(uri=one.uri, folder=tmp_path / "other")


def write(place: Mirror, **files: str) -> None:
    for name, content in files.items():
        path = place.folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def moved(object_storage: Any, method: str) -> list[str]:
    """Objects of the run that requests of this kind were for, since the last look."""
    found = [request.partition("/run/")[2] for request in object_storage.requests if request.startswith(method)]
    object_storage.requests.clear()
    return [name for name in found if name and not name.endswith("/")]


def test_what_changed_travels_and_nothing_else(object_storage: Any, one: Mirror, other: Mirror) -> None:
    write(one, a="1", record__epochs="2")
    one.send()
    assert sorted(moved(object_storage, "PUT")) == ["a", "record/epochs"]
    write(one, record__epochs="2\n3")
    one.send()
    assert moved(object_storage, "PUT") == ["record/epochs"]
    one.send()
    assert object_storage.requests == [], "nothing is asked where nothing changed"
    other.fetch()
    assert files(other.folder) == {"a": "1", "record/epochs": "2\n3"}
    write(other, b="4")
    other.send()
    assert moved(object_storage, "PUT") == ["b"], "what was fetched is not sent back"
    one.fetch()
    assert files(one.folder) == files(other.folder) == {"a": "1", "b": "4", "record/epochs": "2\n3"}


def test_what_is_as_it_was_stays(
    object_storage: Any, one: Mirror, other: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "SETTLED_NS", -(10**12))
    write(one, a="1", b="2")
    one.send()
    other.fetch()
    object_storage.requests.clear()
    other.fetch()
    assert moved(object_storage, "GET /") == []
    Mirror(uri=other.uri, folder=other.folder).fetch()
    assert moved(object_storage, "GET /") == [], "nor when the next process asks"
    (other.folder / "b").write_text("cut")
    other.fetch()
    assert set(moved(object_storage, "GET /")) == {"b"} and files(other.folder) == {"a": "1", "b": "2"}


def test_other_content_of_the_same_size_travels_both_ways(one: Mirror, other: Mirror) -> None:
    write(one, result="0.81")
    one.send()
    other.fetch()
    write(one, result="0.79")
    one.send()
    other.fetch()
    assert files(other.folder) == {"result": "0.79"}, "within the same second of the storage's clock"


def test_what_was_deleted_goes_there_and_here(object_storage: Any, one: Mirror, other: Mirror) -> None:
    write(
        one, a="1", checkpoints__best__weights="2", **{f"{CHECKPOINT}/weights": "3", f"{CHECKPOINT}/manifest.json": ""}
    )
    one.send()
    storage.write_bytes(f"{one.uri}/pictures/c01", b"another machine's")
    other.fetch()
    for name in ("weights", "manifest.json"):
        (one.folder / CHECKPOINT / name).unlink()
    (one.folder / CHECKPOINT).rmdir()
    (one.folder / "a").unlink()
    object_storage.requests.clear()
    one.send()
    assert moved(object_storage, "DELETE")[:2] == ["a", f"{CHECKPOINT}/manifest.json"], "the marker before the rest"
    assert sorted(storage.objects(one.uri)) == ["checkpoints/best/weights", "pictures/c01"]
    other.fetch()
    assert files(other.folder) == {"checkpoints/best/weights": "2", "pictures/c01": "another machine's"}


def test_only_what_is_wanted_is_touched(one: Mirror, other: Mirror) -> None:
    write(one, small="1", checkpoints__weights="2")
    one.send(lambda name: name != "small")
    assert sorted(storage.objects(one.uri)) == ["checkpoints/weights"]
    one.send()
    write(other, mine="3", checkpoints__old="4")
    other.fetch(lambda name: name == "small")
    assert files(other.folder) == {"small": "1", "mine": "3", "checkpoints/old": "4"}


def test_markers_come_last_and_a_sending_that_was_cut_off_leaves_none(object_storage: Any, one: Mirror) -> None:
    write(one, **{"result.json": "{}", "model/manifest.json": "{}", "model/weights": "w", "validation.json": "{}"})
    object_storage.faults = {"run/model/weights": [403]}
    with pytest.raises(StoreError, match="denies access"):
        one.send()
    assert not {"result.json", "model/manifest.json"} & storage.objects(one.uri).keys()
    object_storage.requests.clear()
    one.send()
    assert moved(object_storage, "PUT")[-2:] == ["model/manifest.json", "result.json"]


@pytest.mark.usefixtures("hasty")
def test_a_storage_that_is_away_is_waited_for(object_storage: Any, one: Mirror, other: Mirror) -> None:
    write(one, a="1")
    object_storage.faults = {"PUT": [503, 503]}
    one.send()
    object_storage.faults = {"GET": [503, 503]}
    other.fetch()
    assert files(other.folder) == {"a": "1"} and not any(object_storage.faults["GET"])
    write(one, a="2")
    object_storage.faults = {"PUT": [503] * 3}
    with pytest.raises(StoreError, match="status 503"):
        one.send()


def test_hidden_names_and_rays_records_stay(
    object_storage: Any, one: Mirror, other: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects, there = storage.objects, Found(size=4, mtime_ns=0)
    write(one, ray__train__x="1", tune__x="2", **{".a.partial/x": "3", "a/.lock": "", "a/b": "4"})
    one.send()
    assert sorted(storage.objects(one.uri)) == ["a/b"]
    storage.write_bytes(f"{object_storage.uri}/run/.hidden", b"")
    monkeypatch.setattr(
        storage, "objects", lambda uri: {**objects(uri), f"{tmp_path}/outside": there, "../outside": there}
    )
    (tmp_path / "outside").write_text("mine")
    before = (tmp_path / "outside").stat().st_mtime_ns
    other.fetch()
    assert files(other.folder) == {"a/b": "4"}
    assert (tmp_path / "outside").stat().st_mtime_ns == before, "names are no way out of the folder"


def test_parts_are_found_by_address_and_by_path(tmp_path: Path) -> None:
    home = shared(Workspace(root=tmp_path, uri="s3://lab/w"))
    trial = Mirror(uri="s3://lab/w/sweeps/x/trial-0003", folder=tmp_path / "sweeps" / "x" / "trial-0003")
    assert home.at(trial.uri) == home.at(trial.folder) == home.at(Path(trial.uri)) == trial
    here = shared(Workspace(root=tmp_path))
    assert here.at(trial.folder) == HERE.at(str(trial.folder)) == Mirror(uri=str(trial.folder), folder=trial.folder)


def test_on_a_shared_disk_nothing_is_copied(tmp_path: Path) -> None:
    write(HERE.at(tmp_path), a="1", logged="")
    with working(tmp_path) as place:
        assert place.folder == tmp_path
        place.fetch(lambda _name: True)
        (tmp_path / "a").unlink()
        place.send()
    assert files(tmp_path) == {"logged": ""}


def test_a_copy_is_a_processs_own_and_goes_with_it(
    one: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    copies = tmp_path / f"segsweep-work-{os.getuid()}"
    write(one, a="1")
    one.send()
    with working(one.uri) as first, working(Path(one.uri)) as second:
        first.fetch()
        assert files(first.folder) == {"a": "1"} and list(second.folder.iterdir()) == []
        assert first.folder.name == "run" and first.uri == second.uri == one.uri
        (copies / "of-a-killed-one" / "run").mkdir(parents=True)
        with working(one.uri):
            assert len([path for path in copies.iterdir() if path.is_dir()]) == 3
        assert (first.folder / "a").exists() and not (copies / "of-a-killed-one").exists()
    assert [path.name for path in copies.iterdir()] == [".lock"]
