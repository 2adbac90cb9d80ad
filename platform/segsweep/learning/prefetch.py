"""Items made ahead of their use by threads, in the order asked for."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Key = TypeVar("Key")
Item = TypeVar("Item")


def prefetch(
    make: Callable[[Key], Item], keys: Iterable[Key], *, workers: int = 1, depth: int = 2
) -> Generator[Item, None, None]:
    """`make(key)` for every key, in order, made by `workers` threads up to `depth` items ahead of the one in use.

    An exception is raised here, in its item's turn. Closing the generator ends the threads after what they are making.
    """
    pending: deque[Future[Item]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="prefetch") as pool:
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
