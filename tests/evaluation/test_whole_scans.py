"""Scores of whole scans: what counts in each of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from segsweep.data.structures import LabelSet
from segsweep.evaluation.whole_scans import score_case
from segsweep.inference.predictor import Member, Predictor
from segsweep.run import Run
from segsweep.sweeps.preparing import prepare


class Everywhere(torch.nn.Module):
    """Every structure at every voxel, the last one the most certain."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [torch.ones_like(image[:, :1]) * torch.arange(1, self.outputs + 1).view(1, -1, 1, 1, 1)]


def test_whole_scans_are_scored_in_their_datasets_structures_without_ignored_voxels(
    tiny_store: Callable[..., Path], tmp_path: Path
) -> None:
    label = np.zeros((16, 32, 32), dtype=np.uint8)
    label[:8] = 1
    partly = np.where(np.arange(16)[:, None, None] < 8, label, 9)
    liver = LabelSet(structures=("liver",))
    pair = f"{tiny_store('a', labels=liver, cases={'c': partly}, ignore=9)},{tiny_store('b', labels=liver, cases={'c': label})}"
    chosen = prepare(Run(trainable="unet", store=pair, fold="all", params={"patch_size": [16, 32, 32], "features": 4}))
    assert chosen.params.head == "sigmoid"
    predictor = Predictor(members=(Member(model=Everywhere(2), task=chosen.task, weight=1.0),))
    picture = tmp_path / "overlays" / "c.png"
    assert score_case(predictor, store=chosen.store, case_id="a.c", picture=picture).dice == {"a/liver": 1.0}
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert score_case(predictor, store=chosen.store, case_id="b.c").dice == {"b/liver": pytest.approx(2 / 3)}
