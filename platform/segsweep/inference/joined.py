"""A model that learned several datasets as the model of one: that dataset's outputs alone, in its own names and label values.

The outputs of different datasets do not exclude each other (MultiTalent): a voxel may lie in the livers of both. Within a dataset,
the best atom is what lies above the threshold of 0.5, wherever the dataset has such an atom.
"""

import dataclasses
from collections.abc import Collection

from torch import Tensor, nn

from segsweep.data.structures import LabelSet, LabelTable
from segsweep.errors import InputError, unknown
from segsweep.learning.inference import CleanUp
from segsweep.learning.task import Scans, Task


class Outputs(nn.Module):
    """Some outputs of a model, in the order of `kept`."""

    def __init__(self, model: nn.Module, *, kept: tuple[int, ...]) -> None:
        super().__init__()
        self.model = model
        self.kept = list(kept)

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        return [level_BKZYX[:, self.kept] for level_BKZYX in self.model(x_BCZYX)]


def task_of(task: Task, *, dataset: str) -> Task:
    """The task as if the dataset were the only one: its scans, structure `a/liver` is `liver`, atoms are numbered anew.

    Raises InputError when the task does not join several datasets, or not this one.
    """
    _demand_joined(task, dataset=dataset)
    table, own = task.table, _structures(task, dataset=dataset)
    names = {
        table.labels.structures[index]: table.labels.structures[index].removeprefix(f"{dataset}/") for index in own
    }
    labels = LabelSet(
        structures=tuple(names.values()),
        pairs=tuple((names[left], names[right]) for left, right in table.labels.pairs if left in names),
    )
    atoms = tuple(tuple(own.index(index) for index in table.atoms[value]) for value in table.within(names))
    scans = task.scans(task.sources.index(dataset))
    return dataclasses.replace(
        task,
        channels=scans.channels,
        normalisation=scans.normalisation,
        own=(),
        table=LabelTable(labels=labels, atoms=atoms),
    )


def outputs_of(task: Task, *, dataset: str) -> tuple[int, ...]:
    """Which of a joint task's outputs `task_of` keeps, in its order."""
    own = _structures(task, dataset=dataset)
    if task.head == "sigmoid":
        return own
    return tuple(task.table.within([task.table.labels.structures[index] for index in own]).tolist())


def clean_up_of(rules: CleanUp, *, dataset: str) -> CleanUp:
    """A joint model's rules for one of its datasets alone, in that one's own names."""

    def own(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name.removeprefix(f"{dataset}/") for name in names if name.startswith(f"{dataset}/"))

    anchors = own(rules.anchors)
    return dataclasses.replace(
        rules, largest=own(rules.largest), anchors=anchors if len(anchors) == len(rules.anchors) else ()
    )


def demand_dataset(task: Task) -> None:
    """Raise InputError when one of the joined datasets has to be named: their outputs do not exclude each other, or their scans differ."""
    if len(task.sources) > 1 and (task.own or task.head == "sigmoid"):
        why = "whose scans differ" if task.own else "whose structures it finds independently"
        raise InputError(
            f"the model learned {len(task.sources)} datasets ({', '.join(task.sources)}), {why}; "
            "expected one of them: name it with --dataset"
        )


def scans_with(structures: Collection[str], *, task: Task) -> Scans:
    """The scans of the dataset that the structures (`a/liver`) are of. Raises InputError when they do not name one, but have to."""
    if not task.own:
        return task.scans(0)
    named = [name.rpartition("/")[0] for name in structures if name in task.table.labels.structures]
    if len(set(named)) != 1:
        demand_dataset(task)
    return task.scans(task.sources.index(named[0]))


def _demand_joined(task: Task, *, dataset: str) -> None:
    if len(task.sources) < 2:
        raise InputError(f"dataset {dataset!r} was asked for, the model learned only one; leave it out")
    if dataset not in task.sources:
        raise InputError(unknown(dataset, kind="datasets of the model", known=task.sources))


def _structures(task: Task, *, dataset: str) -> tuple[int, ...]:
    """Indices of the dataset's structures."""
    names = task.table.labels.structures
    return tuple(index for index, name in enumerate(names) if name.rpartition("/")[0] == dataset)
