"""A finder and the model that looks where it says, with networks that are right by construction."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segsweep import recipes
from segsweep.data.geometry import Geometry, Size, Spacing
from segsweep.data.planning import Normalisation
from segsweep.data.readers import read_labels
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.errors import ModelError
from segsweep.inference.cascade import NOTHING_FOUND, keep_finder, part_of
from segsweep.inference.prediction import predict
from segsweep.inference.predictor import Member, Predictor, load_member
from segsweep.inference.scans import find_files
from segsweep.inference.writers import write_image
from segsweep.learning import checkpoint
from segsweep.learning.checkpoint import FINDER, Snapshot
from segsweep.learning.inference import CleanUp, Inference
from segsweep.learning.task import Task
from segsweep.learning.transfer import pinned
from segsweep.run import Run

BANDS = LabelTable(labels=LabelSet(structures=("soft", "bone")), atoms=((), (0,), (1,)))
ORGANS = LabelTable(labels=LabelSet(structures=("organs",)), atoms=((), (0,)))
# Columns: the LPS directions of the x, y and z axes of the file.
DIRECTIONS = {
    "LPS": np.eye(3),
    "RAS": np.diag([-1.0, -1.0, 1.0]),
    "PIR": np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]]),
}


class Bright(nn.Module):
    """Organs are what is brighter than 1000."""

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        x = x_BCZYX[:, 0] - 1000.5
        return [torch.stack([-x, x], dim=1)]


class Bands(nn.Module):
    """Air below 0, soft tissue to 100, bone above; the patches that it saw are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = 0

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        self.patches += len(x_BCZYX)
        x = x_BCZYX[:, 0]
        return [torch.stack([-x, torch.full_like(x, 0.25), x - 100.5], dim=1)]


def task(table: LabelTable, *, spacing: Spacing) -> Task:
    return Task(
        channels=("CT",), table=table, head="softmax", patch_size=(8, 8, 8), spacing=spacing,
        normalisation=(Normalisation(scheme="ct", low=-1024, high=3000),),
    )  # fmt: skip


def cascade(*, spacing: Spacing, margin_mm: float, clean_up: CleanUp | None = None) -> Member:
    rules = clean_up or CleanUp()
    finder = Member(
        model=Bright(), task=task(ORGANS, spacing=spacing), inference=Inference(overlap=0.0, clean_up=rules)
    )
    return Member(
        model=Bands(), task=task(BANDS, spacing=spacing), inference=Inference(margin_mm=margin_mm), finder=finder
    )


def grid(shape: Size, *, spacing: Spacing, direction: NDArray = DIRECTIONS["LPS"]) -> Geometry:
    flat = tuple(float(value) for value in direction.ravel())
    return Geometry(shape=shape, spacing=spacing, origin=(-31.0, 12.5, 104.0), direction=flat)


def scan(shape: Size) -> NDArray[np.int16]:
    """Soft tissue and bone everywhere by chance, and one organ."""
    voxels = np.random.default_rng(3).choice(np.array([-50, 50, 150], np.int16), shape)
    voxels[6:9, 10:13, 8:11] = 1200
    return voxels


@pytest.mark.parametrize("name", DIRECTIONS)
def test_labels_lie_on_the_scans_own_grid_around_the_organs_alone(tmp_path: Path, name: str) -> None:
    shape, spacing = (16, 26, 30), (5.0, 0.8, 1.5)
    geometry = grid(shape, spacing=spacing, direction=DIRECTIONS[name])
    write_image(scan(shape), geometry=geometry, path=tmp_path / "a.nii.gz")
    member = cascade(spacing=geometry.canonical().spacing, margin_mm=4.0)
    done = predict(
        find_files(tmp_path / "a.nii.gz", channels=("CT",)),
        predictor=Predictor(members=(member,)),
        out=tmp_path / "out",
    )
    assert done.written == ("a",)
    found = read_labels(tmp_path / "out" / "a.nii.gz")
    assert found.geometry.same_grid(geometry)
    bands = np.where(scan(shape) > 100, 2, np.where(scan(shape) > 0, 1, 0))
    expected = np.zeros_like(bands)
    # 4 mm are 1 voxel of 5 mm, 5 of 0.8 mm and 3 of 1.5 mm on either side of [6, 9), [10, 13), [8, 11).
    region = np.s_[5:10, 5:18, 5:14]
    expected[region] = bands[region]
    assert np.array_equal(found.voxels, expected)


@pytest.mark.parametrize(
    ("margin_mm", "expected"),
    [
        (0.0, np.s_[6:9, 10:13, 8:11]),
        (4.1, np.s_[3:12, 5:18, 5:14]),
        (13.0, np.s_[0:16, 0:26, 1:18]),
        (40.0, np.s_[0:16, 0:26, 0:30]),
    ],
)
def test_the_margin_is_in_mm_and_ends_with_the_scan(margin_mm: float, expected: tuple[slice, ...]) -> None:
    spacing = (2.0, 1.0, 2.0)
    member = cascade(spacing=spacing, margin_mm=margin_mm)
    assert member.region(scan((16, 26, 30))[None], geometry=grid((16, 26, 30), spacing=spacing)) == expected


def test_nothing_found_means_the_whole_scan_and_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    geometry = grid((9, 10, 11), spacing=(1.0, 1.0, 1.0))
    member = cascade(spacing=(1.0, 1.0, 1.0), margin_mm=1.0)
    image = np.full((1, 9, 10, 11), 50, np.int16)
    found = Predictor(members=(member,)).segment(image, geometry=geometry)
    assert (found == 1).all()
    assert capsys.readouterr().err == f"segsweep: {NOTHING_FOUND}\n"
    image[0, 4, 4, 4] = 1200
    found = Predictor(members=(member,)).segment(image, geometry=geometry)
    assert np.count_nonzero(found) == 27 and not capsys.readouterr().err


def test_what_the_finder_cleans_away_is_not_looked_at() -> None:
    spacing, voxels = (1.0, 1.0, 1.0), scan((16, 26, 30))
    voxels[15, 25, 29] = 1200
    geometry = grid(voxels.shape, spacing=spacing)
    members = [
        cascade(spacing=spacing, margin_mm=0.0, clean_up=rules) for rules in (CleanUp(), CleanUp(largest=("organs",)))
    ]
    regions = [member.region(voxels[None], geometry=geometry) for member in members]
    assert regions == [np.s_[6:16, 10:26, 8:30], np.s_[6:9, 10:13, 8:11]]


def test_patches_overlap_as_the_model_asks_and_cover_the_region_alone() -> None:
    spacing = (1.0, 1.0, 1.0)
    geometry, voxels = grid((16, 26, 30), spacing=spacing), scan((16, 26, 30))[None]
    counts = []
    for overlap in (0.0, 0.5):
        member = cascade(spacing=spacing, margin_mm=6.0)
        member = replace(member, inference=replace(member.inference, overlap=overlap))
        Predictor(members=(member,)).segment(voxels, geometry=geometry)
        assert isinstance(member.model, Bands)
        counts.append(member.model.patches)
    # The region has 15 voxels an axis: 2 patches of 8 side by side, 3 that overlap; an even number, as they go in twos.
    assert counts == [2**3, 3**3 + 1]


def test_members_of_an_ensemble_look_at_all_their_regions() -> None:
    spacing = (1.0, 1.0, 1.0)
    geometry, voxels = grid((16, 26, 30), spacing=spacing), scan((16, 26, 30))[None]
    near, far = (cascade(spacing=spacing, margin_mm=mm) for mm in (0.0, 2.0))
    found = Predictor(members=(near, far)).segment(voxels, geometry=geometry)
    alone = Predictor(members=(far,)).segment(voxels, geometry=geometry)
    assert np.array_equal(found, alone)
    plain = replace(near, inference=Inference(), finder=None)
    everywhere = Predictor(members=(near, plain)).segment(voxels, geometry=geometry)
    assert np.array_equal(everywhere, Predictor(members=(plain,)).segment(voxels, geometry=geometry))


def test_a_members_own_rules_clean_its_labels() -> None:
    spacing = (1.0, 1.0, 1.0)
    voxels = np.full((1, 9, 9, 9), -50, np.int16)
    voxels[0, 1:4, 1:4, 1:4] = voxels[0, 7, 7, 7] = 50
    member = Member(
        model=Bands(), task=task(BANDS, spacing=spacing), inference=Inference(clean_up=CleanUp(largest=("soft",)))
    )
    found = Predictor(members=(member,)).segment(voxels, geometry=grid((9, 9, 9), spacing=spacing))
    assert found.sum() == 27 and found[7, 7, 7] == 0


def test_a_part_keeps_its_place_in_the_patient() -> None:
    geometry = grid((9, 8, 7), spacing=(3.0, 2.0, 1.0), direction=DIRECTIONS["PIR"])
    part = part_of(geometry, region=np.s_[2:9, 1:3, 4:7])
    assert part.shape == (7, 2, 3) and part.spacing == geometry.spacing
    np.testing.assert_allclose(part.position((1, 1, 1)), geometry.position((3, 2, 5)))


def write_model(
    folder: Path, *, part: str, seed: int = 0, finder: Path | None = None, channels: tuple[str, ...] = ("CT",)
) -> Path:
    """A coarse or fine model of random weights."""
    recipe = recipes.load("trainables", name="coarse_to_fine")
    values = {"part": part, "features": 4, "most_features": 8, "levels": 3, "initial": "models:/earlier/1"}
    params = recipes.build_params(recipe, values=values)
    rules = (Normalisation(scheme="ct", low=-1024, high=3000),) * len(channels)
    built_for = replace(
        task(BANDS, spacing=(1.0, 1.0, 1.0)), channels=channels, normalisation=rules, patch_size=(16, 16, 16)
    )
    built_for = recipe.task(params, built_for)
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1).state_dict()
    snapshot = Snapshot(weights=recipe.build(params, built_for).state_dict(), metrics={}, epoch=0, optimizer=optimizer)
    document = {
        "run": Run(trainable="coarse_to_fine", store="s").to_json(),
        "task": built_for.to_json(),
        "params": recipes.params_json(params),
    }
    checkpoint.save(folder, snapshot=snapshot, run=document, finder=finder)
    return folder


def test_a_fine_model_carries_the_coarse_one(tmp_path: Path) -> None:
    coarse = write_model(tmp_path / "coarse", part="coarse", seed=1)
    member = load_member(write_model(tmp_path / "fine", part="fine", finder=coarse))
    assert member.inference.margin_mm == 40.0 and member.finder is not None
    assert (
        member.finder.inference
        == load_member(coarse).inference
        == Inference(overlap=0.0, clean_up=member.inference.clean_up)
    )
    for name, value in load_member(coarse).model.state_dict().items():
        assert torch.equal(member.finder.model.state_dict()[name].cpu(), value.cpu())
    assert not checkpoint.load(tmp_path / "fine" / FINDER).optimizer


def test_a_fine_model_without_its_finder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="fine: holds no 'finder'"):
        load_member(write_model(tmp_path / "fine", part="fine"))


def test_the_finder_is_the_initial_model_or_its_own_finder(tmp_path: Path) -> None:
    coarse = write_model(tmp_path / "coarse", part="coarse", seed=1)
    fine = write_model(tmp_path / "fine", part="fine", finder=coarse)
    weights = checkpoint.load(coarse).weights
    for number, initial in enumerate((coarse, fine)):
        keep_finder(pinned(initial), task=load_member(coarse).task, folder=tmp_path / f"kept{number}")
        kept = checkpoint.load(tmp_path / f"kept{number}")
        assert not kept.optimizer and all(torch.equal(kept.weights[name], value) for name, value in weights.items())
    digest = checkpoint.verify(tmp_path / "kept0")
    keep_finder(
        pinned(write_model(tmp_path / "b", part="coarse")), task=load_member(coarse).task, folder=tmp_path / "kept0"
    )
    assert checkpoint.verify(tmp_path / "kept0") == digest, "a resumed run keeps its finder"


def test_a_finder_of_other_channels_is_refused(tmp_path: Path) -> None:
    coarse = write_model(tmp_path / "coarse", part="coarse", channels=("CT", "PET"))
    single = load_member(write_model(tmp_path / "single", part="coarse")).task
    with pytest.raises(ModelError, match=r"takes the channels \('CT', 'PET'\), the data has \('CT',\)"):
        keep_finder(pinned(coarse), task=single, folder=tmp_path / "kept")


def test_an_unlisted_finder_is_none(tmp_path: Path) -> None:
    coarse = write_model(tmp_path / "coarse", part="coarse")
    write_model(tmp_path / "coarse" / FINDER, part="coarse")
    assert checkpoint.finder_of(coarse) is None


def test_a_damaged_finder_is_named(tmp_path: Path) -> None:
    fine = write_model(tmp_path / "fine", part="fine", finder=write_model(tmp_path / "coarse", part="coarse"))
    weights = fine / FINDER / checkpoint.WEIGHTS
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelError, match=r"fine: file 'finder/weights\.safetensors' is damaged"):
        load_member(fine)


@pytest.mark.parametrize("name", ["finder/../../secret", "finder/finder/secret", "finder//secret"])
def test_a_manifest_cannot_point_outside_of_the_finder(tmp_path: Path, name: str) -> None:
    fine = write_model(tmp_path / "fine", part="fine", finder=write_model(tmp_path / "coarse", part="coarse"))
    manifest = json.loads((fine / checkpoint.MANIFEST).read_text())
    (tmp_path / "secret").write_text("")
    empty = manifest["files"][checkpoint.RUN]["sha256"]
    manifest["files"][name] = {"bytes": 0, "sha256": empty}
    (fine / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match="missing; expected it from the manifest"):
        checkpoint.verify(fine)
