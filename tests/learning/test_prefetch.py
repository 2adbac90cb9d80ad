import itertools
import threading
import time

import pytest
import torch

from segsweep.errors import InputError
from segsweep.learning.prefetch import prefetch


def alive():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("workers", [1, 3])
def test_items_keep_the_order_of_their_keys_whatever_they_take(workers):
    def make(key):
        time.sleep(0.002 * (key % 3))
        return key * key

    assert list(prefetch(make, range(30), workers=workers, depth=4)) == [key * key for key in range(30)]
    assert alive() == []


def test_several_threads_make_items_at_the_same_time():
    together = threading.Barrier(2, timeout=10)
    assert list(prefetch(lambda _: together.wait() >= 0, range(4), workers=2, depth=2)) == [True] * 4


def test_keys_without_end_are_taken_only_as_far_as_needed():
    made = []
    items = prefetch(lambda key: made.append(key) or key, itertools.count(), depth=2)
    assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
    items.close()
    assert alive() == []
    assert len(made) <= 7


def test_an_error_is_raised_in_its_turn():
    def make(key):
        if key == 1:
            raise InputError("case_7: damaged")
        return key

    items = prefetch(make, range(5))
    assert next(items) == 0
    with pytest.raises(InputError, match="case_7"):
        next(items)
    assert alive() == []


def test_torch_keeps_to_one_core_in_a_worker_and_to_its_number_here():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert list(prefetch(lambda _: torch.get_num_threads(), range(3))) == [1, 1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
