import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segsweep import recipes
from segsweep.data.joint import open_stores
from segsweep.data.planning import Normalisation
from segsweep.data.store import Store
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.errors import InputError, RecipeError
from segsweep.inference.predictor import Member, Predictor
from segsweep.learning import checkpoint
from segsweep.learning.loop import Setting, train
from segsweep.learning.losses import build_loss
from segsweep.learning.memory import training_bytes
from segsweep.learning.method import load_method
from segsweep.learning.patches import TrainingCase
from segsweep.learning.sampling import source_order
from segsweep.learning.task import Head, Task, normalise, task_from_json
from segsweep.learning.transfer import pinned, transfer_from
from segsweep.run import Run
from segsweep.sweeps.preparing import prepare

UNISEG = recipes.load("trainables", name="uniseg")
# Classes with background of the eleven upstream datasets, in the paper's order (UniSeg, upstream training).
CLASSES = (3, 3, 3, 3, 2, 2, 2, 2, 2, 4, 2)
TINY = {"features": 4, "most_features": 8}
PATCH = (16, 32, 32)
# Of two datasets: liver, spleen, a tumour within the liver; liver.
OVERLAPPING = LabelTable(
    labels=LabelSet(structures=("a/liver", "a/spleen", "a/tumour", "b/liver")),
    atoms=((), (0,), (1,), (3,), (0, 2)),
)
# The outputs that each dataset knows, in the order of its own table.
KNOWN = {"softmax": ([0, 1, 2, 4], [0, 3]), "sigmoid": ([0, 1, 2], [3])}


def task_of(
    table: LabelTable, *, channels: int = 1, patch_size: tuple[int, int, int] = PATCH, head: Head = "softmax"
) -> Task:
    return Task(
        channels=tuple("abcd"[:channels]),
        table=table,
        head=head,
        patch_size=patch_size,
        spacing=(2.0, 1.0, 1.0),
        normalisation=(Normalisation(scheme="ct", low=-100.0, high=100.0),) * channels,
    )


def exclusive(*classes: int) -> LabelTable:
    """Datasets named a, b, ... of so many exclusive classes, background among them."""
    names = [f"{'abcdefghijk'[source]}/{index}" for source, n in enumerate(classes) for index in range(n - 1)]
    return LabelTable(labels=LabelSet(structures=tuple(names)), atoms=((), *((i,) for i in range(len(names)))))


def built(task: Task, **values: Any) -> Any:
    torch.manual_seed(0)
    return UNISEG.build(recipes.build_params(UNISEG, values=values), task)


def upstream(*, head: Head = "softmax") -> Any:
    return built(task_of(OVERLAPPING, head=head), part="upstream", **TINY)


def shapes_within(model: Any, *, image: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """What goes into and comes out of the parts of a model on images of a shape, without computing it."""
    seen = {}
    model = model.to("meta").eval()
    watched = {"bottleneck": model.encoder.stages[-1], "first up": model.decoder.transpconvs[0]}
    for name, module in watched.items():

        def see(_module: nn.Module, inputs: tuple[Tensor], output: Tensor, name: str = name) -> None:
            seen[f"into {name}"], seen[name] = tuple(inputs[0].shape), tuple(output.shape)

        module.register_forward_hook(see)
    with torch.no_grad():
        seen["logits"] = tuple(model(torch.empty(image, device="meta"))[0].shape)
    return seen


def test_the_upstream_network_has_the_papers_shapes() -> None:
    table = exclusive(*CLASSES)
    model = built(task_of(table, patch_size=(64, 192, 192)), preset="upstream")
    assert model.prompt.shape == (1, 11, 4, 6, 6)
    assert [tuple(layer.conv.weight.shape) for layer in model.fuse] == [
        (82, 331, 3, 3, 3),
        (82, 82, 3, 3, 3),
        (11, 82, 3, 3, 3),
    ]
    assert sum(parameter.numel() for parameter in model.fuse.parameters()) == 939_261
    assert {tuple(head.weight.shape[:2]) for head in model.decoder.seg_layers} == {
        (4, 320), (4, 256), (4, 128), (4, 64), (4, 32),
    }  # fmt: skip
    assert not [name for name in model.state_dict() if name.endswith("bias") and ("seg" in name or "transp" in name)]
    assert (model.own.sum(1)).tolist() == list(CLASSES)
    assert (model.channels.amax(1) + 1).tolist() == list(CLASSES)
    seen = shapes_within(model, image=(2, 1, 64, 192, 192))
    assert seen["bottleneck"] == (2, 320, 4, 6, 6)
    assert seen["into first up"] == (2, 321, 4, 6, 6)
    assert seen["first up"] == (2, 320, 8, 12, 12)
    assert seen["logits"] == (2, len(table.atoms), 64, 192, 192)


def test_the_fine_tuned_network_has_no_prompt() -> None:
    model = built(task_of(exclusive(55), channels=2, patch_size=(32, 192, 192)))
    names = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    assert not [name for name in names if "prompt" in name or "fuse" in name]
    stem = model.encoder.stages[0][0].convs[0]
    assert {name: tuple(conv.weight.shape) for name, conv in stem.convs.items()} == {
        str(channels): (32, channels, 1, 3, 3) for channels in (1, 2, 4)
    }
    assert model.decoder.stages[-1].convs[0].conv.kernel_size == (3, 3, 3)
    seen = shapes_within(model, image=(1, 2, 32, 192, 192))
    assert seen["bottleneck"] == seen["into first up"] == (1, 320, 2, 6, 6)
    assert seen["logits"] == (1, 55, 32, 192, 192)


def test_axes_are_halved_as_in_the_paper_where_the_patch_allows_it() -> None:
    paper = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert UNISEG.fitting_strides((32, 192, 192)) == UNISEG.fitting_strides((64, 192, 192)) == paper
    assert UNISEG.fitting_strides((32, 48, 64)) == (*paper[:-1], (2, 1, 2))
    assert UNISEG.fitting_strides((4, 32, 33))[2:] == ((2, 2, 1), (1, 2, 1), (1, 2, 1), (1, 1, 1))


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("source", [0, 1])
def test_the_masked_loss_is_that_of_the_datasets_own_softmax(source: int, partial: bool) -> None:
    """Loss and gradients equal those of a softmax over the head's first channels, at all levels that count."""
    model = upstream().train()
    heads: list[list[Tensor]] = []
    model.decoder.register_forward_hook(lambda _module, _inputs, output: heads.append(output))
    x_BCZYX, numbers = torch.randn(2, 1, *PATCH), torch.full((2,), source)
    joint, own = task_of(OVERLAPPING), KNOWN["softmax"][source]
    tables = (
        LabelTable(labels=LabelSet(structures=("liver", "spleen", "tumour")), atoms=((), (0,), (1,), (0, 2))),
        LabelTable(labels=LabelSet(structures=("liver",)), atoms=((), (0,))),
    )
    target = torch.randint(len(own), (2, *PATCH))
    annotated = torch.ones(2, len(tables[source].labels.structures), dtype=torch.bool)
    annotated[1, -1] = not partial
    everywhere = torch.zeros(2, 4, dtype=torch.bool)
    everywhere[:, slice(0, 3) if source == 0 else slice(3, 4)] = annotated

    levels = model(x_BCZYX, numbers)
    assert len(levels) == 5 and all(level.shape[1] == 5 for level in levels)
    value = build_loss("dice_ce", task=joint, batch_dice=False)(levels, torch.tensor(own)[target], everywhere)
    found = torch.autograd.grad(value, list(model.parameters()))
    model(x_BCZYX, numbers)
    first = [level[:, : len(own)] for level in heads[-1]]
    expected = build_loss("dice_ce", task=task_of(tables[source]), batch_dice=False)(first, target, annotated)
    gradients = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
    for (name, parameter), gradient, wanted in zip(model.named_parameters(), found, gradients, strict=True):
        wanted = torch.zeros_like(parameter) if wanted is None else wanted
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6, msg=name)
    assert float(found[0].abs().sum()) > 0


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_every_sample_is_decoded_for_its_own_source(head: Head) -> None:
    model = upstream(head=head).eval()
    x_BCZYX = torch.randn(2, 1, *PATCH)
    with torch.no_grad():
        mixed = model(x_BCZYX, torch.tensor([1, 0]))[0]
        alone = [model(x_BCZYX[[sample]], torch.tensor([1 - sample]))[0] for sample in (0, 1)]
        other = model(x_BCZYX[:1], torch.tensor([0]))[0]
    torch.testing.assert_close(mixed, torch.cat(alone), rtol=1e-4, atol=1e-4)
    for sample, source in enumerate((1, 0)):
        known = KNOWN[head][source]
        foreign = [output for output in range(mixed.shape[1]) if output not in known]
        assert bool((mixed[sample, foreign] == UNISEG.IMPOSSIBLE).all())
        assert float(mixed[sample, known].abs().max()) < 100
    assert not torch.equal(other[0, 0], alone[0][0, 0]), "the prompt tells sources apart"


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_without_a_source_every_dataset_answers_for_itself(head: Head) -> None:
    model = upstream(head=head).eval()
    x_BCZYX = torch.randn(2, 1, *PATCH)
    with torch.no_grad():
        every = model(x_BCZYX)
        own = [model(x_BCZYX, torch.full((2,), source))[0] for source in (0, 1)]
    assert len(every) == 1
    for source, known in enumerate(KNOWN[head]):
        if head == "softmax":
            torch.testing.assert_close(every[0][:, known], own[source][:, known] - own[source][:, :1])
            assert torch.equal(every[0][:, known].argmax(1), own[source][:, known].argmax(1))
        else:
            torch.testing.assert_close(every[0][:, known], own[source][:, known])
    if head == "softmax":
        assert bool((every[0][:, 0] == 0).all())


def test_a_stem_takes_one_two_or_four_channels() -> None:
    one = task_of(exclusive(3))
    with pytest.raises(RecipeError, match="the store has 3 channels; uniseg has"):
        built(task_of(exclusive(3), channels=3), **TINY)
    model = built(one, **TINY).train()
    with pytest.raises(RecipeError, match="an image of 3 channels"):
        model(torch.zeros(1, 3, *PATCH))
    for channels, other in itertools.permutations((1, 2, 4), 2):
        model.zero_grad()
        model(torch.randn(1, channels, *PATCH))[0].square().sum().backward()
        stem = model.encoder.stages[0][0].convs[0]
        assert float(stem.convs[str(channels)].weight.grad.abs().sum()) > 0
        assert float(stem.convs[str(other)].weight.grad.abs().sum()) == 0


def test_upstream_has_its_own_spacing_and_window() -> None:
    store = dataclasses.replace(
        task_of(OVERLAPPING, channels=2),
        normalisation=(Normalisation(scheme="ct", low=-10.0, high=10.0), Normalisation(scheme="z-score")),
    )

    def asked(**values: Any) -> Task:
        return UNISEG.task(recipes.build_params(UNISEG, values=values), store)

    assert asked() == store
    own = asked(part="upstream")
    assert own.spacing == (3.0, 1.5, 1.5) and own.normalisation[1] == store.normalisation[1]
    scan = np.array([-2000.0, -325.0, 0.0, 325.0, 9.0, 2000.0]).reshape(1, 1, 1, 6)
    found = normalise(scan, normalisation=own.normalisation[:1])
    assert found.ravel().tolist() == pytest.approx([0, 0, 0.5, 1, 334 / 650, 1])
    plain = asked(part="upstream", window=False, spacing=(1, 1, 1))
    assert plain == dataclasses.replace(store, spacing=(1.0, 1.0, 1.0))


def test_each_upstream_dataset_has_fifty_batches_of_every_epoch() -> None:
    params = recipes.build_params(UNISEG, values={"preset": "upstream"})
    assert params.sampling == "quota"
    order = source_order(tuple(range(len(CLASSES))), iterations=params.iterations, seed=0, epoch=3)
    assert set(Counter(order).values()) == {50}


def test_parameters_that_cannot_be_are_refused() -> None:
    for values, words in (({"features": 0}, "features=0"), ({"spacing": (0, 1, 1)}, "mm above 0")):
        with pytest.raises(RecipeError, match=words):
            recipes.build_params(UNISEG, values=values)


def test_the_memory_of_both_parts_is_estimated() -> None:
    for model in (upstream(), built(task_of(exclusive(3)), **TINY)):
        assert training_bytes(model, patch_size=PATCH, channels=1, batch_size=2) > 1e6


def setting_of(store: Store, *, task: Task | None = None, **values: Any) -> Setting:
    """A training on all cases of a store, as a run makes it, of a given task or of one with its structures."""
    method = load_method("uniseg")
    given = {
        **TINY, "patch_size": PATCH, "batch_size": 2, "epochs": 3, "iterations": 5, "validation_iterations": 2,
        "optimizer": "adamw", "augmentation": "none", "mirror": "none", "learning_rate": 5e-3, **values,
    }  # fmt: skip
    params = method.params(given)
    task = task or method.task(params, task=task_of(store.table))
    cases = tuple(
        TrainingCase(
            case_id=case_id,
            grid=store.grid(case_id),
            annotated=tuple(name in record.annotated for name in store.table.labels.structures),
            source=task.sources.index(case_id.partition(".")[0]) if len(task.sources) > 1 else 0,
        )
        for case_id, record in store.cases.items()
    )
    torch.manual_seed(0)
    return Setting(
        model=method.build(params, task=task), task=task, params=params, stages=method.stages(params),
        loss=method.loss(params, task=task), training=cases, validation=cases,
    )  # fmt: skip


def test_it_trains_upstream_segments_each_dataset_and_is_fine_tuned(
    tmp_path: Path, tiny_store: Callable[..., Path]
) -> None:
    label = np.zeros((16, 32, 32), dtype=np.uint8)
    label[4:12, 8:24, 8:24] = 1
    inner = label.copy()
    inner[6:10, 12:20, 12:20] = 2
    cases = {"a": {"c0": inner, "c1": inner}, "b": {"c0": label}}
    labels = {"a": LabelSet(structures=("liver", "tumour")), "b": LabelSet(structures=("fat",))}
    stores = [tiny_store(name, labels=labels[name], cases=cases[name]) for name in ("a", "b")]
    joint = open_stores(",".join(map(str, stores)))
    setting = setting_of(joint, part="upstream", spacing=(2, 1, 1))
    assert setting.params.sampling == "quota"
    epochs = list(train(setting))
    assert epochs[-1].metrics["loss"] < epochs[0].metrics["loss"] - 0.1, [epoch.metrics["loss"] for epoch in epochs]
    assert epochs[-1].metrics["patch_dice"] > 0.1

    model = setting.model.eval()
    predictor = Predictor(members=(Member(model=model, task=setting.task),))
    for case_id, source in (("a.c0", 0), ("b.c0", 1)):
        grid = joint.grid(case_id)
        found = predictor.segment(
            grid.read_image(), geometry=grid.geometry, structures=joint.cases[case_id].annotated[:1]
        )
        image = torch.from_numpy(normalise(grid.read_image(), normalisation=setting.task.normalisation))[None]
        with torch.no_grad():
            own = model(image, torch.tensor([source]))[0].argmax(1)[0].numpy()
        assert np.array_equal(found, own)
        assert found.any()

    document = {"run": Run(trainable="uniseg", store=joint.uri).to_json(), "task": setting.task.to_json(), "params": {}}
    checkpoint.save(tmp_path / "upstream", snapshot=epochs[-1].snapshot(), run=document)
    tuned = setting_of(open_stores(stores[0]))
    report = transfer_from(tuned.model, initial=pinned(tmp_path / "upstream"), task=tuned.task)
    heads = {f"decoder.seg_layers.{level}.weight" for level in range(5)}
    assert set(report.new) == heads, "as many classes as upstream's head has: new nevertheless"
    assert report.adapted == ("decoder.transpconvs.0.weight",)
    assert {name for name in report.dropped if not name.startswith("fuse.")} == heads | {"prompt"}
    weights, before = tuned.model.state_dict(), model.state_dict()
    assert torch.equal(weights[report.adapted[0]], before[report.adapted[0]][:-1])
    assert all(torch.equal(weights[name], before[name]) for name in report.loaded)
    assert len([name for name in report.loaded if ".convs.0.convs." in name]) == 6, "all three first convolutions"
    assert UNISEG.adapt(weights, tuned.model) is weights
    epochs = list(train(tuned))
    assert epochs[-1].metrics["loss"] < epochs[0].metrics["loss"] - 0.1, [epoch.metrics["loss"] for epoch in epochs]


def test_one_network_learns_datasets_of_one_channel_and_of_four(tiny_store: Callable[..., Path]) -> None:
    label = np.zeros((16, 32, 32), dtype=np.uint8)
    label[4:12, 8:24, 8:24] = 1
    stores = [
        tiny_store(name, labels=LabelSet(structures=(name,)), cases={"c0": label, "c1": label}, channels=channels)
        for name, channels in (("body", ("CT",)), ("brain", ("T1", "T1c", "T2", "FLAIR")))
    ]
    uri = ",".join(map(str, stores))
    values = {"part": "upstream", "spacing": [2, 1, 1], "patch_size": [16, 32, 32], "head": "softmax"}
    prepared = prepare(Run(trainable="uniseg", store=uri, params={**TINY, **values}, fold="all"))
    assert prepared.task.widths == (1, 4)
    assert prepared.task.scans(0).normalisation == (UNISEG.UPSTREAM_CT,)
    setting = setting_of(prepared.store, task=prepared.task, part="upstream", spacing=(2, 1, 1), head="softmax")
    epochs = list(train(setting))
    assert epochs[-1].metrics["loss"] < epochs[0].metrics["loss"] - 0.1, [epoch.metrics["loss"] for epoch in epochs]

    member = Member(model=setting.model.eval(), task=task_from_json(prepared.task.to_json()))
    predictor = Predictor(members=(member,))
    for source, name in enumerate(("body", "brain")):
        grid = prepared.store.grid(f"{name}.c0")
        scan = {"image": grid.read_image(), "geometry": grid.geometry}
        found = predictor.segment(**scan, structures=(f"{name}/{name}",))
        assert np.array_equal(found > 0, predictor.only(name).segment(**scan) > 0)
        normal = normalise(scan["image"], normalisation=prepared.task.scans(source).normalisation)
        with torch.no_grad():
            own = setting.model(torch.from_numpy(normal)[None], torch.tensor([source]))[0].argmax(1)[0].numpy()
        assert np.array_equal(found, own)
        assert found.any()
        with pytest.raises(InputError, match=r"body, brain\), whose scans differ; expected one of them"):
            predictor.segment(**scan)
    grid = prepared.store.grid("body.c0")
    with pytest.raises(InputError, match=r"1 channels; the model expects \('T1', 'T1c', 'T2', 'FLAIR'\)"):
        predictor.only("brain").segment(grid.read_image(), geometry=grid.geometry)
