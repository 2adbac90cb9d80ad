"""Probabilities beside a label map: of structures, within half a step of 8 bits, on the model's grid, whole or not at all."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit, softmax
from torch import Tensor, nn

from segsweep.data.arrays import geometry_from_json, open_probabilities
from segsweep.data.geometry import Geometry
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.inference.prediction import predict
from segsweep.inference.predictor import Member, Predictor
from segsweep.inference.scans import ScanCase
from segsweep.inference.writers import write_image
from segsweep.learning.task import Head, Normalisation, Task

# The second structure lies within the first one.
TABLE = LabelTable(labels=LabelSet(structures=("liver", "tumour")), atoms=((), (0,), (0, 1)))
GEOMETRY = Geometry(
    shape=(6, 7, 8), spacing=(2.0, 1.0, 1.0), origin=(5.0, 6.0, 7.0), direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1)
)


class Bands(nn.Module):
    """Logits of a voxel's own value."""

    def __init__(self, outputs: int, *, scale: float) -> None:
        super().__init__()
        self.outputs, self.scale = outputs, scale

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        x = x_BCZYX[:, 0] / self.scale
        return [torch.stack([-x, x, 2 * x - 1][: self.outputs], dim=1)]


def member(head: Head, *, scale: float = 100.0) -> Member:
    task = Task(
        channels=("CT",),
        table=TABLE,
        head=head,
        patch_size=(8, 8, 8),
        spacing=GEOMETRY.spacing,
        normalisation=(Normalisation(scheme="ct", low=-1024.0, high=3000.0),),
    )
    return Member(model=Bands(task.outputs, scale=scale), task=task)


def shares(voxels: NDArray, *, head: Head, scale: float = 100.0) -> NDArray:
    """Probabilities of both structures, as they are defined."""
    x = voxels.astype(np.float64) / scale
    if head == "sigmoid":
        return expit(np.stack([-x, x]))
    p = softmax(np.stack([-x, x, 2 * x - 1]), axis=0)
    return np.stack([p[1] + p[2], p[2]])


@pytest.fixture
def voxels() -> NDArray[np.int16]:
    return np.random.default_rng(0).integers(-300, 300, GEOMETRY.shape).astype(np.int16)


@pytest.fixture
def keep(voxels: NDArray[np.int16], tmp_path: Path) -> Callable[..., tuple[NDArray, Geometry]]:
    """Segments the scan; the probabilities that were kept, and their grid."""

    def run(*members: Member) -> tuple[NDArray, Geometry]:
        write_image(voxels, geometry=GEOMETRY, path=tmp_path / "a.nii.gz")
        case = ScanCase(case_id="a", images=(tmp_path / "a.nii.gz",))
        out = tmp_path / "out"
        assert not predict([case], predictor=Predictor(members=members), out=out, probabilities=True).failures
        folder = out / "a.probabilities.zarr"
        stored = open_probabilities(folder, name="a")
        assert stored.facts == {"structures": ["liver", "tumour"], "certain": 255}
        attributes = json.loads((folder / "zarr.json").read_text())["attributes"]["segsweep"]
        return stored.read(slice(None)) / 255, geometry_from_json(attributes["geometry"])

    return run


def close(found: NDArray, expected: NDArray) -> bool:
    return bool(np.abs(found - expected).max() <= 1 / 510 + 1e-5)


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_a_models_probabilities_lie_on_its_grid(head: Head, keep: Callable, voxels: NDArray[np.int16]) -> None:
    found, grid = keep(member(head))
    assert grid.same_grid(GEOMETRY.canonical())
    assert close(found, shares(GEOMETRY.reorientation.apply(voxels), head=head))


@pytest.mark.parametrize("heads", [("softmax", "softmax"), ("softmax", "sigmoid")])
def test_an_ensembles_are_the_mean(heads: tuple[Head, Head], keep: Callable, voxels: NDArray[np.int16]) -> None:
    first, second = heads
    found, _ = keep(member(first), replace(member(second, scale=50.0), weight=3.0))
    turned = GEOMETRY.reorientation.apply(voxels)
    mean = shares(turned, head=first) / 4 + 3 * shares(turned, head=second, scale=50.0) / 4
    assert close(found, mean)


def test_another_run_replaces_them(keep: Callable, voxels: NDArray[np.int16], tmp_path: Path) -> None:
    keep(member("softmax"))
    found, _ = keep(member("softmax", scale=20.0))
    assert close(found, shares(GEOMETRY.reorientation.apply(voxels), head="softmax", scale=20.0))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a.nii.gz", "a.probabilities.zarr", "labels.json", "performance.csv"]
