import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from segsweep.data.conversion import ConversionOptions, convert
from segsweep.data.integrity import Damage, deep_check
from segsweep.data.manifest import place
from segsweep.data.store import open_store
from segsweep.errors import StoreError

NUM_FLIPS = 200


@pytest.fixture
def store(okbp_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(okbp_store, tmp_path / "store"))


def files(store: Path) -> list[Path]:
    return sorted(path for path in store.rglob("*") if path.is_file() and path.stat().st_size)


def read_all(folder: Path) -> None:
    """What training, evaluation and prediction can read of a store."""
    store = open_store(folder)
    for case_id in store.cases:
        for spacing in (None, store.plan.spacing):
            grid = store.grid(case_id, spacing)
            assert grid.read_image().shape[1:] == grid.read_label().shape
            assert grid.foreground


def errors(folder: Path) -> list[Damage]:
    return [damage for damage in deep_check(folder) if damage.severity == "error"]


def test_an_intact_store_has_no_damage_and_progress_is_told(store: Path) -> None:
    told = []
    assert deep_check(store, progress=lambda done, total: told.append((done, total))) == ()
    assert told == [(1, 2), (2, 2)]
    assert sum("x" in path.name for path in (store / "cases").glob("*/grids/*")) >= 1
    read_all(store)


def test_a_flipped_byte_anywhere_is_found_and_never_read(store: Path) -> None:
    rng = np.random.default_rng(0)
    every = files(store)
    sizes = np.array([path.stat().st_size for path in every])
    drawn = rng.choice(len(every), NUM_FLIPS - len(every), p=sizes / sizes.sum())
    for index in (*range(len(every)), *drawn):
        path = every[index]
        original = path.read_bytes()
        changed = bytearray(original)
        changed[rng.integers(len(original))] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        found = deep_check(store)
        where = path.relative_to(store)
        if where.name == "plan.json":  # people may edit it, so a changed one is only told
            assert any("plan.json" in damage.message for damage in found)
        else:
            with pytest.raises(StoreError):
                read_all(store)
            assert any(names(damage, where) for damage in found), (where, found)
        path.write_bytes(original)
    assert deep_check(store) == ()


def names(damage: Damage, where: Path) -> bool:
    """Whether a damage is told with case, grid, array and shard of the file."""
    found = re.fullmatch(r"cases/([^/]+)/(?:grids/(?!native)([^/]+)/)?(.+)", where.as_posix())
    if found is None:
        return damage.severity == "error" and where.name in damage.message
    case_id, grid, file = found.groups(default="")
    told = place(file) in damage.message and grid in damage.message
    return damage.severity == "error" and damage.case_id == case_id and told


def test_missing_cut_and_foreign_files_are_told(store: Path) -> None:
    case = store / "cases" / "okbp_000"
    (case / "grids" / "native" / "image" / "c" / "0" / "0" / "0" / "0").unlink()
    (case / "grids" / "native" / "image" / "notes.txt").write_text("mine")
    (store / "cases" / "okbp_777").mkdir()
    (store / "cases" / ".okbp_001.0a1b2c3d.partial").mkdir()
    (store / "notes.txt").write_text("mine")
    found = deep_check(store)
    assert {(damage.severity, damage.case_id, damage.message.partition(";")[0]) for damage in found} == {
        ("error", "okbp_000", "okbp_000: grids/native/image, shard c/0/0/0/0 is missing"),
        ("note", "okbp_000", "okbp_000: grids/native/image/notes.txt does not belong to it"),
        ("note", "", "cases/okbp_777 is not in index.json"),
        ("note", "", "cases/.okbp_001.0a1b2c3d.partial is not in index.json"),
        ("note", "", "notes.txt does not belong to the store"),
    }


def test_a_missing_case_or_training_grid_is_an_error(store: Path) -> None:
    derived = next(path for path in (store / "cases").glob("*/grids/*") if path.name != "native")
    shutil.rmtree(derived)
    (only,) = errors(store)
    assert f"{derived.parents[1].name}/{derived.name}: no readable manifest" in only.message
    shutil.rmtree(store / "cases" / "okbp_000")
    assert "okbp_000" in {damage.case_id for damage in errors(store)}


def test_cases_are_checked_without_an_index_too(store: Path) -> None:
    (store / "index.json").write_text("{")
    victim = store / "cases" / "okbp_001" / "grids" / "native" / "image" / "c" / "0" / "0" / "0" / "0"
    victim.write_bytes(b"x")
    found = errors(store)
    assert "index.json" in found[0].message
    assert found[1].case_id == "okbp_001"


def test_a_swapped_case_is_named(store: Path) -> None:
    first, second = (store / "cases" / name for name in ("okbp_000", "okbp_001"))
    first.rename(store / "aside")
    second.rename(first)
    (store / "aside").rename(second)
    found = errors(store)
    assert {damage.case_id for damage in found} == {"okbp_000", "okbp_001"}
    assert "is of another conversion than index.json speaks of" in found[0].message


def test_no_store_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store found"):
        deep_check(tmp_path)


def test_a_damaged_case_is_converted_again_alone(okbp_store: Path, store: Path) -> None:
    raw = okbp_store.parent / "raw"
    before = open_store(store)
    image = store / "cases" / "okbp_001" / "grids" / "native" / "image" / "c" / "0" / "0" / "0" / "0"
    image.write_bytes(bytes(image.stat().st_size))
    done = convert("openkbp", raw=raw, store=store, options=ConversionOptions(depth="deep"))
    assert (done.written, done.kept) == (("okbp_001",), ("okbp_000",))
    assert done.store.digest == before.digest
    assert deep_check(store) == ()


def test_a_damaged_training_grid_is_derived_again(okbp_store: Path, store: Path) -> None:
    grid = next(path for path in (store / "cases").glob("*/grids/*") if path.name != "native")
    (grid / "image" / "c" / "0" / "0" / "0" / "0").unlink()
    assert errors(store)
    done = convert("openkbp", raw=okbp_store.parent / "raw", store=store)
    assert done.written == ()
    assert deep_check(store) == ()
