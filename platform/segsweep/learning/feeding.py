"""Batches made ahead of their use where the network takes them; for a GPU, on a stream of their own."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch

from segsweep.learning.batches import Batch, draw
from segsweep.learning.params import TrainingParams
from segsweep.learning.patches import TrainingCase
from segsweep.learning.prefetch import prefetch
from segsweep.learning.sampling import Turn
from segsweep.learning.setting import Setting

# On a CPU the network has all cores, and one thread suffices; a GPU leaves them to those that feed it.
GPU_WORKERS = 4


def feed(
    cases: Sequence[TrainingCase],
    *,
    setting: Setting,
    params: TrainingParams,
    turns: Iterable[Turn],
    unlabelled: Sequence[TrainingCase] = (),
) -> Generator[Batch, None, None]:
    """The batch of each turn, in order, with all its tensors on the setting's device."""
    device = setting.device
    # On the training's own stream every copy would wait for the steps that are queued there.
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def make(turn: Turn) -> Batch:
        with torch.cuda.stream(stream) if stream else nullcontext():
            batch = draw(cases, task=setting.task, params=params, turn=turn, unlabelled=unlabelled, device=device)
            batch = replace(batch, annotated=batch.annotated.to(device), source=batch.source.to(device))
        if stream:
            stream.synchronize()
        return batch

    for batch in prefetch(make, turns, workers=GPU_WORKERS if stream else 1, depth=GPU_WORKERS if stream else 2):
        if stream:
            for tensor in vars(batch).values():
                tensor.record_stream(torch.cuda.current_stream(device))
        yield batch
