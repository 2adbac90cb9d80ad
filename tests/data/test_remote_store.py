"""A store in a bucket: the same as one in a folder, and what is said when something in the bucket is not as it should be."""

import contextlib
import dataclasses
import json
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow.fs import S3FileSystem

from segsweep import recipes
from segsweep.cli import main
from segsweep.data import building, storage
from segsweep.data.conversion import ConversionOptions, convert, derive
from segsweep.data.integrity import deep_check
from segsweep.data.joint import is_store, open_stores
from segsweep.data.store import open_store
from segsweep.errors import InputError, StoreError
from segsweep.evaluation.evaluation import evaluate
from segsweep.inference.scans import find_scans
from segsweep.inference.writers import write_label_map
from segsweep.learning.batches import Batch
from segsweep.learning.feeding import feed
from segsweep.learning.loop import Setting, train
from segsweep.learning.method import default_stages
from segsweep.learning.patches import TrainingCase
from segsweep.learning.sampling import Turn
from segsweep.run import Run
from segsweep.sweeps.preparing import Prepared, prepare
from segsweep.sweeps.worker import training_cases

pytestmark = pytest.mark.usefixtures("cluster")

CASES = ("phantom_000", "phantom_001", "phantom_002", "phantom_003")
SHARD = "cases/phantom_001/grids/native/image/c/0/0/0/0"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four phantoms."""
    folder = tmp_path_factory.mktemp("remote") / "raw"
    recipes.load("datasets", name="phantom").make(folder, cases=len(CASES), seed=0)
    return folder


@pytest.fixture(scope="module")
def local(raw: Path, cluster: None) -> Path:  # noqa: ARG001
    """They, converted into a folder."""
    return Path(convert("phantom", raw=raw, store=raw.parent / "store").store.uri)


@pytest.fixture
def uri(local: Path, object_storage: Any) -> str:
    """The same store in a bucket, copied there as it is."""
    address = f"{object_storage.uri}/stores/phantom"
    (local / ".lock").unlink(missing_ok=True)
    storage.upload(local, uri=address, last="index.json")
    object_storage.requests.clear()
    return address


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Downloads go into a folder of the test's own."""
    monkeypatch.setenv("SEGSWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def flip(address: str, *, at: int = 100) -> None:
    content = bytearray(storage.read_bytes(address))
    content[at] ^= 1
    storage.write_bytes(address, bytes(content))


def remove(address: str) -> None:
    S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"]).delete_file(address.removeprefix("s3://"))


def puts(object_storage: Any) -> set[str]:
    """Names of the objects that were written; those that end with a slash are empty and stand for folders."""
    written = [request for request in object_storage.requests if request.startswith("PUT") and request[-1] != "/"]
    return {request.partition("/stores/phantom/")[2] for request in written}


def entries(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if not path.name.startswith("."))


def mapped(cache: Path) -> str:
    """The lines of /proc that tell which files of the cache this process has mapped."""
    return "\n".join(line for line in Path("/proc/self/maps").read_text().splitlines() if str(cache) in line)


def test_a_conversion_into_a_bucket_writes_what_one_into_a_folder_does(
    raw: Path, local: Path, object_storage: Any
) -> None:
    done = convert("phantom", raw=raw, store=f"{object_storage.uri}/stores/phantom/")
    here = open_store(local)
    assert done.store.uri == f"{object_storage.uri}/stores/phantom"
    assert (done.written, done.failures) == (CASES, {})
    assert (done.store.digest, done.store.plan, done.store.cases) == (here.digest, here.plan, here.cases)
    files = [path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file() and path.name != ".lock"]
    assert sorted(storage.sizes(done.store.uri)) == sorted(files)
    assert all(storage.read_bytes(f"{done.store.uri}/{name}") == (local / name).read_bytes() for name in files)
    last = [request for request in object_storage.requests if request.startswith("PUT")][-1]
    assert last.endswith("/stores/phantom/index.json")


def test_voxels_are_those_of_the_folder(local: Path, uri: str) -> None:
    here, there = open_store(local), open_store(uri)
    assert (there.digest, there.plan, there.table, there.training(0)) == (
        here.digest,
        here.plan,
        here.table,
        here.training(0),
    )
    region = (slice(3, 20), slice(10, 44), slice(5, 37))
    for case_id in CASES:
        for spacing in (None, here.plan.spacing):
            one, two = here.grid(case_id, spacing), there.grid(case_id, spacing)
            assert one.geometry == two.geometry
            assert np.array_equal(one.read_image(), two.read_image())
            assert np.array_equal(one.read_label(region), two.read_label(region))
            assert all(np.array_equal(one.foreground[value], two.foreground[value]) for value in one.foreground)


def test_opening_takes_one_read(uri: str, object_storage: Any) -> None:
    open_store(uri)
    assert [request for request in object_storage.requests if request.startswith("GET")] == [
        f"GET /{uri.removeprefix('s3://')}/index.json"
    ]


def test_the_cache_stays_below_its_limit_and_what_is_open_can_be_read(
    uri: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(uri)
    image = store.grid("phantom_000").read_image()
    size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    monkeypatch.setenv("SEGSWEEP_CACHE_GB", str(1.5 * size / 1e9))
    early = [store.grid(case_id) for case_id in CASES]
    for grid in early * 3:
        assert grid.read_label((slice(0, 4), slice(0, 4), slice(0, 4))).shape == (4, 4, 4)
        assert len(entries(cache)) == 1
        assert mapped(cache), "the next read would map the file anew"
        assert "(deleted)" not in mapped(cache), "it would hold the disk of what was dropped"
    assert np.array_equal(early[0].read_image(), image)


def test_grids_stay_mapped_where_the_cache_has_room_for_more(uri: str, cache: Path) -> None:
    grids = [open_store(uri).grid(case_id) for case_id in CASES]
    for grid in grids:
        grid.read_label((slice(0, 4), slice(0, 4), slice(0, 4)))
    assert len(entries(cache)) == len(CASES)
    assert all(str(entry) in mapped(cache) for entry in entries(cache))


def test_open_grids_outlive_their_downloads(local: Path, uri: str, cache: Path) -> None:
    here, there = open_store(local), open_store(uri)
    grids = {case_id: there.grid(case_id) for case_id in CASES}
    region = (slice(3, 20), slice(10, 44), slice(5, 37))
    for _ in range(2):
        for case_id, grid in grids.items():
            assert np.array_equal(grid.read_label(region), here.grid(case_id).read_label(region))
        for name in entries(cache):
            shutil.rmtree(cache / name)


def test_training_cases_ask_for_nothing_before_they_are_drawn(uri: str, object_storage: Any, cache: Path) -> None:
    prepared = prepare(Run(trainable="unet", store=uri))
    object_storage.requests.clear()
    cases = training_cases(prepared.store, case_ids=prepared.store.training("all"), task=prepared.task)
    assert [case.grid.shape for case in cases]
    assert object_storage.requests == []
    assert not cache.exists()


@pytest.mark.parametrize("gigabytes", [1.0, 1.2e-3])
def test_batches_are_those_of_the_folder_whatever_the_cache_holds(
    local: Path, uri: str, cache: Path, monkeypatch: pytest.MonkeyPatch, gigabytes: float
) -> None:
    monkeypatch.setenv("SEGSWEEP_CACHE_GB", str(gigabytes))
    most, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.001):
            with contextlib.suppress(FileNotFoundError):
                most.append(sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        here, there = (list(fed(store)) for store in (str(local), uri))
    finally:
        stop.set()
        watching.join()
    for one, other in zip(here, there, strict=True):
        assert all(torch.equal(value, vars(other)[name]) for name, value in vars(one).items())
    assert max(most) <= gigabytes * 1e9
    assert (len(entries(cache)) < len(CASES)) == (gigabytes < 1)


def fed(store: str) -> Iterator[Batch]:
    """The first batches of a training on all cases, with one case as if nothing were annotated in it."""
    params = {"patch_size": [16, 32, 32], "batch_size": 2}
    prepared = prepare(Run(trainable="unet", store=store, params={**params, "features": 4, "levels": 3}))
    cases = training_cases(prepared.store, case_ids=prepared.store.training("all"), task=prepared.task)
    *labelled, last = cases
    setting = setting_of(prepared, training=labelled)
    turns = [Turn(seed=1, step=step) for step in range(8)]
    blank = dataclasses.replace(last, annotated=(False,) * len(last.annotated))
    yield from feed(labelled, setting=setting, params=prepared.params, turns=turns, unlabelled=[blank])


def setting_of(
    prepared: Prepared, *, training: Sequence[TrainingCase], validation: Sequence[TrainingCase] = ()
) -> Setting:
    return Setting(
        model=recipes.load("trainables", name="unet").build(prepared.params, prepared.task),
        task=prepared.task,
        params=prepared.params,
        stages=default_stages(prepared.params),
        loss=prepared.method.loss(prepared.params, task=prepared.task),
        training=training,
        validation=validation,
        seed=0,
        device=torch.device("cpu"),
    )


def test_a_second_conversion_keeps_everything(raw: Path, uri: str, object_storage: Any) -> None:
    before = open_store(uri).digest
    done = convert("phantom", raw=raw, store=uri)
    assert (done.written, done.kept, done.store.digest) == ((), CASES, before)
    assert puts(object_storage) == {"plan.json", "index.json"}


def test_an_edited_plan_is_kept(raw: Path, uri: str) -> None:
    text = storage.read_bytes(f"{uri}/plan.json").replace(b'"batch_size": ', b'"batch_size": 1')
    storage.write_bytes(f"{uri}/plan.json", text)
    convert("phantom", raw=raw, store=uri)
    assert storage.read_bytes(f"{uri}/plan.json") == text


def test_a_flipped_byte_is_named_and_mended(raw: Path, uri: str, object_storage: Any, cache: Path) -> None:
    flip(f"{uri}/{SHARD}")
    store = open_store(uri)
    with pytest.raises(StoreError, match=r"phantom_001: grids/native/image, shard c/0/0/0/0 holds other bytes"):
        store.grid("phantom_001").read_label()
    assert entries(cache) == []
    store.grid("phantom_000").read_label()
    damage = deep_check(uri)
    assert [(one.severity, one.case_id) for one in damage] == [("error", "phantom_001")]
    assert "grids/native/image, shard c/0/0/0/0" in damage[0].message
    object_storage.requests.clear()
    done = convert("phantom", raw=raw, store=uri, options=ConversionOptions(depth="deep"))
    assert (done.written, done.store.digest) == (("phantom_001",), store.digest)
    assert {name.split("/")[1] for name in puts(object_storage) if name.startswith("cases/")} == {"phantom_001"}
    assert deep_check(uri) == ()
    store.grid("phantom_001").read_label()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (SHARD, r"phantom_001: grids/native/image, shard c/0/0/0/0 is missing"),
        ("cases/phantom_001/manifest.json", r"phantom_001: no readable manifest\.json"),
    ],
)
def test_a_missing_object_is_named_and_made_again(raw: Path, uri: str, name: str, message: str) -> None:
    remove(f"{uri}/{name}")
    store = open_store(uri)
    with pytest.raises(StoreError, match=message):
        store.grid("phantom_001").read_label()
    assert convert("phantom", raw=raw, store=uri).written == ("phantom_001",)
    store.grid("phantom_001").read_label()


def test_a_failed_upload_leaves_the_case_out_until_it_succeeds(
    raw: Path, local: Path, uri: str, object_storage: Any
) -> None:
    remove(f"{uri}/{SHARD}")
    object_storage.faults = {f"PUT /{uri.removeprefix('s3://')}/cases/phantom_001/manifest.json": [403]}
    done = convert("phantom", raw=raw, store=uri)
    assert list(done.failures) == ["phantom_001"]
    assert "manifest.json: the object storage denies access" in done.failures["phantom_001"]
    assert "phantom_001" not in open_store(uri).cases
    again = convert("phantom", raw=raw, store=uri)
    assert (again.written, again.store.digest) == (("phantom_001",), open_store(local).digest)


def test_a_case_that_was_converted_again_does_not_fit_an_old_index(uri: str) -> None:
    store = open_store(uri)
    with storage.mirrored(store.home("phantom_002")) as other:
        storage.upload(other, uri=store.home("phantom_001"), last="manifest.json")
    with pytest.raises(StoreError, match=r"phantom_001/native: is of another conversion than index\.json speaks of"):
        store.grid("phantom_001").read_label()


def test_grids_of_another_spacing_are_derived_in_the_bucket(local: Path, uri: str) -> None:
    store, spacing = open_store(uri), (6.0, 4.0, 4.0)
    assert not store.has_grid("phantom_000", spacing=spacing)
    with pytest.raises(StoreError, match="phantom_000/6x4x4: no readable manifest"):
        store.grid("phantom_000", spacing).read_label()
    derive(store, spacing=spacing)
    derive(open_store(local), spacing=spacing)
    for case_id in CASES:
        there, here = store.grid(case_id, spacing), open_store(local).grid(case_id, spacing)
        assert there.geometry == here.geometry
        assert np.array_equal(there.read_image(), here.read_image())


def test_a_grid_that_another_node_derived_meanwhile_is_left_alone(
    uri: str, object_storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, spacing, real = f"{uri}/cases/phantom_000", (7.0, 5.0, 5.0), building._derive

    def slowly(*args: Any, **values: Any) -> None:
        monkeypatch.setattr(building, "_derive", real)
        building.derive_grid(case, spacing=spacing)
        real(*args, **values)

    monkeypatch.setattr(building, "_derive", slowly)
    building.derive_grid(case, spacing=spacing)
    written = [one for one in object_storage.requests if one.startswith("PUT") and one.endswith("7x5x5/manifest.json")]
    assert len(written) == 1


def test_places_without_a_store(raw: Path, object_storage: Any) -> None:
    with pytest.raises(StoreError, match=r"s3://.*/x: no store found .*--store s3://bucket-.*/x"):
        open_store(f"{object_storage.uri}/x")
    with pytest.raises(StoreError, match="the bucket does not exist"):
        open_store("s3://nobodys-bucket/x")
    storage.write_bytes(f"{object_storage.uri}/mine/letter.txt", b"dear")
    with pytest.raises(InputError, match="is not empty and not a store"):
        convert("phantom", raw=raw, store=f"{object_storage.uri}/mine")
    with pytest.raises(StoreError, match="no store found"):
        deep_check(f"{object_storage.uri}/mine")


def test_the_command_line_takes_addresses(
    uri: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["check", f"{uri}/", "--deep"]) in (0, 1)
    assert f"{uri}/quality.html" in capsys.readouterr().out.replace("\n", "")
    assert storage.read_bytes(f"{uri}/quality.html").startswith(b"<!doctype html>")
    assert deep_check(uri) == ()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    assert main(["train", "unet", uri]) == 2
    said = capsys.readouterr().err
    assert "cannot be reached" in said
    assert "Traceback" not in said


def test_stores_in_a_bucket_and_in_a_folder_are_one(local: Path, uri: str) -> None:
    both = f"{local},{uri}"
    assert is_store(both)
    joint = open_stores(both)
    assert len(joint.cases) == 2 * len(CASES)
    name = "phantom.phantom_000"
    assert np.array_equal(joint.grid(name).read_image(), open_store(uri).grid("phantom_000").read_image())


def test_prediction_and_evaluation_read_a_bucket(uri: str, tmp_path: Path) -> None:
    store = open_store(uri)
    (case,) = find_scans(uri, channels=store.channels)
    assert case.case_id == "phantom_003"
    scan = case.load()
    assert scan.image.shape == (2, *scan.geometry.shape)
    label = scan.source.reorientation.invert(store.grid(case.case_id).read_label())
    write_label_map(label, geometry=scan.source, path=tmp_path / "p" / "phantom_003.nii.gz")
    names = {name: list(store.table.values(name)) for name in store.table.labels.structures}
    (tmp_path / "p" / "labels.json").write_text(json.dumps(names))
    found = evaluate(tmp_path / "p", reference=uri, profile="plain", out=tmp_path / "out")
    assert {score.dice for score in found.scores["p"]} == {1.0}


def test_a_network_learns_from_a_bucket(uri: str) -> None:
    params = {"epochs": 1, "iterations": 1, "validation_iterations": 1, "patch_size": [16, 32, 32], "batch_size": 2}
    prepared = prepare(Run(trainable="unet", store=uri, params={**params, "features": 4, "levels": 3}))
    store, task = prepared.store, prepared.task
    setting = setting_of(
        prepared,
        training=training_cases(store, case_ids=store.training(0), task=task),
        validation=training_cases(store, case_ids=store.validation(0), task=task),
    )
    (epoch,) = train(setting)
    assert np.isfinite(epoch.metrics["loss"])
