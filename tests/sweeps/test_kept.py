"""The last checkpoint and the best one so far, and which of them becomes the model."""

from pathlib import Path

import pytest
import torch
from torch import nn

from segsweep.errors import ModelError
from segsweep.learning import checkpoint
from segsweep.learning.checkpoint import Snapshot
from segsweep.learning.loop import Epoch
from segsweep.sweeps.kept import chosen, keep, passed_over


def epoch(number: int, *, dice: float | None) -> Epoch:
    metrics = {"loss": 1.0} if dice is None else {"loss": 1.0, "patch_dice_smoothed": dice}
    weights = {"w": torch.full((2,), float(number))}
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1).state_dict()
    snapshot = Snapshot(weights=weights, raw=weights, metrics=metrics, epoch=number, optimizer=optimizer)
    return Epoch(number=number, total=9, metrics=metrics, model=nn.Identity(), snapshot=lambda: snapshot)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    best = []
    for number, dice in enumerate((0.1, 0.4, 0.3, 0.4, 0.5, 0.2)):
        keep(epoch(number, dice=dice), checkpoints=tmp_path, document={})
        assert names(tmp_path) == ["best", f"epoch-{number:05d}"]
        best += names(tmp_path / "best")
    assert best == [f"epoch-{number:05d}" for number in (0, 1, 1, 1, 4, 4)]
    last, better = (chosen(tmp_path, select=select) for select in ("last", "best"))
    assert (last.epoch, better.epoch) == (5, 4)
    assert last.raw and last.optimizer and not better.raw and not better.optimizer


def test_without_validation_the_last_is_all_there_is(tmp_path: Path) -> None:
    for number in range(2):
        keep(epoch(number, dice=None), checkpoints=tmp_path, document={})
    assert names(tmp_path) == ["epoch-00001"]
    assert chosen(tmp_path, select="best").epoch == 1


def test_an_epoch_trained_again_changes_nothing(tmp_path: Path) -> None:
    """Its workers died between the two writes."""
    keep(epoch(0, dice=0.1), checkpoints=tmp_path, document={})
    keep(epoch(1, dice=0.2), checkpoints=tmp_path, document={})
    (tmp_path / "epoch-00001").rename(tmp_path / "epoch-00000")
    keep(epoch(1, dice=0.2), checkpoints=tmp_path, document={})
    assert names(tmp_path) == ["best", "epoch-00001"] and names(tmp_path / "best") == ["epoch-00001"]


def test_a_damaged_best_one_is_replaced_by_the_next(tmp_path: Path) -> None:
    keep(epoch(0, dice=0.9), checkpoints=tmp_path, document={})
    (tmp_path / "best" / "epoch-00000" / checkpoint.WEIGHTS).write_bytes(b"cut")
    keep(epoch(1, dice=0.1), checkpoints=tmp_path, document={})
    assert chosen(tmp_path, select="best").epoch == 1


def test_a_damaged_last_one_is_named_and_what_is_later_never_wins(tmp_path: Path) -> None:
    for number in range(3):
        keep(epoch(number, dice=0.7 + number / 10), checkpoints=tmp_path, document={})
    assert not passed_over(tmp_path, begin=checkpoint.latest(tmp_path))
    (tmp_path / "epoch-00002" / checkpoint.WEIGHTS).write_bytes(b"cut")
    begin = checkpoint.latest(tmp_path)
    assert (
        begin is None
        and passed_over(tmp_path, begin=begin) == "starting from its first epoch: found epoch-00002 damaged"
    )
    for number in range(2):
        keep(epoch(number, dice=0.1 + number / 10), checkpoints=tmp_path, document={})
    assert names(tmp_path) == ["best", "epoch-00001"] and names(tmp_path / "best") == ["epoch-00001"]
    (tmp_path / "epoch-00002").mkdir()
    begin = checkpoint.latest(tmp_path)
    assert passed_over(tmp_path, begin=begin) == "starting from checkpoint epoch-00001: found epoch-00002 damaged"


def test_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no manifest\.json found"):
        chosen(tmp_path, select="last")
