"""Batches made ahead of their use where the network takes them; for a GPU, on a stream of their own."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from functools import partial

import torch

from segsweep.learning.arrivals import Arrivals
from segsweep.learning.batches import Batch, Located, cut_out, locate
from segsweep.learning.params import TrainingParams
from segsweep.learning.patches import TrainingCase
from segsweep.learning.prefetch import prefetch
from segsweep.learning.sampling import Turn
from segsweep.learning.setting import Setting

# On a CPU the network has all cores, and one thread suffices; a GPU leaves them to those that feed it.
GPU_WORKERS = 4
# Cases that lie elsewhere are fetched so many batches before their use, by so many threads, each for a batch of its own.
AHEAD, FETCHERS = 16, 8

_Numbered = tuple[int, Located]


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
    arrivals = Arrivals()

    def find(numbered: tuple[int, Turn]) -> _Numbered:
        number, turn = numbered
        near = partial(arrivals.fetch, number=number)
        try:
            return number, locate(cases, task=setting.task, params=params, turn=turn, unlabelled=unlabelled, near=near)
        except BaseException:
            arrivals.close()  # the feeding ends here: batches that come later must not wait for this one
            raise

    def make(found: _Numbered) -> Batch:
        number, located = found
        try:
            with torch.cuda.stream(stream) if stream else nullcontext():
                batch = cut_out(located, task=setting.task, params=params, device=device)
                batch = replace(batch, annotated=batch.annotated.to(device), source=batch.source.to(device))
            if stream:
                stream.synchronize()
            return batch
        finally:
            arrivals.done(number)

    workers, depth = (GPU_WORKERS, GPU_WORKERS) if stream else (1, 2)
    with ExitStack() as stack:
        if any(case.distant for case in (*cases, *unlabelled)):
            found = stack.enter_context(closing(prefetch(find, enumerate(turns), workers=FETCHERS, depth=AHEAD)))
            stack.callback(arrivals.close)
            batches = prefetch(make, found, workers=workers, depth=depth)
        else:
            batches = prefetch(lambda numbered: make(find(numbered)), enumerate(turns), workers=workers, depth=depth)
        for batch in stack.enter_context(closing(batches)):
            if stream:
                for tensor in vars(batch).values():
                    tensor.record_stream(torch.cuda.current_stream(device))
            yield batch
