"""Dice on patches of the validation cases after every epoch: counts pooled over all of them, then one Dice a structure."""

import dataclasses

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from segsweep.learning.feeding import feed
from segsweep.learning.losses import dice_counts
from segsweep.learning.precision import computing
from segsweep.learning.sampling import Turn
from segsweep.learning.setting import Setting, plain, rank, ranks

# Key of the validation draws: the same patches after every epoch, whatever the number of epochs.
VALIDATION = 1 << 30


@torch.no_grad()
def pseudo_dice(model: nn.Module, *, setting: Setting) -> dict[str, float]:
    """`patch_dice/STRUCTURE` and their mean `patch_dice` (0 to 1), of all workers together; empty without validation cases."""
    steps = setting.params.validation_iterations
    if not setting.validation or not steps:
        return {}
    # By quota, datasets share these steps equally: those of a training's epoch are many more, and the first of them may leave one out.
    params = dataclasses.replace(plain(setting.params), iterations=steps)
    model.eval()
    structures = setting.task.table.labels.structures
    counts = torch.zeros(len(structures), 3, dtype=torch.float64, device=setting.device)
    turns = (Turn(seed=setting.seed, epoch=VALIDATION, step=step, rank=rank(), ranks=ranks()) for step in range(steps))
    for batch in feed(setting.validation, setting=setting, params=params, turns=turns):
        with computing(params.precision, device=setting.device):
            logits = model(batch.image, batch.source) if getattr(model, "takes_source", False) else model(batch.image)
        counts += dice_counts(logits[0], atoms=batch.atoms, annotated=batch.annotated, task=setting.task)
    if dist.is_initialized():
        dist.all_reduce(counts)
    hits, false, missed = counts.cpu().T
    dice = torch.where(hits + missed + false > 0, 2 * hits / (2 * hits + false + missed).clamp(min=1), torch.nan)
    seen = {
        f"patch_dice/{name}": value
        for name, value in zip(structures, dice.tolist(), strict=True)
        if not np.isnan(value)
    }
    return {"patch_dice": float(np.mean(list(seen.values()))) if seen else 0.0, **seen}
