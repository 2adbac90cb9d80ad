import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from segsweep.data.conversion import convert
from segsweep.data.geometry import Geometry
from segsweep.data.readers import read_labels
from segsweep.data.store import open_store
from segsweep.errors import InputError, RecipeError
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


def test_a_killed_conversion_leaves_no_half_case_and_resumes(
    phantom_raw: Path, phantom_store: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    code = f"""
        from pathlib import Path
        from segsweep import recipes
        from segsweep.data.building import build_case
        recipe = recipes.load("datasets", name="phantom")
        for source in recipe.cases(Path({str(phantom_raw)!r})):
            build_case(source, labels=recipe.LABELS, folder=Path({str(store)!r}) / "cases" / source.case_id)
    """
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
        cases = store / "cases"
        deadline = time.monotonic() + 60
        while not (cases.is_dir() and any(path.name.startswith(".") for path in cases.iterdir())):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.kill()
        process.wait()
        shutil.rmtree(cases / "phantom_000", ignore_errors=True)
    done = convert("phantom", raw=phantom_raw, store=store)
    assert done.store.digest == open_store(phantom_store).digest
    assert not [path for path in (store / "cases").iterdir() if path.name.startswith(".")]
