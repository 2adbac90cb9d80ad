import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from segsweep.data.conversion import ConversionOptions, convert, derive
from segsweep.data.geometry import Geometry
from segsweep.data.integrity import deep_check
from segsweep.data.joint import open_stores
from segsweep.data.lock import locked
from segsweep.data.readers import read_labels
from segsweep.data.store import open_store
from segsweep.data.structures import LabelSet
from segsweep.errors import InputError, RecipeError, StoreError
from segsweep.inference.writers import write_image, write_label_map

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture
def raw(phantom_raw: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(phantom_raw, tmp_path / "raw"))


def test_a_second_conversion_keeps_everything(phantom_raw: Path, phantom_store: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(phantom_store, tmp_path / "store"))
    before = open_store(store).digest
    done = convert("phantom", raw=phantom_raw, store=store)
    assert done.written == ()
    assert len(done.kept) == 16
    assert done.store.digest == before


def test_the_driver_loads_no_readers_of_voxels() -> None:
    code = "import sys, segsweep.data.conversion; print({'SimpleITK', 'scipy', 'pydicom', 'torch'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == "set()"


def test_a_changed_scan_is_converted_again_alone(raw: Path, phantom_store: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(phantom_store, tmp_path / "store"))
    victim = sorted((raw / "images").glob("phantom_003*"))[0]
    other = sorted((raw / "images").glob("phantom_003*"))[1]
    shutil.copy(other, victim)
    done = convert("phantom", raw=raw, store=store)
    assert done.written == ("phantom_003",)
    grid = done.store.grid("phantom_003", done.store.plan.spacing)
    image = grid.read_image()
    assert np.array_equal(image[0], image[1])


def test_an_edited_plan_is_kept(phantom_raw: Path, phantom_store: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(phantom_store, tmp_path / "store"))
    text = (store / "plan.json").read_text()
    batch_size = open_store(store).plan.batch_size
    (store / "plan.json").write_text(text.replace(f'"batch_size": {batch_size}', '"batch_size": 7'))
    assert convert("phantom", raw=phantom_raw, store=store).store.plan.batch_size == 7


def test_folds_of_a_file_and_another_planner(phantom_raw: Path, phantom_store: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(phantom_store, tmp_path / "store"))
    before = open_store(store)
    first, second, *_ = before.candidates
    plan = before.plan  # is read from disk at first use
    (tmp_path / "folds.json").write_text(json.dumps([[first], [second]]))
    options = ConversionOptions(folds=tmp_path / "folds.json", planner="resenc_l")
    done = convert("phantom", raw=phantom_raw, store=store, options=options).store
    assert (done.validation(0), done.validation(1)) == ((first,), (second,))
    assert set(done.training(1)) == set(done.held_out("train")) - {second}
    with pytest.raises(StoreError, match="no fold 2; expected 0 to 1, or 'all'"):
        done.validation(2)
    assert done.digest != before.digest, "another split is another store"
    # The large network's plan may take batches of any share of a small data set.
    assert done.plan.batch_size > plan.batch_size
    again = convert("phantom", raw=phantom_raw, store=store).store
    assert again.given_folds == ((first,), (second,))
    assert again.plan == plan
    (tmp_path / "folds.json").write_text(json.dumps([["nobody"]]))
    with pytest.raises(InputError, match=r"folds\.json: no 'nobody' among annotated training cases"):
        convert("phantom", raw=phantom_raw, store=store, options=options)
    with pytest.raises(InputError, match="no 'resnet' among planners"):
        convert("phantom", raw=phantom_raw, store=store, options=ConversionOptions(planner="resnet"))
    assert open_store(store).digest == again.digest


def test_a_file_of_folds_is_read_before_any_case_is_converted(okbp_raw: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a JSON file"):
        convert("openkbp", raw=okbp_raw, store=tmp_path / "store", options=ConversionOptions(folds=tmp_path))
    assert not (tmp_path / "store").exists()


def test_bad_cases_are_named_and_the_others_go_on(raw: Path, tmp_path: Path) -> None:
    images = sorted((raw / "images").glob("*_0000.nii.gz"))
    images[0].write_bytes(images[0].read_bytes()[:-2000])
    geometry = Geometry(
        shape=(8, 9, 10), spacing=(1.0, 1.0, 1.0), origin=(0, 0, 0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)
    )
    write_image(np.arange(720, dtype=np.int16).reshape(8, 9, 10), geometry=geometry, path=images[1])
    label = sorted((raw / "organs").glob("*.nii.gz"))[2]
    foreign = read_labels(label)
    foreign.voxels[3, 3, 3] = 99
    write_label_map(foreign.voxels, geometry=foreign.geometry, path=label)
    done = convert("phantom", raw=raw, store=tmp_path / "store")
    assert sorted(done.failures) == ["phantom_000", "phantom_001", "phantom_002"]
    assert len(done.store.cases) == 13
    assert "phantom_000_0000.nii.gz" in done.failures["phantom_000"]
    assert "phantom_001" in done.failures["phantom_001"]
    assert "voxels (z, y, x)" in done.failures["phantom_001"]
    assert "holds label value 99" in done.failures["phantom_002"]
    assert not [path for path in (tmp_path / "store" / "cases").iterdir() if path.name.startswith(".")]


def test_nothing_usable_leaves_no_index(raw: Path, tmp_path: Path) -> None:
    for path in (raw / "images").iterdir():
        path.write_bytes(b"not a scan")
    with pytest.raises(InputError, match="none of 16 cases could be converted"):
        convert("phantom", raw=raw, store=tmp_path / "store")
    assert not (tmp_path / "store" / "index.json").exists()


def test_another_dataset_or_a_foreign_folder_is_refused(phantom_raw: Path, phantom_store: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="is not empty and not a store"):
        convert("phantom", raw=phantom_raw, store=tmp_path / "mine")
    with pytest.raises(RecipeError, match="did you mean 'phantom'"):
        convert("phantoms", raw=phantom_raw, store=phantom_store)


@pytest.mark.parametrize("where", ["raw", "raw/study"])
def test_raw_scans_in_the_place_of_cases_are_never_replaced(where: str, phantom_raw: Path, tmp_path: Path) -> None:
    raw = Path(shutil.copytree(phantom_raw, tmp_path / "cases" / where))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="lies where the store keeps its cases"):
        convert("phantom", raw=raw, store=tmp_path)
    with pytest.raises(InputError, match="cases: holds other things than a store's cases"):
        convert("phantom", raw=phantom_raw, store=tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_store_beside_or_in_the_raw_folder_goes_on_where_it_ended(okbp_raw: Path) -> None:
    for store in (okbp_raw / "store", okbp_raw.parent / "cases"):
        convert("openkbp", raw=okbp_raw, store=store)
        (store / "index.json").unlink()
        (store / "cases" / ".okbp_000.12ab.partial").mkdir()
        assert convert("openkbp", raw=okbp_raw, store=store).written == ()


def test_what_failed_is_not_written_into_the_store(raw: Path, tmp_path: Path) -> None:
    victim = sorted((raw / "images").glob("*_0000.nii.gz"))[0]
    victim.write_bytes(b"secret")
    done = convert("phantom", raw=raw, store=tmp_path / "store")
    assert list(done.failures) == ["phantom_000"]
    for path in (tmp_path / "store").rglob("*"):
        assert "phantom_000" not in path.name
        assert not path.is_file() or b"phantom_000" not in path.read_bytes()


def test_a_case_whose_files_became_bad_stays_as_it_was(okbp_raw: Path, tmp_path: Path) -> None:
    before = convert("openkbp", raw=okbp_raw, store=tmp_path / "store").store
    (okbp_raw / "images" / "okbp_000.nii.gz").write_bytes(b"not a scan")
    done = convert("openkbp", raw=okbp_raw, store=tmp_path / "store")
    assert "okbp_000.nii.gz" in done.failures["okbp_000"]
    assert done.failures["okbp_000"].endswith("(the store keeps its earlier conversion)")
    assert (done.written, done.kept) == ((), ("okbp_001",))
    assert done.store.digest == before.digest


def test_cases_that_are_gone_are_named_and_kept_when_they_come_back(okbp_raw: Path, tmp_path: Path) -> None:
    before, stated = convert("openkbp", raw=okbp_raw, store=tmp_path / "store"), okbp_raw / "cases.json"
    assert before.gone == ()
    everything = stated.read_text()
    one = json.loads(everything)
    one["cases"].pop()
    stated.write_text(json.dumps(one))
    done = convert("openkbp", raw=okbp_raw, store=tmp_path / "store")
    assert (done.kept, done.gone, tuple(done.store.cases)) == (("okbp_000",), ("okbp_001",), ("okbp_000",))
    stated.write_text(everything)
    again = convert("openkbp", raw=okbp_raw, store=tmp_path / "store")
    assert (again.written, again.kept, again.gone) == ((), ("okbp_000", "okbp_001"), ())


def test_bytes_and_time_are_told(okbp_raw: Path, tmp_path: Path) -> None:
    done = convert("openkbp", raw=okbp_raw, store=tmp_path / "store")
    files = [path for path in (tmp_path / "store" / "cases").rglob("*") if path.is_file()]
    assert done.num_bytes == sum(path.stat().st_size for path in files if path.name != "manifest.json")
    assert done.raw_bytes == 2 * (12 * 20 * 18 + 12 * 20 * 19)
    assert done.seconds > 0


def test_a_second_conversion_at_the_same_time_is_refused(okbp_raw: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "cases").mkdir(parents=True)
    with locked(store), pytest.raises(StoreError, match="another conversion is writing into this store"):
        convert("openkbp", raw=okbp_raw, store=store)
    assert not list((store / "cases").iterdir())


def test_a_deleted_index_is_written_again_and_a_stale_plan_with_it(okbp_raw: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    before = convert("openkbp", raw=okbp_raw, store=store).store
    plan = before.plan
    (store / "index.json").unlink()
    done = convert("openkbp", raw=okbp_raw, store=store)
    assert done.written == ()
    assert done.store.digest == before.digest
    shutil.copy(okbp_raw / "images" / "okbp_001.nii.gz", okbp_raw / "images" / "okbp_000.nii.gz")
    shutil.copy(okbp_raw / "labels" / "okbp_001.nii.gz", okbp_raw / "labels" / "okbp_000.nii.gz")
    assert convert("openkbp", raw=okbp_raw, store=store).store.plan != plan


# Converts without Ray, in processes that are killed just before their nth change of a file: creating, renaming, deleting.
KILLER = """
import os, random, signal, sys
from pathlib import Path
from segsweep.data import building, conversion, parallel

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
count, end = 0, 0

def hook(event, arguments):
    global count
    written = event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wax"
    if event in CHANGES or written:
        count += 1
        if count == end:
            os.kill(os.getpid(), signal.SIGKILL)

def one_after_another(pieces, *, work, label, progress):
    return {piece.name: parallel._attempt(work, piece) for piece in pieces}

def converted(raw, store, at):
    global count, end
    child = os.fork()
    if child == 0:
        count, end = 0, at
        sys.addaudithook(hook)
        conversion.convert("openkbp", raw=raw, store=store)
        print(count, flush=True)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

conversion.run_all = one_after_another
raw, out = Path(sys.argv[1]), Path(sys.argv[2])
for number, share in enumerate(map(float, sys.argv[4:])):
    assert converted(raw, out / f"killed{number}", round(share * int(sys.argv[3]))) == -signal.SIGKILL
    assert converted(raw, out / f"killed{number}", 0) == 0
if len(sys.argv) == 4:
    assert converted(raw, out / "undisturbed", 0) == 0
"""
NUM_KILLS = 20


def test_conversions_killed_anywhere_resume_to_the_same_store(okbp_raw: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLER, str(okbp_raw), str(tmp_path)]
    changes = int(subprocess.run([*command, "0"], check=True, capture_output=True, text=True).stdout)
    assert changes > 50
    shares = np.random.default_rng(0).uniform(1 / changes, 1, NUM_KILLS)
    subprocess.run([*command, str(changes), *map(str, shares)], check=True, capture_output=True, text=True)
    expected = content(tmp_path / "undisturbed")
    for number in range(NUM_KILLS):
        assert content(tmp_path / f"killed{number}") == expected
        assert deep_check(tmp_path / f"killed{number}") == ()


def content(store: Path) -> dict[str, bytes]:
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_a_killed_conversion_on_ray_leaves_no_half_case_and_resumes(
    phantom_raw: Path, phantom_store: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    arguments = ["convert", "phantom", str(phantom_raw), "--store", str(store)]
    command = [sys.executable, "-c", f"from segsweep.cli import main; main({arguments!r})"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not list(store.glob("cases/[!.]*")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
    assert not (store / "index.json").exists()
    done = convert("phantom", raw=phantom_raw, store=store)
    assert done.kept
    assert done.store.digest == open_store(phantom_store).digest
    assert deep_check(store) == ()


def test_grids_that_two_want_at_once_are_written_once(okbp_raw: Path, tmp_path: Path) -> None:
    store = convert("openkbp", raw=okbp_raw, store=tmp_path / "store").store
    told: list[str] = []
    spacing = (4.0, 7.0, 7.0)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(derive, store, spacing=spacing, progress=lambda *done: told.append(done[0])) for _ in "ab"]
    for call in calls:
        call.result()
    assert told == ["training grids"] * len(store.cases)


def test_grids_of_another_spacing_are_derived_in_every_joined_store(tiny_store: Callable[..., Path]) -> None:
    label = np.zeros((16, 32, 32), dtype=np.uint8)
    label[4:12, 8:24, 8:24] = 1
    liver = LabelSet(structures=("liver",))
    joint = open_stores(",".join(str(tiny_store(name, labels=liver, cases={"c": label})) for name in ("a", "b")))
    told: list[tuple[str, int, int]] = []
    for _ in range(2):
        derive(joint, spacing=(2.0, 2.0, 2.0), progress=lambda *done: told.append(done))
    assert told == [("training grids", 1, 1)] * 2
    for case_id in ("a.c", "b.c"):
        assert joint.grid(case_id, (2.0, 2.0, 2.0)).shape == (16, 16, 16)
