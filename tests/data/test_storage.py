"""Files in folders and buckets alike, and what is said when an object storage does not do as it should."""

import hashlib
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from segsweep.data import storage
from segsweep.errors import StoreError


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store may lie."""
    if request.param == "folder":
        (tmp_path / "store").mkdir()
        return str(tmp_path / "store")
    return f"{request.getfixturevalue('object_storage').uri}/store"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A local folder with three files, one of them large enough for several requests."""
    made = tmp_path / "made"
    (made / "a" / "c").mkdir(parents=True)
    (made / "a" / "c" / "0").write_bytes(bytes(range(256)) * 50_000)
    (made / "a" / "zarr.json").write_text("{}")
    (made / "manifest.json").write_text("[]")
    return made


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("s3://lab-data/head/neck/", "s3://lab-data/head/neck"),
        (Path("s3://lab-data/head"), "s3://lab-data/head"),
        ("s3://lab-data", "s3://lab-data"),
    ],
)
def test_an_address_has_one_spelling(given: str | Path, found: str) -> None:
    assert storage.address(given) == found
    assert storage.is_remote(found)


def test_an_address_of_a_folder_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.address("stores/a") == storage.address(Path("stores/a")) == str(tmp_path / "stores" / "a")
    assert not storage.is_remote(storage.address("stores/a"))


@pytest.mark.parametrize(
    "given", ["s3://", "s3://Lab/x", "s3://lab//x", "s3://lab/a/../b", "gs://lab/x", "https://lab/x"]
)
def test_other_addresses_are_refused(given: str) -> None:
    with pytest.raises(StoreError, match=r"expected .*s3://BUCKET/FOLDER"):
        storage.address(given)


def test_a_folder_of_a_user_who_is_not_there_is_refused() -> None:
    with pytest.raises(StoreError, match="~nobody-of-this-name/store: there is no such user"):
        storage.address("~nobody-of-this-name/store")


def test_a_password_in_an_address_is_not_repeated() -> None:
    with pytest.raises(StoreError) as caught:
        storage.address("s3://me:hunter2@lab/x")
    assert "hunter2" not in str(caught.value)


def test_files_are_written_replaced_and_found(place: str) -> None:
    assert storage.names(place) == []
    assert not storage.exists(f"{place}/index.json")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{place}/index.json")
    storage.write_bytes(f"{place}/index.json", b"old")
    storage.write_bytes(f"{place}/index.json", b"new")
    storage.write_bytes(f"{place}/plan.json", b"")
    assert storage.exists(f"{place}/index.json")
    assert not storage.exists(place)
    assert storage.read_bytes(f"{place}/index.json") == b"new"
    assert storage.names(place) == ["index.json", "plan.json"]


def test_the_sha256_of_several_files_is_that_of_their_bytes_in_a_row(place: str) -> None:
    for name in "abc":
        storage.write_bytes(f"{place}/{name}", name.encode() * 100_000)
    assert storage.sha256(f"{place}/a") == hashlib.sha256(b"a" * 100_000).hexdigest()
    both = hashlib.sha256(b"b" * 100_000 + b"c" * 100_000).hexdigest()
    assert storage.sha256(f"{place}/b", f"{place}/c") == both


def test_names_of_a_folder_that_is_not_there(place: str) -> None:
    assert storage.names(f"{place}/absent") == []


def test_a_folder_goes_up_and_comes_back(object_storage: Any, folder: Path, tmp_path: Path) -> None:
    uri = f"{object_storage.uri}/store/cases/a b"
    storage.upload(folder, uri=uri, last="manifest.json")
    assert storage.sizes(uri) == {"a/c/0": 12_800_000, "a/zarr.json": 2, "manifest.json": 2}
    assert storage.names(uri) == ["a", "manifest.json"]
    storage.download(uri, folder=tmp_path / "back")
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert (tmp_path / "back" / path.relative_to(folder)).read_bytes() == path.read_bytes()


def test_the_marker_goes_first_and_comes_last(object_storage: Any, folder: Path) -> None:
    uri = f"{object_storage.uri}/case"
    storage.upload(folder, uri=uri, last="manifest.json")
    storage.write_bytes(f"{uri}/grids/old", b"")
    object_storage.requests.clear()
    storage.upload(folder, uri=uri, last="manifest.json")
    changes = [request for request in object_storage.requests if not request.startswith(("GET", "HEAD"))]
    assert changes[0].startswith("DELETE /") and changes[0].endswith("/case/manifest.json")
    assert changes[-1].startswith("PUT /") and changes[-1].endswith("/case/manifest.json")
    assert "grids/old" not in storage.sizes(uri)


def test_only_what_is_asked_for_and_nothing_outside_comes_down(object_storage: Any, tmp_path: Path) -> None:
    uri = f"{object_storage.uri}/case"
    for name in ("a", "b"):
        storage.write_bytes(f"{uri}/{name}", name.encode())
    storage.write_bytes(f"{object_storage.uri}/outside", b"")
    into = tmp_path / "into"
    into.mkdir()
    storage.download(uri, folder=into, only=["a", "absent", "../outside", f"{tmp_path}/outside"])
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()] == ["into/a"]


def test_a_passing_fault_is_met_by_asking_again(object_storage: Any, folder: Path) -> None:
    object_storage.faults = {"PUT": [503, 500], "GET": [503]}
    storage.upload(folder, uri=f"{object_storage.uri}/case", last="manifest.json")
    assert storage.read_bytes(f"{object_storage.uri}/case/manifest.json") == b"[]"
    assert not any(object_storage.faults.values())


def test_a_lasting_fault_leaves_no_marker(object_storage: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://localhost:{object_storage.port}")
    uri = f"{object_storage.uri}/case"
    object_storage.faults = {"case/a/zarr.json": [500] * 20}
    with pytest.raises(
        StoreError, match=r"case/a/zarr\.json: the object storage failed \(UNKNOWN, status 500\); .* try again later"
    ):
        storage.upload(folder, uri=uri, last="manifest.json")
    assert not storage.exists(f"{uri}/manifest.json")


def test_a_bucket_that_does_not_exist_is_named(object_storage: Any) -> None:  # noqa: ARG001
    for ask in (storage.exists, lambda uri: storage.write_bytes(uri, b"")):
        with pytest.raises(StoreError, match=r"s3://absent/x: the bucket does not exist; correct its name"):
            ask("s3://absent/x")


def test_denied_access_says_which_variables_to_set(object_storage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{object_storage.uri}/x", b"")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://LOCALHOST:{object_storage.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stranger")
    for ask in (storage.exists, storage.read_bytes, storage.names, lambda uri: storage.write_bytes(uri, b"")):
        with pytest.raises(StoreError, match="denies access; set AWS_ACCESS_KEY_ID"):
            ask(f"{object_storage.uri}/x")


def test_no_credentials_at_all(object_storage: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://localhost:{object_storage.port}/")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(StoreError, match="denies access; set AWS_ACCESS_KEY_ID"):
        storage.read_bytes(f"{object_storage.uri}/x")


def test_an_endpoint_that_nobody_answers_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StoreError, match=r"http://127\.0\.0\.1:1 cannot be reached; check .*AWS_ENDPOINT_URL"):
        storage.exists("s3://lab/x")


def test_an_endpoint_that_accepts_and_stays_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "SILENT_SECONDS", 1)
    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(StoreError, match="cannot be reached"):
            storage.read_bytes("s3://lab/x")


def test_folders_need_no_object_storage(tmp_path: Path) -> None:
    code = (
        "import sys; from segsweep.data import storage;"
        f"storage.write_bytes({str(tmp_path / 'x')!r}, b'1'); storage.exists({str(tmp_path / 'x')!r});"
        "print('pyarrow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
