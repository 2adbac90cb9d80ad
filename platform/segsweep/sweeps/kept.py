"""Which checkpoints of a run are kept: the last one, to go on from; the best one so far; and which of them becomes the model.

`checkpoints/epoch-NNNNN` is the last one, `checkpoints/best/epoch-NNNNN` that of the best smoothed patch Dice. A new one is complete
before the one it replaces goes. One of a later epoch than the newest is left of a training that was damaged and begun again.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from segsweep.learning import checkpoint
from segsweep.learning.checkpoint import Snapshot
from segsweep.learning.loop import Epoch

BEST, MEASURE = "best", "patch_dice_smoothed"
# In a report: what `passed_over` says.
DAMAGED = "damaged"


def keep(epoch: Epoch, *, checkpoints: Path, document: Mapping[str, Any]) -> None:
    """Write this epoch's checkpoint in place of the one before it, and as the best one if it is better than that."""
    snapshot = epoch.snapshot()
    # The best one first: workers that die in between train this epoch again, and find it as good.
    if _is_best(snapshot, checkpoints=checkpoints):
        _replace(checkpoints / BEST, snapshot=snapshot.final(), document=document)
    _replace(checkpoints, snapshot=snapshot, document=document)


def chosen(checkpoints: Path, *, select: Literal["last", "best"]) -> Snapshot:
    """What becomes the model; the last epoch where none was measured. Raises ModelError without any intact checkpoint."""
    best = checkpoint.latest(checkpoints / BEST) if select == "best" else None
    return checkpoint.load(best or checkpoint.latest(checkpoints) or checkpoints)


def passed_over(checkpoints: Path, *, begin: Path | None) -> str:
    """What is said of checkpoints that are damaged, later than the one that a training goes on from; nothing where there are none."""
    later = [path.name for path in checkpoint.epoch_folders(checkpoints) if begin is None or path.name > begin.name]
    if not later:
        return ""
    where = f"checkpoint {begin.name}" if begin else "its first epoch"
    return f"starting from {where}: found {' and '.join(later)} damaged"


def _is_best(snapshot: Snapshot, *, checkpoints: Path) -> bool:
    if MEASURE not in snapshot.metrics:
        return False
    best = checkpoint.latest(checkpoints / BEST)
    if best is None:
        return True
    known = checkpoint.read_json(best / checkpoint.METRICS)
    return known["epoch"] > snapshot.epoch or snapshot.metrics[MEASURE] > known[MEASURE]


def _replace(folder: Path, *, snapshot: Snapshot, document: Mapping[str, Any]) -> None:
    written = checkpoint.epoch_folder(folder, epoch=snapshot.epoch)
    checkpoint.save(written, snapshot=snapshot, run=document)
    for other in checkpoint.epoch_folders(folder):
        if other != written:
            shutil.rmtree(other)
