from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segsweep.data.geometry import Geometry
from segsweep.data.readers import Stack
from segsweep.data.structures import encode
from segsweep.errors import InputError
from segsweep.evaluation.masks import MaskFiles, Submission
from segsweep.inference.writers import write_label_map

GRID = Geometry(shape=(2, 3, 4), spacing=(2.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1))


def test_files_are_masks_in_the_order_of_their_names(tmp_path: Path) -> None:
    for place, name in enumerate(("b", "a")):
        mask = np.zeros(GRID.shape, dtype=np.uint8)
        mask[0, 0, : 2 + place] = 1 + 2 * place
        write_label_map(mask, geometry=GRID, path=tmp_path / f"{name}.nii.gz")
    masks = MaskFiles(case="x", files={name: tmp_path / f"{name}.nii.gz" for name in "ba"})
    assert (masks.names, list(masks), len(masks), -1 in masks, 2 in masks) == (("a", "b"), [0, 1], 2, False, False)
    assert encode(masks, shape=GRID.shape).label[0, 0].tolist() == [2, 2, 1, 0]
    assert masks.largest == 3
    lower = replace(GRID, shape=(1, 3, 4))
    write_label_map(np.ones(lower.shape, dtype=np.uint8), geometry=lower, path=tmp_path / "b.nii.gz")
    with pytest.raises(InputError, match="x: mask 'b' lies on another grid than 'a'"):
        masks[1]


def test_a_submission_has_the_masks_of_a_task(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.mha: holds 7 masks; expected 45 or 2"):
        Submission(Stack(path=tmp_path / "a.mha", geometry=GRID, num_layers=7))
    masks = Submission(Stack(path=tmp_path / "a.mha", geometry=GRID, num_layers=45))
    assert (masks.names[0], masks.names[-1], -1 in masks) == ("Brain", "Trachea", False)
