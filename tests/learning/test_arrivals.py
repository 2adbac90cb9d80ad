"""Cases come in the order of the batches that need them; a later batch takes nothing from an earlier one, and nobody waits for ever."""

import dataclasses
import threading
from collections.abc import Callable, Collection
from itertools import cycle
from typing import Any

import pytest

from segsweep.errors import StoreError
from segsweep.learning.arrivals import Arrivals
from segsweep.learning.feeding import feed
from segsweep.learning.patches import TrainingCase
from segsweep.learning.sampling import Turn
from segsweep.learning.setting import Setting


class Shelf:
    """A cache of so many places, where what is not spared makes room."""

    def __init__(self, places: int) -> None:
        self.places, self.held, self.lock = places, list[str](), threading.Lock()

    def case(self, key: str) -> TrainingCase:
        grid: Any = None
        return TrainingCase(case_id=key, grid=grid, annotated=(), distant=Item(key, self))


class Item:
    def __init__(self, key: str, shelf: Shelf) -> None:
        self.key, self._shelf = key, shelf

    def fetch(self, spare: Collection[str] = (), /) -> bool:
        held = self._shelf.held
        if self.key == "damaged":
            raise StoreError("damaged")
        with self._shelf.lock:
            if self.key not in held:
                idle = [key for key in held if key not in spare]
                if len(held) == self._shelf.places:
                    if not idle:
                        return False
                    held.remove(idle[0])
                held.append(self.key)
        return True


@pytest.fixture
def shelf() -> Shelf:
    return Shelf(2)


def waiting(arrivals: Arrivals, shelf: Shelf, *, keys: str, number: int) -> threading.Thread:
    thread = threading.Thread(
        target=lambda: arrivals.fetch([shelf.case(key) for key in keys], number=number), daemon=True
    )
    thread.start()
    thread.join(0.2)
    return thread


def test_a_later_batch_waits_until_an_earlier_one_is_made(shelf: Shelf) -> None:
    arrivals = Arrivals()
    arrivals.fetch([shelf.case("a"), shelf.case("b"), shelf.case("a")], number=0)
    later = waiting(arrivals, shelf, keys="c", number=1)
    assert (later.is_alive(), shelf.held) == (True, ["a", "b"])
    arrivals.done(0)
    later.join(10)
    assert (later.is_alive(), shelf.held) == (False, ["b", "c"])


def test_an_earlier_batch_takes_what_a_later_one_fetched(shelf: Shelf) -> None:
    arrivals = Arrivals()
    arrivals.fetch([shelf.case("c"), shelf.case("d")], number=1)
    arrivals.fetch([shelf.case("a")], number=0)
    assert shelf.held == ["d", "a"]


def test_the_first_batch_never_waits(shelf: Shelf) -> None:
    Arrivals().fetch([shelf.case(key) for key in "abc"], number=0)
    assert shelf.held == ["a", "b"]


def test_what_one_batch_may_not_fetch_ends_the_feeding_and_no_other_waits_for_it(
    ball_setting: Callable[..., Setting], shelf: Shelf
) -> None:
    setting = ball_setting()
    cases = [
        dataclasses.replace(case, distant=shelf.case(name).distant)
        for case, name in zip(cycle(setting.training), ("a", "b", "damaged", "c", "d"), strict=False)
    ]
    turns = [Turn(seed=setting.seed, step=step) for step in range(40)]
    with pytest.raises(StoreError, match="damaged"):
        list(feed(cases, setting=setting, params=setting.params, turns=turns))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_nobody_waits_when_no_batch_is_wanted(shelf: Shelf) -> None:
    arrivals = Arrivals()
    arrivals.fetch([shelf.case("a"), shelf.case("b")], number=0)
    later = waiting(arrivals, shelf, keys="c", number=1)
    arrivals.close()
    later.join(10)
    assert not later.is_alive()
