"""Masks come back through `evaluate` as they went, whatever overlaps; no name of a structure leads out of the case's folder."""

import json
from pathlib import Path

import numpy as np
import pytest

from segsweep.data.geometry import Geometry
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.errors import InputError
from segsweep.evaluation.evaluation import evaluate
from segsweep.evaluation.sources import open_folder
from segsweep.inference import formats
from segsweep.inference.masks import demand_file_names, write_masks

GRID = Geometry(
    shape=(4, 5, 6), spacing=(2.5, 0.9, 1.1), origin=(-4.0, 8.0, 15.0), direction=(0, 0, -1, 1, 0, 0, 0, -1, 0)
)
# The tumour lies in the liver; nothing of the spleen is there.
TABLE = LabelTable(
    labels=LabelSet(structures=("liver", "left kidney", "tumour", "spleen")), atoms=((), (0,), (1,), (0, 2), (3,))
)


def table(*structures: str) -> LabelTable:
    return LabelTable(labels=LabelSet(structures=structures), atoms=((),))


@pytest.fixture
def found() -> formats.Segmentation:
    label = np.zeros(GRID.shape, dtype=np.uint8)
    label[:2], label[3, :2], label[1, 1:3, 2:4] = 1, 2, 3
    return formats.Segmentation(case_id="a", label=label, geometry=GRID, table=TABLE)


def test_evaluate_reads_them_as_it_reads_the_label_map(found: formats.Segmentation, tmp_path: Path) -> None:
    for kind in ("masks", "nii.gz"):
        (tmp_path / kind).mkdir()
        formats.find_format(kind).write(found, tmp_path / kind)
    values = {name: list(TABLE.values(name)) for name in TABLE.labels.structures}
    (tmp_path / "nii.gz" / "labels.json").write_text(json.dumps(values))
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["a"]
    assert sorted(path.name for path in (tmp_path / "masks" / "a").iterdir()) == [
        "left kidney.nii.gz", "liver.nii.gz", "spleen.nii.gz", "tumour.nii.gz",
    ]  # fmt: skip
    done = evaluate(tmp_path / "masks", reference=tmp_path / "nii.gz", profile="plain", out=tmp_path / "out")
    (scores,) = done.scores.values()
    assert {score.structure: (score.dice, score.volume_prediction_ml > 0) for score in scores} == {
        "liver": (1.0, True), "left kidney": (1.0, True), "tumour": (1.0, True), "spleen": (1.0, False),
    }  # fmt: skip


def test_an_older_folder_of_masks_is_replaced_and_nothing_else(found: formats.Segmentation, tmp_path: Path) -> None:
    write = formats.find_format("masks").write
    write(found, tmp_path)
    (tmp_path / "a" / "spleen.nii.gz").unlink()
    write(found, tmp_path)
    assert (tmp_path / "a" / "spleen.nii.gz").is_file()
    (tmp_path / "a" / "ct.nii.gz").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"holds 'ct\.nii\.gz', which is no mask"):
        write(found, tmp_path)
    assert (tmp_path / "a" / "ct.nii.gz").read_bytes() == b"mine"
    (tmp_path / "b").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "b")
    with pytest.raises(InputError, match="linked is there and no folder"):
        write_masks(found.label, geometry=GRID, table=TABLE, folder=tmp_path / "linked")


def test_a_case_that_cannot_be_written_whole_leaves_the_old_one(found: formats.Segmentation, tmp_path: Path) -> None:
    formats.find_format("masks").write(found, tmp_path)
    before = (tmp_path / "a" / "liver.nii.gz").read_bytes()
    with pytest.raises(InputError, match="the array is"):
        write_masks(found.label[:3], geometry=GRID, table=TABLE, folder=tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "liver.nii.gz").read_bytes() == before


def test_what_is_unfinished_is_no_case(found: formats.Segmentation, tmp_path: Path) -> None:
    formats.find_format("masks").write(found, tmp_path)
    (tmp_path / "a").rename(tmp_path / ".a.12ab34cd.partial")
    formats.find_format("masks").write(found, tmp_path)
    assert open_folder(tmp_path).cases == ("a",)


@pytest.mark.parametrize(
    "name",
    ("a/liver", "..", "../liver", "/etc/passwd", "C:liver", "a\\b", ".hidden", "", " ", "ends.", "line\nbreak", "nul", "COM1.x", "l" * 201),
)  # fmt: skip
def test_a_name_that_is_none_for_a_file_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no name for a file"):
        write_masks(np.zeros(GRID.shape, np.uint8), geometry=GRID, table=table("liver", name), folder=tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_joint_models_are_told_of_their_datasets_and_capitals_are_told_apart() -> None:
    with pytest.raises(InputError, match="--dataset"):
        demand_file_names(table("a/liver", "b/liver"))
    with pytest.raises(InputError, match="'GTVp' and 'gtvp' are one file"):
        demand_file_names(table("GTVp", "gtvp"))
    demand_file_names(table("GTVp", "Lens_L", "left kidney", "L4.5", "Rückenmark"))
