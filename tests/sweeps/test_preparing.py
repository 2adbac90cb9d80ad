from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from segsweep.data.planning import Normalisation
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.errors import RecipeError
from segsweep.learning.method import load_method
from segsweep.learning.task import Task
from segsweep.run import Run
from segsweep.sweeps.preparing import Prepared, needed_memory, prepare

LABEL = np.zeros((16, 32, 32), dtype=np.uint8)
LABEL[4:12, 8:24, 8:24] = 1


@pytest.fixture
def joined(tiny_store: Callable[..., Path]) -> Callable[..., str]:
    """joined(one=("CT",), other=("T2",)): the address of stores with these channels, joined."""

    def make(**channels: tuple[str, ...]) -> str:
        labels = LabelSet(structures=("liver",))
        made = (tiny_store(name, labels=labels, cases={"c": LABEL}, channels=given) for name, given in channels.items())
        return ",".join(map(str, made))

    return make


def test_stores_of_as_many_channels_keep_their_own_rules(joined: Callable[..., str]) -> None:
    run = Run(trainable="unet", store=joined(ct=("CT",), mr=("T2",)), fold="all", params={"preset": "small"})
    task = prepare(run).task
    assert task.widths == (1,)
    assert [task.scans(source).normalisation[0].scheme for source in (0, 1)] == ["ct", "z-score"]


@pytest.mark.parametrize(("trainable", "patch_size"), [("unet", (16, 48, 48)), ("swin_unetr", (32, 64, 64))])
def test_a_presets_patch_covers_small_scans_in_steps_of_the_network(
    tiny_store: Callable[..., Path], trainable: str, patch_size: tuple[int, ...]
) -> None:
    label = np.zeros((16, 40, 40), dtype=np.uint8)
    label[4:12, 8:24, 8:24] = 1
    pair = (tiny_store(name, labels=LabelSet(structures=("liver",)), cases={"c": label}) for name in "ab")
    run = Run(trainable=trainable, store=",".join(map(str, pair)), fold="all", params={"preset": "small"})
    assert prepare(run).task.patch_size == patch_size


def test_stores_whose_scans_are_alike_share_one_rule(joined: Callable[..., str]) -> None:
    run = Run(trainable="unet", store=joined(a=("CT",), b=("ceCT",)), fold="all", params={"preset": "small"})
    task = prepare(run).task
    assert task.own == ()
    assert task.scans(0) == task.scans(1)


def test_other_numbers_of_channels_need_a_network_and_batches_for_them(joined: Callable[..., str]) -> None:
    store = joined(ct=("CT",), mr=("T1", "T2"))
    with pytest.raises(RecipeError, match="the joined stores have 1 and 2 channels, and unet takes one number"):
        prepare(Run(trainable="unet", store=store, fold="all", params={"preset": "small"}))
    params = {"preset": "small", "part": "upstream", "sampling": "sqrt"}
    with pytest.raises(RecipeError, match=r"sampling=sqrt mixes datasets in a batch, .* choose sampling=quota"):
        prepare(Run(trainable="uniseg", store=store, fold="all", params=params))
    three = joined(ct3=("CT",), mr3=("T1", "T2", "FLAIR"))
    with pytest.raises(RecipeError, match="the store has 3 channels; uniseg has first convolutions for 1, 2 and 4"):
        prepared = prepare(Run(trainable="uniseg", store=three, fold="all", params={**params, "sampling": "quota"}))
        prepared.method.build(prepared.params, task=prepared.task)


def test_unlabelled_patches_need_memory_only_where_there_are_some() -> None:
    method, labels = load_method("coarse_to_fine"), LabelSet(structures=("liver",))
    task = Task(
        channels=("CT",), table=LabelTable(labels=labels, atoms=((), (0,))), head="softmax", patch_size=(16, 16, 16),
        spacing=(3.0, 2.0, 2.0), normalisation=(Normalisation(scheme="ct"),),
    )  # fmt: skip

    def needed(*annotated: tuple[str, ...], **values: object) -> int:
        cases = {str(number): SimpleNamespace(annotated=names) for number, names in enumerate(annotated)}
        store: Any = SimpleNamespace(cases=cases, training=lambda _fold: tuple(cases))
        params = method.params({"preset": "small", "patch_size": (16, 16, 16), "batch_size": 2, **values})
        run = Run(trainable="coarse_to_fine", store="store")
        return needed_memory(Prepared(run=run, store=store, method=method, params=params, task=task))

    every, some = (("liver",), ("liver",)), (("liver",), ())
    assert needed(*some) > needed(*every) == needed(*some, consistency_weight=0)
