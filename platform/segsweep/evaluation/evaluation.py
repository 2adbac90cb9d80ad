"""Scores a folder of predictions by a profile's rules and leaves scores.csv, summary.json and report.html."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segsweep.data import storage
from segsweep.data.joint import is_store, open_stores
from segsweep.data.store import Store
from segsweep.errors import InputError
from segsweep.evaluation.metrics import COLUMNS, Score, empty_score, score
from segsweep.evaluation.profiles import Profile
from segsweep.evaluation.profiles import profile as find_profile
from segsweep.evaluation.report import Report, render
from segsweep.evaluation.sources import (
    Labelled,
    MapFolder,
    Source,
    StoreLabels,
    open_folder,
    open_reference,
    read_case,
    require,
)
from segsweep.evaluation.summary import finite, summarise
from segsweep.evaluation.surface import union
from segsweep.evaluation.worst import view_of


@dataclass(frozen=True, kw_only=True)
class Options:
    """`labels` names a reference folder's values; `tolerance` (mm) replaces the profile's; `compare` holds other models'
    prediction folders by name; `view` is for the report's slice viewer: so many of the worst cases, or `CASE,CASE`; `progress` is
    called with (cases done, cases)."""

    labels: Path | None = None
    tolerance: float | None = None
    compare: Mapping[str, Path] = field(default_factory=dict)
    view: str = "3"
    progress: Callable[[int, int], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of all models (the main one first), their summary (as in summary.json), and the folder that holds the three files."""

    scores: Mapping[str, tuple[Score, ...]]
    summary: Mapping[str, Any]
    out: Path

    def rows(self) -> list[tuple[str, str, str]]:
        """Structure, Dice and NSD of the main model as text, mean with 95 % interval; the last row is over all structures."""
        model = next(iter(self.summary["models"].values()))
        entries = {**model["structures"], "all": model["overall"]}
        return [(name, _text(entry["dice"]), _text(entry["nsd"])) for name, entry in entries.items()]

    def lines(self) -> list[str]:
        """One line a model: mean Dice and NSD over all structures with their intervals."""
        models = self.summary["models"].items()
        return [f"{name}: Dice {_text(m['overall']['dice'])}, NSD {_text(m['overall']['nsd'])}" for name, m in models]


def evaluate(
    predictions: Path, *, reference: Store | str | Path, profile: str, out: Path, options: Options | None = None
) -> Evaluation:
    """Score `<case>.nii.gz` + labels.json in `predictions` against a store or a folder of references.

    A store is scored in the structures annotated in each case, on the cases that have a prediction, and a held-out split with any on all
    its cases; a folder on all its cases. What a case without a prediction scores is the profile's rule.
    Raises InputError that names the case for a prediction on another grid, and RecipeError for an unknown profile.
    """
    chosen = options or Options()
    rules = find_profile(profile)
    rules = rules if chosen.tolerance is None else rules.with_tolerance(chosen.tolerance)
    models = _models(predictions, compare=chosen.compare)
    if not isinstance(reference, Store):
        reference = open_stores(reference) if is_store(reference) else Path(reference)
    source = open_reference(reference, labels=chosen.labels)
    if isinstance(source, MapFolder):
        models = _named_like(models, reference=source, folder=Path(str(reference)))
    cases = _cases(source, predicted=next(iter(models.values())))
    view = view_of(chosen.view, cases=cases)
    marks = _Marks()
    scores: dict[str, list[Score]] = {name: [] for name in models}
    for done, case in enumerate(cases, start=1):
        _score_case(case, source=source, models=models, rules=rules, into=scores, marks=marks)
        if chosen.progress:
            chosen.progress(done, len(cases))
    kept = {name: tuple(rows) for name, rows in scores.items()}
    if not any(kept.values()):
        raise InputError(
            f"{predictions}: no structure could be scored; profile {rules.name} knows none of the annotated ones"
        )
    summary = {"profile": rules.name, **marks.to_json(), **summarise(kept)}
    report = Report(title=predictions.name, scores=kept, summary=summary, source=source, models=models, view=view)
    _write(out, scores=kept, summary=summary, report=render(report))
    return Evaluation(scores=kept, summary=summary, out=out)


@dataclass(frozen=True, kw_only=True)
class _Marks:
    """What was not scored as usual, per model: cases without prediction, structures a model does not predict."""

    missing: dict[str, list[str]] = field(default_factory=dict)
    not_predicted: dict[str, list[str]] = field(default_factory=dict)
    refused: dict[str, list[str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "missing_cases": self.missing,
            "structures_not_predicted": self.not_predicted,
            "cases_with_forbidden_values": self.refused,
            "structures_outside_profile": self.left_out,
        }


def _models(predictions: Path, *, compare: Mapping[str, Path]) -> Mapping[str, Source]:
    if predictions.name in compare:
        raise InputError(
            f"compare names {predictions.name!r}, which is the evaluated folder's own name; choose another name"
        )
    return {predictions.name: open_folder(predictions)} | {
        name: open_folder(folder) for name, folder in compare.items()
    }


def _named_like(models: Mapping[str, Source], *, reference: MapFolder, folder: Path) -> Mapping[str, Source]:
    """A folder without its own labels.json holds the values of the reference."""
    for name, model in models.items():
        if reference.values is None and isinstance(model, MapFolder) and model.values is not None:
            raise InputError(
                f"{name} names its structures but {folder} has no labels.json; expected names for both; pass --labels FILE"
            )
    return {
        name: dataclasses.replace(model, values=reference.values)
        if isinstance(model, MapFolder) and model.values is None
        else model
        for name, model in models.items()
    }


def _cases(source: Source, *, predicted: Source) -> tuple[str, ...]:
    if not isinstance(source, StoreLabels):
        if not set(source.cases) & set(predicted.cases):
            raise InputError(
                f"no prediction has a reference: predictions are {', '.join(predicted.cases[:3])}, references "
                f"{', '.join(source.cases[:3])}; expected equal names"
            )
        return source.cases
    for case in predicted.cases:
        require(case, source=source)
    return tuple(sorted({*predicted.cases, *_due(source.store, predicted=predicted.cases)}))


def _due(store: Store, *, predicted: tuple[str, ...]) -> Iterator[str]:
    """Annotated cases of each held-out split that predictions were made for: one that lacks its prediction is missing."""
    splits = {store.cases[case].split for case in predicted}
    for case, record in store.cases.items():
        if record.split != "train" and record.split in splits and record.annotated:
            yield case


def _score_case(
    case: str,
    *,
    source: Source,
    models: Mapping[str, Source],
    rules: Profile,
    into: dict[str, list[Score]],
    marks: _Marks,
) -> None:
    truth = source.read(case)
    _note(marks.left_out, *(name for name in truth.values if not rules.covers(name)))
    for name, model in models.items():
        found = read_case(model, case=case, like=truth) if case in model.cases else None
        if found is None:
            _note(marks.missing.setdefault(name, []), case)
            if rules.missing == "leave out":
                continue
        refused = found is not None and rules.largest_value is not None and int(found.label.max()) > rules.largest_value
        if refused:
            _note(marks.refused.setdefault(name, []), case)
        lacking = (
            () if found is None else tuple(one for one in truth.values if one not in found.values and rules.covers(one))
        )
        if lacking:
            _note(marks.not_predicted.setdefault(name, []), *lacking)
        wanted = [one for one in truth.values if rules.covers(one)]
        if rules.missing == "leave out":
            wanted = [one for one in wanted if one not in lacking]
        into[name] += _score_structures(wanted, truth=truth, found=None if refused else found, rules=rules)


def _score_structures(wanted: list[str], *, truth: Labelled, found: Labelled | None, rules: Profile) -> list[Score]:
    """Scores inside the box of both masks; without a usable prediction every structure gets 0, also one that is absent."""
    truth_boxes, found_boxes = truth.boxes(), found.boxes() if found else {}
    scores = []
    for name in wanted:
        boxes = [boxes[name] for boxes in (truth_boxes, found_boxes) if name in boxes]
        box = union(boxes)
        mask = truth.mask(name, box=box) if box else np.zeros((1, 1, 1), dtype=bool)
        spacing, rule = truth.geometry.spacing, rules.rule(name)
        if found is None:
            nothing = np.zeros_like(mask)
            rule = dataclasses.replace(rule, both_empty=0.0)
            scores.append(
                empty_score(mask, prediction=nothing, spacing=spacing, case=truth.case, structure=name, rule=rule)
            )
            continue
        predicted = found.mask(name, box=box) if box else mask
        scores.append(score(predicted, reference=mask, spacing=spacing, case=truth.case, structure=name, rule=rule))
    return scores


def _note(into: list[str], *names: str) -> None:
    into.extend(name for name in names if name not in into)


def _write(out: Path, *, scores: Mapping[str, tuple[Score, ...]], summary: Mapping[str, Any], report: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    main, *others = scores
    storage.write_bytes(out / "scores.csv", scores_csv(scores[main]).encode())
    for name in others:
        storage.write_bytes(out / f"scores_{name}.csv", scores_csv(scores[name]).encode())
    storage.write_bytes(out / "summary.json", f"{json.dumps(finite(summary), indent=2)}\n".encode())
    storage.write_bytes(out / "report.html", report.encode())


def scores_csv(scores: tuple[Score, ...]) -> str:
    """One row a score with a header of `COLUMNS`; undefined numbers are left empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in scores:
        values = dataclasses.astuple(row)
        writer.writerow("" if isinstance(value, float) and math.isnan(value) else value for value in values)
    return text.getvalue()


def _text(interval: Mapping[str, float]) -> str:
    if not interval["cases"]:
        return "-"
    return f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"
