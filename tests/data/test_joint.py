"""Stores joined: cases and structures side by side under their datasets' names, voxels and folds those of the single stores."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from segsweep import recipes
from segsweep.data.building import derive_grid
from segsweep.data.joint import JointStore, open_stores
from segsweep.data.store import open_store
from segsweep.data.structures import LabelSet
from segsweep.errors import StoreError
from segsweep.learning.batches import draw
from segsweep.learning.loop import Setting, train
from segsweep.learning.losses import build_loss
from segsweep.learning.method import default_stages
from segsweep.learning.patches import TrainingCase
from segsweep.learning.sampling import Turn
from segsweep.learning.task import Task

SHAPE = (16, 32, 32)
A = LabelSet(structures=("liver", "kidney_L", "kidney_R"), pairs=(("kidney_L", "kidney_R"),))
B = LabelSet(structures=("spleen", "liver"))
IGNORE = 9

MakeStore = Callable[..., Path]


def label(*, seed: int, values: int, ignored: bool = False) -> np.ndarray:
    """Blocks of the values 1, 2, ... one above the other, at places that depend on the seed."""
    voxels = np.zeros(SHAPE, dtype=np.uint8)
    for value in range(1, values + 1):
        y, x = np.random.default_rng((seed, value)).integers(0, 20, size=2)
        voxels[5 * value - 4 : 5 * value, y : y + 10, x : x + 9] = value
    if ignored:
        voxels[0] = IGNORE
    return voxels


@pytest.fixture
def pair(tiny_store: MakeStore) -> str:
    """Six cases of A, five of B, of which the first has ignored voxels."""
    a = tiny_store("a", labels=A, cases={f"c{i}": label(seed=i, values=3) for i in range(6)})
    cases = {f"c{i}": label(seed=10 + i, values=2, ignored=i == 0) for i in range(5)}
    b = tiny_store("b", labels=B, cases=cases, ignore=IGNORE)
    return f"{a},{b}"


def test_structures_and_cases_stand_under_their_datasets_names(pair: str) -> None:
    joint = open_stores(pair)
    assert joint.dataset == "a+b"
    assert joint.uri == pair
    assert joint.table.labels.structures == ("a/liver", "a/kidney_L", "a/kidney_R", "b/spleen", "b/liver")
    assert joint.table.labels.pairs == (("a/kidney_L", "a/kidney_R"),)
    assert set(joint.cases) == {*(f"a.c{i}" for i in range(6)), *(f"b.c{i}" for i in range(5))}
    assert joint.cases["a.c0"].annotated == ("a/liver", "a/kidney_L", "a/kidney_R")
    assert joint.cases["b.c1"].annotated == ("b/spleen", "b/liver")
    assert joint.table.atoms == ((), (0,), (1,), (2,), (3,), (4,))


def test_masks_counts_and_samples_are_those_of_the_single_stores(pair: str) -> None:
    joint = open_stores(pair)
    for address in pair.split(","):
        single = open_store(address)
        for case_id, record in single.cases.items():
            found, own = joint.grid(f"{single.dataset}.{case_id}"), single.grid(case_id)
            np.testing.assert_array_equal(found.read_image(), own.read_image())
            here, there = found.read_label(), own.read_label()
            np.testing.assert_array_equal(here == joint.table.ignored, there == single.table.ignored)
            counts = joint.cases[f"{single.dataset}.{case_id}"].voxels
            assert counts == dict(zip(*np.unique(here, return_counts=True), strict=True))
            assert sum(counts.values()) == sum(record.voxels.values())
            for structure in single.table.labels.structures:
                name = f"{single.dataset}/{structure}"
                mask = joint.table.mask(here, structure=name)
                np.testing.assert_array_equal(mask, single.table.mask(there, structure=structure))
                (value,) = joint.table.values(name)
                assert mask[tuple(found.foreground[value].T)].all()


def test_a_region_of_a_derived_grid_is_translated_too(pair: str) -> None:
    for address in pair.split(","):
        for case_id in open_store(address).cases:
            derive_grid(Path(address) / "cases" / case_id, spacing=(2.0, 2.0, 2.0))
    joint = open_stores(pair)
    grid = joint.grid("b.c1", (2.0, 2.0, 2.0))
    assert grid.shape == (16, 16, 16)
    found = set(np.unique(grid.read_label((slice(0, 16), slice(0, 16), slice(0, 16)))))
    assert found == {0, *joint.table.values("b/spleen"), *joint.table.values("b/liver")}


def test_folds_are_the_stores_own(pair: str) -> None:
    joint, singles = open_stores(pair), [open_store(address) for address in pair.split(",")]
    for fold in range(5):
        expected = {f"{single.dataset}.{case_id}" for single in singles for case_id in single.validation(fold)}
        assert set(joint.validation(fold)) == expected
        assert set(joint.training(fold)) == set(joint.cases) - expected
    assert joint.validation("all") == ()
    assert joint.num_folds == 5
    assert joint.training("all") == tuple(sorted(joint.cases))


def test_the_digest_follows_that_of_every_store(pair: str, tiny_store: MakeStore) -> None:
    a, b = pair.split(",")
    c = tiny_store("c", labels=B, cases={"c0": label(seed=0, values=2)})
    digests = [open_stores(uri).digest for uri in (pair, pair, f"{a},{c}", f"{b},{c}", a)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


def test_the_plan_covers_all_stores_and_has_an_output_a_structure(pair: str) -> None:
    joint = open_stores(pair)
    assert joint.plan.head == "sigmoid"
    assert joint.plan.spacing == (2.0, 1.0, 1.0)
    (rule,) = joint.plan.normalisation
    inside = np.concatenate(
        [
            grid.read_image()[0][(label > 0) & (label < joint.table.ignored)]
            for grid in map(joint.grid, joint.cases)
            for label in [grid.read_label()]
        ]
    )
    assert rule.scheme == "ct"
    assert rule.mean == pytest.approx(inside.mean())


def test_stores_of_one_dataset_go_by_their_folders(tiny_store: MakeStore) -> None:
    case = {"c0": label(seed=0, values=2)}
    left, right = (tiny_store(name, labels=B, cases=case, dataset="msd") for name in ("Task01", "Task02"))
    joint = open_stores(f"{left}, {right}")
    assert joint.dataset == "Task01+Task02"
    assert set(joint.cases) == {"Task01.c0", "Task02.c0"}
    with pytest.raises(StoreError, match="two of the joined stores are named 'Task01'"):
        open_stores(f"{left},{left}")


def test_the_names_of_many_datasets_are_counted(tiny_store: MakeStore) -> None:
    case = {"c0": label(seed=0, values=2)}
    joint = open_stores(",".join(str(tiny_store(f"{letter * 30}", labels=B, cases=case)) for letter in "abc"))
    assert joint.dataset == f"3-datasets-{joint.digest[:8]}"


def test_what_does_not_fit_together_is_refused(pair: str, tiny_store: MakeStore, tmp_path: Path) -> None:
    a, _ = pair.split(",")
    with pytest.raises(StoreError, match="absent: no store found"):
        open_stores(f"{a},{tmp_path / 'absent'}")
    with pytest.raises(StoreError, match=r"no 'a\.c9' among cases"):
        open_stores(pair).grid("a.c9")
    long = tiny_store("long", labels=B, cases={"c" * 128: label(seed=0, values=2)})
    with pytest.raises(StoreError, match="too long"):
        open_stores(f"{a},{long}")
    dotted = tiny_store("d.1", labels=B, cases={"c0": label(seed=0, values=2)})
    with pytest.raises(StoreError, match=r"named 'd\.1' cannot be joined"):
        open_stores(f"{a},{dotted}")


def test_every_dataset_is_normalised_with_those_whose_scans_are_like_its_own(tiny_store: MakeStore) -> None:
    channels = {"a": ("CT",), "b": ("non_contrast_CT",), "mr": ("T2",), "pet": ("CT", "PET")}
    stores = {
        name: tiny_store(name, labels=B, cases={f"c{seed}": label(seed=seed, values=2)}, channels=channels[name])
        for seed, name in enumerate(channels)
    }
    joint = open_stores(",".join(map(str, stores.values())))
    assert isinstance(joint, JointStore)
    assert joint.channels == ("CT", "PET")
    rules = joint.normalisation
    pooled, other = (open_stores(f"{stores['a']},{stores[name]}").plan.normalisation for name in ("b", "mr"))
    assert rules["a"] == rules["b"] == pooled != other
    assert [rule.scheme for rule in rules["mr"]] == ["z-score"]
    assert [rule.scheme for rule in rules["pet"]] == ["ct", "z-score"]
    assert joint.plan.normalisation == rules["pet"]
    assert [len(joint.grid(f"{name}.c{seed}").read_image()) for seed, name in enumerate(channels)] == [1, 1, 1, 2]


def test_one_address_is_that_store_even_with_a_comma(tiny_store: MakeStore) -> None:
    store = tiny_store("a,b", labels=B, cases={"c0": label(seed=0, values=2)})
    assert open_stores(store) == open_store(store)
    assert not isinstance(open_stores(store), JointStore)


def joint_task(joint: JointStore) -> Task:
    plan = joint.plan
    return Task(
        channels=joint.channels,
        table=joint.table,
        head=plan.head,
        patch_size=(16, 32, 32),
        spacing=plan.spacing,
        normalisation=plan.normalisation,
    )


def training_cases(joint: JointStore, *case_ids: str) -> list[TrainingCase]:
    names = joint.table.labels.structures
    return [
        TrainingCase(
            case_id=case_id,
            grid=joint.grid(case_id, joint.plan.spacing),
            annotated=tuple(name in joint.cases[case_id].annotated for name in names),
        )
        for case_id in case_ids
    ]


def test_a_patch_of_one_dataset_teaches_nothing_to_the_outputs_of_another(pair: str) -> None:
    joint = open_stores(pair)
    assert isinstance(joint, JointStore)
    task = joint_task(joint)
    params = recipes.load("trainables", name="unet").Params(patch_size=task.patch_size, batch_size=2, head=task.head)
    for case_id, own in (("a.c1", [0, 1, 2]), ("b.c0", [3, 4])):
        batch = draw(training_cases(joint, case_id), task=task, params=replace(params, mirror="none"), turn=Turn())
        logits = torch.zeros(2, task.outputs, *task.patch_size, requires_grad=True)
        build_loss("dice_ce", task=task, batch_dice=False)([logits], batch.atoms, batch.annotated).backward()
        assert logits.grad is not None
        touched = torch.nonzero(logits.grad.flatten(2).abs().sum((0, 2)))[:, 0].tolist()
        assert touched == own
        ignored = (batch.atoms == task.table.ignored)[:, None].expand_as(logits)
        assert not logits.grad[ignored].any()


def test_the_loop_trains_on_a_joint_store(pair: str) -> None:
    joint = open_stores(pair)
    assert isinstance(joint, JointStore)
    task = joint_task(joint)
    recipe = recipes.load("trainables", name="unet")
    values = {"epochs": 1, "iterations": 2, "validation_iterations": 4, "batch_size": 2, "features": 4, "levels": 3}
    params = recipe.Params(patch_size=task.patch_size, head=task.head, **values)
    setting = Setting(
        model=recipe.build(params, task),
        task=task,
        params=params,
        stages=default_stages(params),
        loss=build_loss(params.loss, task=task, batch_dice=params.batch_dice),
        training=training_cases(joint, *joint.training(0)),
        validation=training_cases(joint, "a.c0", "b.c0"),
    )
    (epoch,) = train(setting)
    assert np.isfinite(epoch.metrics["loss"])
    scored = {name for name in epoch.metrics if name.startswith("patch_dice/")}
    assert {"patch_dice/a/liver", "patch_dice/b/liver"} <= scored
