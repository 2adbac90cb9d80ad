"""What a trainable is built for: channels, label table, head, patch and normalisation, as one frozen JSON-able value."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segsweep.data.geometry import Size, Spacing
from segsweep.data.planning import Normalisation
from segsweep.data.structures import LabelTable, labels_from_json

Head = Literal["softmax", "sigmoid"]


@dataclass(frozen=True, kw_only=True)
class Scans:
    """What the scans of one dataset are: their channels, and a rule for each."""

    channels: tuple[str, ...]
    normalisation: tuple[Normalisation, ...]


@dataclass(frozen=True, kw_only=True)
class Task:
    """All that a model needs to know of its data; saved beside its weights, so it predicts without the store.

    Where joined datasets differ in their scans, `own` holds those of each, in the order of `sources`, and `channels` and `normalisation`
    are those of the one with most channels; where they are alike, `own` is empty.
    """

    channels: tuple[str, ...]
    table: LabelTable
    head: Head
    patch_size: Size
    spacing: Spacing
    normalisation: tuple[Normalisation, ...]
    own: tuple[Scans, ...] = ()

    @property
    def widths(self) -> tuple[int, ...]:
        """The numbers of channels that images have, from the smallest: more than one where joined datasets differ in it."""
        return tuple(sorted({len(scans.channels) for scans in self.own} or {len(self.channels)}))

    def scans(self, source: int) -> Scans:
        """The scans of one of the `sources`."""
        return self.own[source] if self.own else Scans(channels=self.channels, normalisation=self.normalisation)

    def renormalised(self, change: Callable[[Normalisation], Normalisation]) -> "Task":
        """The task with every channel's rule changed."""
        own = tuple(replace(scans, normalisation=tuple(map(change, scans.normalisation))) for scans in self.own)
        return replace(self, normalisation=tuple(map(change, self.normalisation)), own=own)

    @property
    def outputs(self) -> int:
        """Channels of the logits: one an atom (softmax) or one a structure (sigmoid)."""
        return len(self.table.atoms) if self.head == "softmax" else len(self.table.labels.structures)

    @property
    def sources(self) -> tuple[str, ...]:
        """The datasets whose structures the table joins (`a` of `a/liver`), in order; one without a name for a single store."""
        names = (name.rpartition("/")[0] for name in self.table.labels.structures)
        return tuple(dict.fromkeys(names))

    @property
    def mirrored_outputs(self) -> tuple[int, ...] | None:
        """Output that stands at each output's place after a left/right flip; None when training could not flip either."""
        atoms = self.table.mirrored_atoms
        return atoms if atoms is None or self.head == "softmax" else self.table.labels.mirrored

    def to_json(self) -> dict[str, Any]:
        """JSON-able dictionary; `task_from_json` takes it back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def task_from_json(values: Mapping[str, Any]) -> Task:
    """The Task that `to_json` wrote."""
    table = values["table"]
    labels = labels_from_json(table["labels"])
    patch, spacing = values["patch_size"], values["spacing"]
    return Task(
        channels=tuple(values["channels"]),
        table=LabelTable(labels=labels, atoms=tuple(tuple(atom) for atom in table["atoms"])),
        head=values["head"],
        patch_size=(patch[0], patch[1], patch[2]),
        spacing=(spacing[0], spacing[1], spacing[2]),
        normalisation=_rules(values["normalisation"]),
        own=tuple(
            Scans(channels=tuple(scans["channels"]), normalisation=_rules(scans["normalisation"]))
            for scans in values.get("own", ())
        ),
    )


def _rules(values: Iterable[Mapping[str, Any]]) -> tuple[Normalisation, ...]:
    return tuple(Normalisation(**rule) for rule in values)


def normalise(image: NDArray, *, normalisation: tuple[Normalisation, ...]) -> NDArray[np.float32]:
    """A whole scan or a patch (c, z, y, x) as float32. The "z-score" scheme needs the whole scan."""
    result = image.astype(np.float32)
    for channel, rule in zip(result, normalisation, strict=True):
        fixed = rule if rule.scheme == "ct" else own_rule(channel, rule=rule)
        np.clip(channel, fixed.low, fixed.high, out=channel)
        channel -= fixed.mean
        channel /= max(fixed.deviation, 1e-8)
    return result


def own_rule(channel: NDArray, *, rule: Normalisation) -> Normalisation:
    """What a "z-score" rule means for one scan: its window, if it has one, and the scan's mean and deviation within it."""
    low, high = (rule.low, rule.high) if rule.low < rule.high else (-np.inf, np.inf)
    inside = np.clip(channel, low, high) if rule.low < rule.high else channel
    mean, deviation = inside.mean(dtype=np.float64), inside.std(dtype=np.float64)
    return Normalisation(scheme="ct", low=low, high=high, mean=float(mean), deviation=float(deviation))
