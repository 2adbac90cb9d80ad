"""Items made ahead of their use by threads, in the order asked for."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Key = TypeVar("Key")
Item = TypeVar("Item")


def prefetch(
    make: Callable[[Key], Item], keys: Iterable[Key], *, workers: int = 1, depth: int = 2
) -> Generator[Item, None, None]:
    """`make(key)` for every key, in order, made by `workers` threads up to `depth` items ahead of the one in use.

    An exception is raised here, in its item's turn. Closing the generator ends the threads after what they are making.
    """
    # Torch within a worker keeps to that worker's core: on busy cores its threads wait for each other many times longer than they work.
    # The number that a thread has not asked for yet is changed too, so ask here first: the caller keeps its threads.
    torch.get_num_threads()
    pending: deque[Future[Item]] = deque()
    with ThreadPoolExecutor(
        workers, thread_name_prefix="prefetch", initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        try:
            for key in keys:
                pending.append(pool.submit(make, key))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
