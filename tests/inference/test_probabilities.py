"""The cache of probabilities: precise to 1/510, computed once, verified, and made again where it proves damaged."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit, softmax
from torch import Tensor, nn

from segsweep.data.mirror import Mirror
from segsweep.data.store import Store, open_store
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.inference.predictor import Member, Predictor
from segsweep.inference.probabilities import Entry, cached, quantised
from segsweep.learning.inference import Inference
from segsweep.learning.task import Head, Normalisation, Task

TABLE = LabelTable(labels=LabelSet(structures=("soft", "bone")), atoms=((), (0,), (1,)))
SPACING = (2.0, 1.0, 1.0)


class Bands(nn.Module):
    """Logits of a voxel's own value."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        x = x_BCZYX[:, 0]
        return [torch.stack([-x, x - 1, 2 * x - 3][: self.outputs], dim=1)]


def member(head: Head = "softmax") -> Member:
    task = Task(
        channels=("CT",),
        table=TABLE,
        head=head,
        patch_size=(8, 8, 8),
        spacing=SPACING,
        normalisation=(Normalisation(scheme="ct", low=-80.0, high=60.0, deviation=20.0),),
    )
    return Member(model=Bands(task.outputs).eval(), task=task, inference=Inference(mirror="none"))


@pytest.fixture
def store(tiny_store: Callable[..., Path]) -> Store:
    label = np.zeros((6, 9, 8))
    label[2:4, 2:6, 2:6] = 1
    return open_store(tiny_store("s", labels=TABLE.labels, cases={"a": label, "b": label}))


def entry(store: Store, folder: Path, digest: str = "d" * 64) -> Entry:
    return Entry(place=folder / "probabilities", digest=digest, store=store, spacing=SPACING)


def refused() -> Member:
    raise AssertionError("computed again")


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_a_probability_comes_back_within_1_510(head: Head) -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 4, (3, 7, 8, 9)).astype(np.float32)
    exact = softmax(logits.astype(np.float64), axis=0) if head == "softmax" else expit(logits.astype(np.float64))
    kept = quantised(np.moveaxis(logits, 1, 0), head=head, num_slices=7)
    error = np.abs(kept / 255 - exact)
    assert 1 / 600 < error.max() <= 1 / 510 + 1e-6


def test_computed_once_and_then_read(store: Store, tmp_path: Path) -> None:
    made = cached(entry(store, tmp_path), case_id="a", member=member)
    again = cached(entry(store, tmp_path), case_id="a", member=refused)
    assert np.array_equal(made.slices(slice(None)), again.slices(slice(None)))
    assert np.array_equal(made.slices(slice(None))[:, 2:5], again.slices(slice(2, 5)))
    assert made.seconds == again.seconds >= 0
    files = (path for path in entry(store, tmp_path).folder("a").rglob("*") if path.name != "manifest.json")
    assert made.num_bytes == sum(path.stat().st_size for path in files if path.is_file())


def test_what_one_machine_computed_another_reads_from_the_bucket(
    store: Store, object_storage: Any, tmp_path: Path
) -> None:
    one, two = (
        dataclasses.replace(
            entry(store, tmp_path / name), home=Mirror(uri=f"{object_storage.uri}/lab", folder=tmp_path / name)
        )
        for name in ("one", "two")
    )
    made = cached(one, case_id="a", member=member)
    puts = [request for request in object_storage.requests if request.startswith("PUT") and request[-1] != "/"]
    assert puts[-1].endswith("/a/manifest.json")
    again = cached(two, case_id="a", member=refused)
    assert np.array_equal(made.slices(slice(None)), again.slices(slice(None)))
    object_storage.requests.clear()
    cached(two, case_id="a", member=refused)
    assert object_storage.requests == []


def test_what_is_kept_is_what_the_predictor_would_say(store: Store, tmp_path: Path) -> None:
    found = cached(entry(store, tmp_path), case_id="a", member=member).slices(slice(None))
    grid = store.grid("a")
    label = Predictor(members=(member(),)).segment(grid.read_image(), geometry=grid.geometry)
    assert len(np.unique(label)) == 3
    # Where two quantised probabilities are equal, the lower atom is taken.
    best = np.sort(found, axis=0)
    clear = best[-1] > best[-2]
    assert np.array_equal(np.argmax(found, axis=0)[clear], label[clear])


def test_models_stores_spacings_and_cases_have_entries_of_their_own(store: Store, tmp_path: Path) -> None:
    first = entry(store, tmp_path)
    others = (
        dataclasses.replace(first, digest="e" * 64),
        dataclasses.replace(first, store=dataclasses.replace(store, digest="another")),
        dataclasses.replace(first, spacing=(2.0, 1.0, 1.5)),
    )
    folders = {one.folder(case_id) for one in (first, *others) for case_id in ("a", "b")}
    assert len(folders) == 8


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(max(folder.rglob("c/*/0/0/0"))),
        lambda folder: flip(folder / "grid" / "zarr.json"),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "grid" / "probabilities" / "zarr.json").unlink(),
    ],
    ids=["voxels", "facts", "manifest", "array"],
)
def test_a_damaged_entry_is_made_again(damage: Callable[[Path], object], store: Store, tmp_path: Path) -> None:
    one = entry(store, tmp_path)
    whole = cached(one, case_id="a", member=member).slices(slice(None))
    damage(one.folder("a"))
    calls: list[str] = []

    def counted() -> Member:
        calls.append("made")
        return member()

    assert np.array_equal(cached(one, case_id="a", member=counted).slices(slice(None)), whole)
    assert calls == ["made"]
    cached(one, case_id="a", member=refused)


def test_outside_what_a_finder_shows_lies_background(store: Store, tmp_path: Path) -> None:
    class Middle(nn.Module):
        def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
            inside = torch.zeros_like(x_BCZYX[:, 0])
            inside[:, 2:4, 3:5, 3:5] = 10
            return [torch.stack([-inside + 1, inside, torch.zeros_like(inside)], dim=1)]

    plain = member()
    finder = Member(model=Middle().eval(), task=plain.task, inference=Inference(mirror="none"))
    shown = dataclasses.replace(plain, finder=finder, inference=Inference(mirror="none", margin_mm=1.0))
    found = cached(entry(store, tmp_path), case_id="a", member=lambda: shown).slices(slice(None))
    grid = store.grid("a")
    region = shown.region(grid.read_image(), geometry=grid.geometry)
    inside = np.zeros(grid.shape, dtype=bool)
    inside[region] = True
    assert 0 < inside.sum() < inside.size
    assert [np.unique(values[~inside]).tolist() for values in found] == [[255], [0], [0]]
    whole: NDArray[np.uint8] = cached(entry(store, tmp_path, "e" * 64), case_id="a", member=member).slices(slice(None))
    assert np.array_equal(found[:, inside], whole[:, inside])
