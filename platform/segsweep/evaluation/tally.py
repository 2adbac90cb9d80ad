"""What a folder of predictions comes to, case by case: scores, lesions, and whatever could not be scored as usual."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segsweep.errors import InputError, StorageAwayError, StoreError, unknown
from segsweep.evaluation.lesions import LesionScore, lesion_score
from segsweep.evaluation.metrics import Score, empty_score, score
from segsweep.evaluation.profiles import Profile, plain_name
from segsweep.evaluation.sources import Labelled, Source, named_by_ids, read_case
from segsweep.evaluation.surface import union, with_margin
from segsweep.terminal import complain

# Whose files a failure belongs to when it is no model's.
REFERENCE = "reference"
_REMARKS = {
    "failed_cases": "could not be read:",
    "missing_cases": "no prediction for",
    "cases_without_reference": "no reference for",
    "structures_not_predicted": "does not predict",
    "cases_with_forbidden_values": "forbidden label values (scored 0) in",
}


class Readable:
    """A source without the cases that failed. It keeps the last case that was read: a report asks for one once a picture."""

    def __init__(self, source: Source, *, failed: Collection[str]) -> None:
        self._source, self._failed = source, frozenset(failed)
        self._last: Labelled | None = None

    @property
    def cases(self) -> tuple[str, ...]:
        return tuple(case for case in self._source.cases if case not in self._failed)

    def read(self, case: str) -> Labelled:
        if self._last is None or self._last.case != case:
            self._last = None  # two label maps need not lie in memory
            self._last = self._source.read(case)
        return self._last

    def image(self, case: str) -> NDArray | None:
        """As the source has it; none where it is damaged, which costs a picture its background and no scores."""
        try:
            return self._source.image(case)
        except StorageAwayError:
            raise
        except StoreError as error:
            complain(str(error))
            return None


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Scores of several models, the main one first, against one source of references; `add` counts one case of all of them.

    `lesions` names structures whose lesions are counted beside those of the profile. A file that cannot be read, or lies on another grid,
    is one case less: it is named in `failures`, by model (REFERENCE for a reference), and its case is missing.
    """

    source: Source
    models: Mapping[str, Source]
    rules: Profile
    lesions: tuple[str, ...] = ()
    scores: dict[str, list[Score]] = field(default_factory=dict)
    lesion_scores: dict[str, list[LesionScore]] = field(default_factory=dict)
    failures: dict[str, dict[str, str]] = field(default_factory=dict)
    missing: dict[str, list[str]] = field(default_factory=dict)
    not_predicted: dict[str, list[str]] = field(default_factory=dict)
    refused: dict[str, list[str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def add(self, case: str) -> None:
        """Score one case of every model. One label map of each side is held at a time."""
        try:
            truth = self.source.read(case)
        except StorageAwayError:
            raise  # nothing is wrong with the case
        except (InputError, StoreError) as error:
            self.failures.setdefault(REFERENCE, {})[case] = str(error)
            return
        _note(self.left_out, *(name for name in truth.values if not self.rules.covers(name)))
        for name, model in self.models.items():
            self._add(name, model=model, truth=truth)

    def marks(self) -> dict[str, Any]:
        """What was not scored as usual, as values of summary.json."""
        return {
            "missing_cases": self.missing,
            "cases_without_reference": self._strangers(),
            "failed_cases": self.failures,
            "structures_not_predicted": self.not_predicted,
            "cases_with_forbidden_values": self.refused,
            "structures_outside_profile": self.left_out,
        }

    def sentences(self) -> tuple[str, ...]:
        """One for every file that failed, and for every structure whose lesions were asked for and that nothing holds."""
        told = [f"{name}: {text}" for name, cases in self.failures.items() for text in cases.values()]
        known = {one.structure for rows in self.scores.values() for one in rows}
        lost = set(self.lesions) - {name for name in self.lesions if plain_name(name) in map(plain_name, known)}
        return (*told, *(unknown(name, kind="scored structures", known=known) for name in sorted(lost)))

    def readable(self) -> Mapping[str, Readable]:
        """The models without the cases that failed."""
        return {name: Readable(model, failed=self.failures.get(name, ())) for name, model in self.models.items()}

    def _strangers(self) -> dict[str, list[str]]:
        """Predictions that no reference has the name of."""
        found = {name: sorted({*model.cases} - {*self.source.cases}) for name, model in self.models.items()}
        return {name: cases for name, cases in found.items() if cases}

    def _add(self, name: str, *, model: Source, truth: Labelled) -> None:
        found = self._read(name, model=model, truth=truth)
        if found is None:
            _note(self.missing.setdefault(name, []), truth.case)
            if self.rules.missing == "leave out":
                return
        highest = self.rules.largest_value
        if found is not None and highest is not None and found.largest > highest:
            _note(self.refused.setdefault(name, []), truth.case)
            self._score(list(truth.values), name=name, truth=truth, found=None)
            return
        lacking = [one for one in truth.values if found and one not in found.values and self.rules.covers(one)]
        if lacking:
            _note(self.not_predicted.setdefault(name, []), *lacking)
        left_out = lacking if self.rules.missing == "leave out" else []
        wanted = [one for one in truth.values if one not in left_out]
        if found is not None and named_by_ids(model):
            wanted += [one for one in found.values if one not in truth.values]
        self._score(wanted, name=name, truth=truth, found=found)

    def _read(self, name: str, *, model: Source, truth: Labelled) -> Labelled | None:
        """The prediction; None where there is none that can be used."""
        if truth.case not in model.cases:
            return None
        try:
            return read_case(model, case=truth.case, like=truth)
        except InputError as error:
            self.failures.setdefault(name, {})[truth.case] = str(error)
            return None

    def _score(self, wanted: list[str], *, name: str, truth: Labelled, found: Labelled | None) -> None:
        """Scores of the structures that the profile covers; without a usable prediction each gets 0, also one that is absent."""
        pairs = _Pairs(truth=truth, found=found)
        scores, counted = self.scores.setdefault(name, []), self.lesion_scores.setdefault(name, [])
        chosen = {plain_name(one) for one in self.lesions}
        for structure in filter(self.rules.covers, wanted):
            rule = self.rules.rule(structure)
            rule = rule if found else dataclasses.replace(rule, both_empty=0.0)
            reference, predicted = pairs.masks(structure)
            measure = score if found else empty_score
            scores.append(
                measure(
                    predicted,
                    reference=reference,
                    spacing=truth.file_spacing,
                    case=truth.case,
                    structure=structure,
                    rule=rule,
                )
            )
            if self.rules.lesions == "all" or plain_name(structure) in chosen:
                absent = 1.0 if math.isnan(rule.both_empty) else rule.both_empty
                counted.append(
                    lesion_score(
                        predicted, reference=reference, case=truth.case, structure=structure, both_empty=absent
                    )
                )


class _Pairs:
    """Masks of one case by structure, cut to the box of both and a voxel around it, in the axis order of the reference's file."""

    def __init__(self, *, truth: Labelled, found: Labelled | None) -> None:
        self._truth, self._found = truth, found
        self._boxes = [truth.boxes(), found.boxes() if found else {}]

    def masks(self, structure: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Reference and prediction; empty ones of one voxel where neither holds the structure."""
        box = union([boxes[structure] for boxes in self._boxes if structure in boxes])
        if box is None:
            return np.zeros((1, 1, 1), dtype=bool), np.zeros((1, 1, 1), dtype=bool)
        box = with_margin(box, shape=self._truth.label.shape)
        reference = self._truth.mask(structure, box=box)
        predicted = self._found.mask(structure, box=box) if self._found else np.zeros_like(reference)
        return self._truth.turn.invert(reference), self._truth.turn.invert(predicted)


def _note(into: list[str], *names: str) -> None:
    into.extend(name for name in names if name not in into)


def remarks(marks: Mapping[str, Any], *, most: int | None = None) -> list[str]:
    """What was not scored as usual (as in `Tally.marks`) in lines for people; of more than `most` names only so many."""
    lines = [
        f"{model}: {text} {_listed(names, most=most)}"
        for key, text in _REMARKS.items()
        for model, names in marks[key].items()
    ]
    outside = marks["structures_outside_profile"]
    return [*lines, f"not scored by this profile: {_listed(outside, most=most)}"] if outside else lines


def _listed(names: Collection[str], *, most: int | None) -> str:
    shown = list(names)[:most]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(shown) < len(names) else "")
