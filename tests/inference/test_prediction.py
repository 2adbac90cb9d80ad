import csv
import json
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segsweep.data.building import build_case
from segsweep.data.case import CaseSource
from segsweep.data.geometry import Geometry, Size, Spacing
from segsweep.data.index import make_index
from segsweep.data.joint import open_stores
from segsweep.data.manifest import seal
from segsweep.data.readers import read_labels, read_scan
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.errors import InputError, ModelError, RecipeError
from segsweep.inference import budget
from segsweep.inference.budget import Needs, Resources
from segsweep.inference.prediction import predict
from segsweep.inference.predictor import Member, Predictor
from segsweep.inference.scans import ScanCase, find_files, find_scans
from segsweep.inference.spill import Spilled
from segsweep.inference.writers import write_image
from segsweep.learning.inference import Inference
from segsweep.learning.memory import resident_bytes
from segsweep.learning.task import Head, Normalisation, Task

# Every subset of three structures that lie towards the head, the back and the patient's left.
SIDES = LabelTable(
    labels=LabelSet(structures=("head", "back", "left")),
    atoms=((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)),
)
BANDS = LabelTable(labels=LabelSet(structures=("soft", "bone")), atoms=((), (0,), (1,)))

# Columns: the LPS directions of the x, y and z axes of the file.
DIRECTIONS = {
    "LPS": np.eye(3),
    "RAS": np.diag([-1.0, -1.0, 1.0]),
    "PIR": np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]]),
    "SLA": np.array([[0.0, 1, 0], [0, 0, -1], [1, 0, 0]]),
}
TILT = np.array([[0.98, -0.199, 0], [0.199, 0.98, 0], [0, 0, 1.0]])


class Where(nn.Module):
    """Structure logits by the position in the patch alone: positive on the upper half of z, y, x."""

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        lines = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in x_BCZYX.shape[2:]), indexing="ij")
        return [torch.stack(lines)[None]]


class Bands(nn.Module):
    """Softmax logits of a voxel's own value: air below 0, soft tissue to 100, bone above."""

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        x = x_BCZYX[:, 0]
        return [torch.stack([-x, torch.zeros_like(x), x - 100], dim=1)]


class Difference(nn.Module):
    """Sigmoid logits of the first channel against the second, and the reverse."""

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        more = x_BCZYX[:, 0] - x_BCZYX[:, 1]
        return [torch.stack([more, -more], dim=1)]


def task(
    table: LabelTable,
    *,
    head: Head,
    patch_size: Size = (8, 8, 8),
    spacing: Spacing = (1.0, 1.0, 1.0),
    channels: int = 1,
) -> Task:
    return Task(
        channels=tuple(f"CT{index}" for index in range(channels)),
        table=table,
        head=head,
        patch_size=patch_size,
        spacing=spacing,
        normalisation=(Normalisation(scheme="ct", low=-1024, high=3000),) * channels,
    )


def bands(*, spacing: Spacing = (1.0, 1.0, 1.0)) -> Predictor:
    return Predictor(members=(Member(model=Bands(), task=task(BANDS, head="softmax", spacing=spacing)),))


def grid(shape: Size, *, spacing: Spacing = (1.0, 1.0, 1.0), direction: NDArray = DIRECTIONS["LPS"]) -> Geometry:
    flat = tuple(float(value) for value in direction.ravel())
    return Geometry(shape=shape, spacing=spacing, origin=(-31.0, 12.5, 104.0), direction=flat)


def noise(shape: Size, *, seed: int = 0) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(-400, 500, shape).astype(np.int16)


def expected_bands(voxels: NDArray) -> NDArray:
    return np.where(voxels > 100, 2, np.where(voxels > 0, 1, 0))


def clear(voxels: NDArray) -> NDArray:
    """Voxels off the bands' borders, where the argmax is a tie."""
    return (voxels != 0) & (voxels != 100)


@pytest.mark.parametrize("name", DIRECTIONS)
@pytest.mark.parametrize("tilted", [False, True])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_labels_lie_at_the_patients_own_sides(tmp_path: Path, name: str, tilted: bool, suffix: str):
    tilt = np.linalg.qr(TILT)[0] * np.sign(np.diag(np.linalg.qr(TILT)[0])) if tilted else np.eye(3)
    shape, spacing = (6, 10, 8), (2.5, 1.0, 1.5)
    geometry = grid(shape, spacing=spacing, direction=tilt @ DIRECTIONS[name])
    write_image(noise(shape), geometry=geometry, path=tmp_path / f"a{suffix}")
    canonical = geometry.canonical()
    sides = task(SIDES, head="sigmoid", patch_size=canonical.shape, spacing=canonical.spacing)
    predictor = Predictor(members=(Member(model=Where(), task=sides),))
    cases = find_files(tmp_path / f"a{suffix}", channels=("CT",))
    done = predict(cases, predictor=predictor, out=tmp_path / "out")
    assert done.written == ("a",) and not done.failures
    found = read_labels(tmp_path / "out" / "a.nii.gz")
    assert found.geometry.same_grid(geometry)

    # The oracle goes through patient space: each file voxel's offset from the scan's centre, in LPS, the tilt undone.
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1) - (np.array(shape) - 1) / 2
    lps = (index * spacing)[..., ::-1] @ (tilt @ DIRECTIONS[name]).T @ tilt
    for structure, axis in (("left", 0), ("back", 1), ("head", 2)):
        assert np.array_equal(SIDES.mask(found.voxels, structure=structure), lps[..., axis] > 0), structure


@pytest.mark.parametrize("shape", [(12, 11, 10), (1, 9, 20), (9, 1, 3), (20, 9, 1)])
@pytest.mark.parametrize("name", DIRECTIONS)
def test_every_voxel_keeps_its_own_label(tmp_path: Path, shape: Size, name: str):
    voxels = noise(shape, seed=3)
    geometry = grid(shape, direction=DIRECTIONS[name])
    write_image(voxels, geometry=geometry, path=tmp_path / "scan.nii.gz")
    predict(find_files(tmp_path, channels=("CT",)), predictor=bands(), out=tmp_path / "out", mirror="zyx")
    found = read_labels(tmp_path / "out" / "scan.nii.gz")
    assert found.geometry.same_grid(geometry)
    assert np.array_equal(found.voxels[clear(voxels)], expected_bands(voxels)[clear(voxels)])


# Order 0 along the coarse axis takes the nearest slice: half a slice off there, and half a slice off on the way back.
@pytest.mark.parametrize(
    ("spacing", "slices"), [((1.0, 1.0, 1.0), 0.55), ((2.0, 1.3, 0.9), 0.55), ((5.0, 1.0, 1.0), 1.0)]
)
def test_another_training_spacing_moves_nothing(spacing: Spacing, slices: float):
    geometry = grid((24, 30, 34), spacing=(3.0, 0.8, 0.7))
    image = np.full((1, *geometry.shape), -60, dtype=np.int16)
    image[0, 1:10, 4:14, 6:30] = 60
    image[0, 13:20, 12:26, 3:12] = 260
    found = bands(spacing=spacing).segment(image, geometry=geometry)
    truth = expected_bands(image[0])
    for value in (1, 2):
        # Interpolated borders of bone pass through soft tissue, so soft tissue is judged apart from bone.
        region = np.s_[:11] if value == 1 else np.s_[11:]
        a, b = found[region] == value, truth[region] == value
        centres = [np.argwhere(mask).mean(axis=0) * geometry.spacing for mask in (a, b)]
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.8
        assert (np.abs(centres[0] - centres[1]) < np.array([slices, 0.55, 0.55]) * geometry.spacing).all()


def test_flips_are_those_of_the_recipe_unless_others_are_asked_for():
    member = Member(model=Where(), task=task(SIDES, head="sigmoid"), inference=Inference(mirror="zy"))
    scan = {"image": np.zeros((1, 8, 8, 8), np.int16), "geometry": grid((8, 8, 8))}
    # Over a flip the structure that lies towards one end lies towards both, and its mean is 0: nowhere.
    for mirror, found in ((None, ["left"]), ("none", ["head", "back", "left"]), ("y", ["head", "left"])):
        label = Predictor(members=(member,)).segment(**scan, mirror=mirror)
        assert [name for name in SIDES.labels.structures if SIDES.mask(label, structure=name).any()] == found


def test_padding_below_air_counts_as_air():
    class Least(nn.Module):
        def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
            lowest = x_BCZYX.amin().expand(x_BCZYX[:, 0].shape)
            return [torch.stack([lowest + 1024.5, torch.zeros_like(lowest), -1024.5 - lowest], dim=1)]

    wide = replace(task(BANDS, head="softmax"), normalisation=(Normalisation(scheme="ct", low=-9999, high=3000),))
    predictor = Predictor(members=(Member(model=Least(), task=wide),))
    image = np.full((1, 8, 8, 8), -3000, dtype=np.int16)
    assert (predictor.segment(image, geometry=grid((8, 8, 8))) == 0).all()


def test_members_of_other_spacing_and_head_meet_on_the_first_ones_grid():
    class Soft(nn.Module):
        def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
            x = x_BCZYX[:, 0]
            return [torch.stack([torch.minimum(x, 100 - x), x - 100], dim=1) / 20]

    geometry = grid((12, 12, 12))
    image = np.full((1, 12, 12, 12), -500, dtype=np.int16)
    image[0, 2:8, :, :] = 50
    image[0, 8:, :, 6:] = 700
    members = (
        Member(model=Bands(), task=task(BANDS, head="softmax")),
        Member(model=Soft(), task=task(BANDS, head="sigmoid", spacing=(2.0, 2.0, 2.0)), weight=0.5),
    )
    found = Predictor(members=members).segment(image, geometry=geometry)
    truth = expected_bands(image[0])
    assert found.shape == (12, 12, 12)
    assert (found == truth).mean() > 0.9 and set(np.unique(found)) == {0, 1, 2}


def test_channels_keep_their_order_and_may_lie_in_different_axis_orders(tmp_path: Path):
    geometry = grid((7, 8, 9), direction=DIRECTIONS["RAS"])
    first, second = noise((7, 8, 9), seed=1), noise((7, 8, 9), seed=2)
    write_image(first, geometry=geometry, path=tmp_path / "p_0000.nii.gz")
    canonical = geometry.reorientation.apply(second)
    write_image(np.ascontiguousarray(canonical), geometry=geometry.canonical(), path=tmp_path / "p_0001.nii.gz")
    predictor = Predictor(members=(Member(model=Difference(), task=task(BANDS, head="sigmoid", channels=2)),))
    cases = find_scans(tmp_path, channels=("CT0", "CT1"))
    assert predict(cases, predictor=predictor, out=tmp_path / "out").written == ("p",)
    found = read_labels(tmp_path / "out" / "p.nii.gz")
    apart = first != second
    assert found.geometry.same_grid(geometry)
    assert np.array_equal(found.voxels[apart], np.where(first > second, 1, 2)[apart])


def test_a_damaged_scan_does_not_stop_the_others(tmp_path: Path):
    geometry = grid((8, 8, 8))
    for name in ("a", "c"):
        write_image(noise((8, 8, 8)), geometry=geometry, path=tmp_path / f"{name}.nii.gz")
    (tmp_path / "b.nii.gz").write_bytes(b"no scan at all")
    seen: list[tuple[int, int]] = []
    cases = find_files(tmp_path, channels=("CT",))
    done = predict(
        cases, predictor=bands(), out=tmp_path / "out", progress=lambda count, total: seen.append((count, total))
    )
    assert done.written == ("a", "c") and set(done.failures) == {"b"} and "b.nii.gz" in done.failures["b"]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a.nii.gz",
        "c.nii.gz",
        "labels.json",
        "performance.csv",
    ]
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == {"soft": [1], "bone": [2]}


def test_an_earlier_result_of_a_scan_that_fails_is_named(tmp_path: Path):
    for name in ("a", "b"):
        write_image(noise((8, 8, 8)), geometry=grid((8, 8, 8)), path=tmp_path / f"{name}.nii.gz")
    cases = find_files(tmp_path, channels=("CT",))
    predict(cases[:1], predictor=bands(), out=tmp_path / "out")
    for case in ("a", "b"):
        (tmp_path / f"{case}.nii.gz").write_bytes(b"no scan at all")
    done = predict(cases, predictor=bands(), out=tmp_path / "out")
    assert done.failures["a"].endswith("; its result of an earlier run is still there: delete it unless it is wanted")
    assert "earlier" not in done.failures["b"] and (tmp_path / "out" / "a.nii.gz").is_file()


def test_a_scan_that_memory_cannot_hold_does_not_stop_the_others(tmp_path: Path):
    class Large:
        case_id = "large"

        def load(self):
            raise MemoryError

    write_image(noise((8, 8, 8)), geometry=grid((8, 8, 8)), path=tmp_path / "small.nii.gz")
    small = ScanCase(case_id="small", images=(tmp_path / "small.nii.gz",))
    done = predict([Large(), small], predictor=bands(), out=tmp_path / "out")
    assert done.written == ("small",)
    assert "memory" in done.failures["large"]


def test_a_scan_beyond_the_budget_is_refused_by_name_and_the_others_go_on(tmp_path: Path):
    write_image(noise((8, 8, 8)), geometry=grid((8, 8, 8)), path=tmp_path / "in" / "small.nii.gz")
    large = np.zeros((64, 512, 512), dtype=np.int16)
    large[0] = 50
    write_image(large, geometry=grid(large.shape), path=tmp_path / "in" / "large.nii.gz")
    allowed = Resources(max_memory=resident_bytes() + 2**28)
    done = predict(
        find_files(tmp_path / "in", channels=("CT",)), predictor=bands(), out=tmp_path / "out", resources=allowed
    )
    assert done.written == ("small",)
    assert re.match(r"large: segmenting it needs about \S+ [GM]B more memory", done.failures["large"])
    assert not (tmp_path / "out" / "large.nii.gz").exists()


def test_logits_that_are_no_numbers_are_a_failure_of_their_case(tmp_path: Path):
    class Broken(Bands):
        def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
            return [torch.sqrt(super().forward(x_BCZYX)[0])]

    write_image(noise((8, 8, 8)), geometry=grid((8, 8, 8)), path=tmp_path / "a.nii.gz")
    predictor = Predictor(members=(Member(model=Broken(), task=task(BANDS, head="softmax")),))
    done = predict(find_files(tmp_path / "a.nii.gz", channels=("CT",)), predictor=predictor, out=tmp_path / "out")
    assert done.failures["a"].startswith("a: the model's logits are not all finite")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("heads", [("softmax", "softmax", "softmax"), ("softmax", "sigmoid", "softmax")])
def test_an_ensemble_gives_the_same_from_memory_and_from_disk(heads: tuple[Head, ...], monkeypatch: pytest.MonkeyPatch):
    class Random(nn.Module):
        def __init__(self, outputs: int) -> None:
            super().__init__()
            self.layer = nn.Conv3d(1, outputs, 3, padding=1)

        def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
            return [self.layer(x_BCZYX / 100)]

    torch.manual_seed(0)
    tasks = [task(BANDS, head=head, spacing=(1.0 + index, 1.0, 1.0)) for index, head in enumerate(heads)]
    predictor = Predictor(members=tuple(Member(model=Random(one.outputs), task=one) for one in tasks))
    scan = {"image": noise((19, 11, 12))[None], "geometry": grid((19, 11, 12))}
    spilled = []

    class Watched(Spilled):
        def __setitem__(self, index: int, plane: NDArray[np.float32]) -> None:
            spilled.append(index)
            super().__setitem__(index, plane)

    monkeypatch.setattr(budget, "Spilled", Watched)
    in_memory = predictor.segment(**scan)
    assert not spilled
    monkeypatch.setattr("segsweep.inference.predictor.needs", lambda *_, **__: Needs(parts={}, kept=2**62))
    monkeypatch.setattr(budget, "shutil", SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=2**62)))
    assert np.array_equal(predictor.segment(**scan), in_memory)
    assert spilled == 2 * list(range(19)) and len(np.unique(in_memory)) == 3


def test_a_processor_computes_in_float32_unless_told_otherwise():
    seen: list[bool] = []

    class Told(Bands):
        def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().forward(x_BCZYX)

    member = Member(model=Told(), task=task(BANDS, head="softmax"), precision="bfloat16")
    predictor, scan = Predictor(members=(member,)), {"image": noise((8, 8, 8))[None], "geometry": grid((8, 8, 8))}
    predictor.segment(**scan)
    predictor.segment(**scan, resources=Resources(precision="bfloat16"))
    # The first of all calls is that on shapes alone, which reckons the memory.
    assert seen == [False, False, True]


def test_the_next_scan_is_read_while_one_is_segmented(tmp_path: Path):
    events: list[str] = []
    reading = threading.Event()

    class Told(ScanCase):
        def load(self):
            events.append(f"read {self.case_id}")
            if self.case_id == "b":
                reading.set()
            return super().load()

    class Waiting(Bands):
        def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
            # Before the first scan the network is reckoned with, on shapes alone.
            assert x_BCZYX.is_meta or reading.wait(30), "the next scan is not read before this one is done"
            return super().forward(x_BCZYX)

    for name in "abc":
        write_image(noise((8, 8, 8)), geometry=grid((8, 8, 8)), path=tmp_path / f"{name}.nii.gz")
    cases = [Told(case_id=name, images=(tmp_path / f"{name}.nii.gz",)) for name in "abc"]
    predictor = Predictor(members=(Member(model=Waiting(), task=task(BANDS, head="softmax")),))
    assert predict(cases, predictor=predictor, out=tmp_path / "out").written == ("a", "b", "c")
    assert events == ["read a", "read b", "read c"]
    rows = list(csv.DictReader((tmp_path / "out" / "performance.csv").open()))
    assert [row["case"] for row in rows] == ["a", "b", "c"]
    assert all(float(row["read_s"]) > 0 and float(row["network_s"]) > 0 and float(row["write_s"]) > 0 for row in rows)


def test_channels_on_other_grids_are_a_failure(tmp_path: Path):
    write_image(noise((8, 8, 8)), geometry=grid((8, 8, 8)), path=tmp_path / "p_0000.nii.gz")
    other = replace(grid((8, 8, 8)), origin=(0.0, 0.0, 0.0))
    write_image(noise((8, 8, 8)), geometry=other, path=tmp_path / "p_0001.nii.gz")
    predictor = Predictor(members=(Member(model=Difference(), task=task(BANDS, head="sigmoid", channels=2)),))
    done = predict(find_scans(tmp_path, channels=("CT0", "CT1")), predictor=predictor, out=tmp_path / "out")
    assert not done.written and "p_0001.nii.gz" in done.failures["p"]


def test_a_folder_of_another_models_labels_is_refused_before_any_work(tmp_path: Path):
    (tmp_path / "labels.json").write_text('{"liver": [1]}')
    write_image(noise((8, 8, 8)), geometry=grid((8, 8, 8)), path=tmp_path / "in" / "a.nii.gz")
    with pytest.raises(InputError, match="another meaning"):
        predict(find_files(tmp_path / "in", channels=("CT",)), predictor=bands(), out=tmp_path)
    assert not (tmp_path / "a.nii.gz").exists()


@pytest.mark.parametrize("kind", ["nii.gz", "nrrd", "mha"])
def test_a_scan_is_never_replaced_by_its_own_labels(tmp_path: Path, kind: str):
    scan = tmp_path / f"a.{kind}"
    write_image(noise((8, 8, 8)), geometry=grid((8, 8, 8)), path=scan)
    before = scan.read_bytes()
    (tmp_path / "linked").symlink_to(tmp_path, target_is_directory=True)
    for path, out in ((tmp_path, tmp_path), (scan, tmp_path / "linked")):
        with pytest.raises(InputError, match=rf"a\.{kind} is, or holds, a scan that is to be segmented"):
            predict(find_files(path, channels=("CT",)), predictor=bands(), out=out, kind=kind)
    assert scan.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [scan.name, "linked"]


def test_a_folder_of_masks_replaces_no_folder_with_a_scan(tmp_path: Path):
    write_image(noise((8, 8, 8)), geometry=grid((8, 8, 8)), path=tmp_path / "bone" / "bone.nii.gz")
    with pytest.raises(InputError, match="bone is, or holds, a scan"):
        predict(find_files(tmp_path / "bone", channels=("CT",)), predictor=bands(), out=tmp_path, kind="masks")
    assert read_scan(tmp_path / "bone" / "bone.nii.gz").voxels.dtype == np.int16


def test_what_was_interrupted_says_what_its_values_mean(tmp_path: Path):
    for name in ("a", "b"):
        write_image(noise((8, 8, 8)), geometry=grid((8, 8, 8)), path=tmp_path / f"{name}.nii.gz")
    cases = find_files(tmp_path, channels=("CT",))

    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(cases, predictor=bands(), out=tmp_path / "out", progress=interrupt)
    assert (tmp_path / "out" / "a.nii.gz").is_file()
    other = Predictor(members=(Member(model=Where(), task=task(SIDES, head="sigmoid")),))
    with pytest.raises(InputError, match="another meaning"):
        predict(cases[1:], predictor=other, out=tmp_path / "out")


def test_a_second_call_adds_to_the_folder(tmp_path: Path):
    for name in ("a", "b"):
        write_image(noise((8, 8, 8)), geometry=grid((8, 8, 8)), path=tmp_path / f"{name}.nii.gz")
        predict(find_files(tmp_path / f"{name}.nii.gz", channels=("CT",)), predictor=bands(), out=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a.nii.gz",
        "b.nii.gz",
        "labels.json",
        "performance.csv",
    ]


def test_predictors_refuse_what_cannot_work():
    with pytest.raises(ModelError, match="without members"):
        Predictor(members=())
    two = Member(model=Difference(), task=task(BANDS, head="sigmoid", channels=2))
    with pytest.raises(ModelError, match="channels"):
        Predictor(members=(two, bands().members[0]))
    with pytest.raises(InputError, match="1 channels"):
        Predictor(members=(two,)).segment(np.zeros((1, 8, 8, 8)), geometry=grid((8, 8, 8)))


def test_a_stores_cases_come_back_on_their_files_grids(tmp_path: Path):
    geometry, voxels = grid((7, 8, 9), direction=DIRECTIONS["PIR"]), noise((7, 8, 9), seed=5)
    write_image(voxels, geometry=geometry, path=tmp_path / "a.nii.gz")
    folder = tmp_path / "store" / "cases" / "a"
    folder.parent.mkdir(parents=True)
    case = CaseSource(case_id="a", images=(tmp_path / "a.nii.gz",), split="validation")
    built = build_case(case, labels=BANDS.labels, folder=folder)
    index = make_index([built], dataset="none", channels=("CT0",), labels=BANDS.labels)
    (tmp_path / "store" / "index.json").write_bytes(seal(index))
    cases = find_scans(tmp_path / "store", channels=("CT0",))
    assert predict(cases, predictor=bands(), out=tmp_path / "out").written == ("a",)
    found = read_labels(tmp_path / "out" / "a.nii.gz")
    assert found.geometry.same_grid(read_scan(tmp_path / "a.nii.gz").geometry)
    assert np.array_equal(found.voxels[clear(voxels)], expected_bands(voxels)[clear(voxels)])
    with pytest.raises(InputError, match="no cases in the split 'test'"):
        find_scans(tmp_path / "store", channels=("CT0",), split="test")
    with pytest.raises(InputError, match="no 'tests' among splits"):
        find_scans(tmp_path / "store", channels=("CT0",), split="tests")
    with pytest.raises(InputError, match="the model expects"):
        find_scans(tmp_path / "store", channels=("MR",))


def test_structures_left_out_hide_none_of_the_others():
    class Both(nn.Module):
        def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
            x = x_BCZYX[:, 0]
            return [torch.stack([x, 2 * x], dim=1)]

    predictor = Predictor(members=(Member(model=Both(), task=task(BANDS, head="sigmoid")),))
    image = noise((8, 8, 8))[None]
    image[image == 0] = 1
    inside, geometry = image[0] > 0, grid((8, 8, 8))
    assert np.array_equal(predictor.segment(image, geometry=geometry), 2 * inside)
    assert np.array_equal(predictor.segment(image, geometry=geometry, structures=("soft",)), 1 * inside)
    assert np.array_equal(predictor.segment(image, geometry=geometry, structures=("bone", "none")), 2 * inside)
    assert np.array_equal(predictor.segment(image, geometry=geometry, structures=("none",)), 2 * inside)


def test_a_softmax_head_is_asked_for_the_datasets_of_the_wanted_structures():
    class Ranked(nn.Module):
        def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
            x = x_BCZYX[:, 0]
            return [torch.stack([torch.zeros_like(x), x, 3 * x, 2 * x, x - 50, -x], dim=1)]

    # Atom 3 is a tumour within the liver of dataset a, atoms 4 and 5 are of dataset b.
    labels = LabelSet(structures=("a/liver", "a/spleen", "a/tumour", "b/liver", "b/air"))
    joint = LabelTable(labels=labels, atoms=((), (0,), (1,), (0, 2), (3,), (4,)))
    predictor = Predictor(members=(Member(model=Ranked(), task=task(joint, head="softmax")),))
    image = noise((8, 8, 8))[None]
    image[(image == 0) | (image == 50)] = 1
    positive, geometry = image[0] > 0, grid((8, 8, 8))
    whole = np.where(positive, 2, 5)
    assert np.array_equal(predictor.segment(image, geometry=geometry), whole)
    assert np.array_equal(predictor.segment(image, geometry=geometry, structures=("a/liver",)), 2 * positive)
    own_b = np.where(image[0] > 50, 4, np.where(positive, 0, 5))
    assert np.array_equal(predictor.segment(image, geometry=geometry, structures=("b/liver",)), own_b)
    assert np.array_equal(predictor.segment(image, geometry=geometry, structures=("a/liver", "b/air")), whole)
    assert np.array_equal(predictor.segment(image, geometry=geometry, structures=("none",)), whole)


def test_a_case_of_a_joint_store_gets_structures_of_its_own_dataset(tmp_path: Path, tiny_store: Callable[..., Path]):
    class Every(nn.Module):
        def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
            x = x_BCZYX[:, 0]
            return [torch.stack([x, 2 * x], dim=1)]

    label = np.zeros((8, 16, 16), dtype=np.uint8)
    label[2:6, 4:12, 4:12] = 1
    liver = LabelSet(structures=("liver",))
    stores = [tiny_store(name, labels=liver, cases={"c": label}) for name in ("a", "b")]
    joint = open_stores(",".join(map(str, stores)))
    members = (Member(model=Every(), task=task(joint.table, head="sigmoid", spacing=(2.0, 1.0, 1.0))),)
    cases = find_scans(Path(joint.uri), channels=("CT",), split="train")
    assert [case.case_id for case in cases] == ["a.c", "b.c"]
    predict(cases, predictor=Predictor(members=members), out=tmp_path / "out")
    for value, case_id in enumerate(("a.c", "b.c"), start=1):
        found = read_labels(tmp_path / "out" / f"{case_id}.nii.gz").voxels
        assert set(np.unique(found)) == {0, value}


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


def test_cases_of_a_folder(tmp_path: Path):
    touch(tmp_path, "b.nii.gz", "a.mha", "scan_2019.nii.gz", "readme.txt", ".hidden.nii.gz", "c_0000.nrrd")
    assert find_files(tmp_path, channels=("CT",)) == [
        ScanCase(case_id="a", images=(tmp_path / "a.mha",)),
        ScanCase(case_id="b", images=(tmp_path / "b.nii.gz",)),
        ScanCase(case_id="c", images=(tmp_path / "c_0000.nrrd",)),
        ScanCase(case_id="scan_2019", images=(tmp_path / "scan_2019.nii.gz",)),
    ]


def test_one_file_brings_its_other_channels(tmp_path: Path):
    touch(tmp_path, "p_0000.nii.gz", "p_0001.nii.gz", "q_0000.nii.gz")
    (case,) = find_files(tmp_path / "p_0000.nii.gz", channels=("plain", "contrast"))
    assert case == ScanCase(case_id="p", images=(tmp_path / "p_0000.nii.gz", tmp_path / "p_0001.nii.gz"))


@pytest.mark.parametrize(
    ("files", "channels", "message"),
    [
        (["p_0000.nii.gz"], ("plain", "contrast"), r"p: found 1 channels .* expects 2: p_0000 \(plain\), p_0001"),
        (["p_0000.nii.gz", "p_0001.nii.gz"], ("CT",), "p: found 2 channels"),
        (["p_0000.nii.gz", "p_0002.nii.gz"], ("plain", "contrast"), "p: found 2 channels .*p_0002"),
        (["p.nii.gz", "p.mha"], ("CT",), "p: both p.mha and p.nii.gz"),
        (["a scan.nii.gz"], ("CT",), "rename"),
        (["notes.txt"], ("CT",), "holds no scans"),
    ],
)
def test_folders_that_do_not_fit_are_refused(tmp_path: Path, files: list[str], channels: tuple[str, ...], message: str):
    touch(tmp_path, *files)
    with pytest.raises(InputError, match=message):
        find_files(tmp_path, channels=channels)


def test_absent_paths_and_other_files_are_refused(tmp_path: Path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(InputError, match="not there"):
        find_scans(tmp_path / "absent", channels=("CT",))
    with pytest.raises(InputError, match="no scan"):
        find_scans(tmp_path / "notes.txt", channels=("CT",))


@pytest.mark.parametrize("kind", ["nii.gz", "nrrd", "mha"])
def test_the_format_says_what_kind_of_file_comes_back(tmp_path: Path, kind: str):
    voxels = noise((6, 10, 8))
    write_image(voxels, geometry=grid((6, 10, 8)), path=tmp_path / "a.nii.gz")
    predict(find_files(tmp_path / "a.nii.gz", channels=("CT",)), predictor=bands(), out=tmp_path / "out", kind=kind)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [f"a.{kind}", "labels.json", "performance.csv"]
    )
    found = read_labels(tmp_path / "out" / f"a.{kind}")
    assert np.array_equal(found.voxels[clear(voxels)], expected_bands(voxels)[clear(voxels)])


def test_an_unknown_format_is_named_before_a_scan_is_read(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"'nifti'.*nii\.gz"):
        predict([], predictor=bands(), out=tmp_path / "out", kind="nifti")
    assert not (tmp_path / "out").exists()
