"""Scores a folder of predictions by a profile's rules and leaves scores.csv, lesions.csv, summary.json and report.html."""

import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segsweep.data import storage
from segsweep.data.joint import is_store, open_stores
from segsweep.data.store import Store
from segsweep.errors import InputError
from segsweep.evaluation.lesions import LESION_COLUMNS, LesionScore
from segsweep.evaluation.metrics import COLUMNS, Score
from segsweep.evaluation.profiles import profile as find_profile
from segsweep.evaluation.report import Report, render
from segsweep.evaluation.sources import (
    MapFolder,
    Source,
    StoreLabels,
    Values,
    open_folder,
    open_reference,
    read_values,
    require,
)
from segsweep.evaluation.summary import finite, summarise
from segsweep.evaluation.tally import REFERENCE, Readable, Tally, remarks
from segsweep.evaluation.worst import view_of


@dataclass(frozen=True, kw_only=True)
class Options:
    """`labels` names the values of folders that have no labels.json; `tolerance` (mm) replaces the profile's; `lesions` are structures
    whose lesions are counted beside those of the profile; `compare` holds other models' prediction folders by name; `view` is for the
    report's slice viewer: so many of the worst cases, or `CASE,CASE`; `progress` is
    called with (cases done, cases)."""

    labels: Path | None = None
    tolerance: float | None = None
    lesions: tuple[str, ...] = ()
    compare: Mapping[str, Path] = field(default_factory=dict)
    view: str = "3"
    progress: Callable[[int, int], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of all models (the main one first), their summary (as in summary.json), and the folder that holds the files.

    `failures` has a sentence for each file that could not be used: its case counts as missing.
    """

    scores: Mapping[str, tuple[Score, ...]]
    lesions: Mapping[str, tuple[LesionScore, ...]]
    summary: Mapping[str, Any]
    failures: tuple[str, ...]
    out: Path

    def rows(self) -> list[tuple[str, str, str]]:
        """Structure, Dice and NSD of the main model as text, mean with 95 % interval; the last row is over all structures."""
        model = next(iter(self.summary["models"].values()))
        entries = {**model["structures"], "all": model["overall"]}
        return [(name, _text(entry["dice"]), _text(entry["nsd"])) for name, entry in entries.items()]

    def remarks(self) -> list[str]:
        """What was not scored as usual, besides what `failures` says; long lists are cut."""
        return remarks({**self.summary, "failed_cases": {}}, most=5)

    def lines(self) -> list[str]:
        """One line a model: mean Dice and NSD over all structures with their intervals."""
        models = self.summary["models"].items()
        return [f"{name}: Dice {_text(m['overall']['dice'])}, NSD {_text(m['overall']['nsd'])}" for name, m in models]


def evaluate(
    predictions: Path, *, reference: Store | str | Path, profile: str, out: Path, options: Options | None = None
) -> Evaluation:
    """Score `<case>.nii.gz` + labels.json in `predictions` against a store or a folder of references.

    A store is scored in the structures annotated in each case, on the cases that have a prediction, and a held-out split with any on all
    its cases; a folder on all its cases. What a case without a prediction that can be used scores is the profile's rule.
    Raises InputError when nothing can be scored, and RecipeError for an unknown profile.
    """
    chosen = options or Options()
    rules = find_profile(profile)
    rules = rules if chosen.tolerance is None else rules.with_tolerance(chosen.tolerance)
    main = _name(predictions)
    models = _models(predictions, name=main, compare=chosen.compare)
    if not isinstance(reference, Store):
        reference = open_stores(reference) if is_store(reference) else Path(reference)
    source = open_reference(reference, labels=chosen.labels)
    models = _named_like(models, source=source, labels=chosen.labels)
    cases = _cases(source, predicted=next(iter(models.values())))
    view = view_of(chosen.view, cases=cases)
    tally = Tally(source=source, models=models, rules=rules, lesions=chosen.lesions)
    for done, case in enumerate(cases, start=1):
        tally.add(case)
        if chosen.progress:
            chosen.progress(done, len(cases))
    scores = {name: tuple(tally.scores.get(name, ())) for name in models}
    lesions = {name: tuple(tally.lesion_scores.get(name, ())) for name in models}
    if not scores[main]:
        raise InputError(_nothing(predictions, tally=tally))
    summary = {"profile": rules.name, **tally.marks(), **summarise(scores, lesions=lesions, ranked=rules.ranked)}
    _write(out, scores=scores, lesions=lesions, summary=summary)  # before the report, which reads cases again
    report = Report(
        title=main,
        scores=scores,
        summary=summary,
        source=Readable(source, failed=tally.failures.get(REFERENCE, ())),
        models=tally.readable(),
        view=view,
    )
    storage.write_bytes(out / "report.html", render(report).encode())
    return Evaluation(scores=scores, lesions=lesions, summary=summary, failures=tally.sentences(), out=out)


def _nothing(predictions: Path, *, tally: Tally) -> str:
    """Why there is no score: the first file that failed, or names that do not match."""
    told = tally.sentences()
    if told:
        return told[0]
    expected = ", ".join(tally.left_out) or "none"
    return (
        f"{predictions}: no structure could be scored by profile {tally.rules.name}; the references hold "
        f"{expected}; expected names that the profile and the predictions have too; pass --labels FILE"
    )


def _name(folder: Path) -> str:
    """What a folder is called, also where its path says no more than `.`"""
    return Path(os.path.abspath(folder)).name  # noqa: PTH100  resolving would follow links


def _models(predictions: Path, *, name: str, compare: Mapping[str, Path]) -> Mapping[str, Source]:
    if name in compare:
        raise InputError(f"compare names {name!r}, which is the evaluated folder's own name; choose another name")
    for other in compare:
        if "/" in other:
            raise InputError(
                f"compare names {other!r}, which becomes part of a file's name; expected no slash in it; choose another name"
            )
    return {name: open_folder(predictions)} | {other: open_folder(folder) for other, folder in compare.items()}


def _named_like(models: Mapping[str, Source], *, source: Source, labels: Path | None) -> Mapping[str, Source]:
    """A folder without its own labels.json holds the values of `labels`, or those of the reference folder."""
    given = read_values(labels) if labels else source.values if isinstance(source, MapFolder) else None
    return {name: _named(model, name=name, given=given, source=source) for name, model in models.items()}


def _named(model: Source, *, name: str, given: Values | None, source: Source) -> Source:
    if not isinstance(model, MapFolder):
        return model
    if model.values is not None and isinstance(source, MapFolder) and source.values is None:
        raise InputError(
            f"{name} names its structures but the reference has no labels.json; expected names for both; pass --labels FILE"
        )
    if model.values is None and given is None and not isinstance(source, MapFolder):
        raise InputError(
            f"{name} has no labels.json, so that nobody knows what its values mean; expected names as the reference has; pass --labels FILE"
        )
    return model if model.values is not None else dataclasses.replace(model, values=given)


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


def _write(
    out: Path,
    *,
    scores: Mapping[str, tuple[Score, ...]],
    lesions: Mapping[str, tuple[LesionScore, ...]],
    summary: Mapping[str, Any],
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.html").unlink(missing_ok=True)  # it is of other scores
    main = next(iter(scores))
    for name in scores:
        ending = "" if name == main else f"_{name}"
        storage.write_bytes(out / f"scores{ending}.csv", rows_csv(scores[name], columns=COLUMNS).encode())
        counted = out / f"lesions{ending}.csv"
        if lesions[name]:
            storage.write_bytes(counted, rows_csv(lesions[name], columns=LESION_COLUMNS).encode())
        else:
            counted.unlink(missing_ok=True)
    storage.write_bytes(out / "summary.json", f"{json.dumps(finite(summary), indent=2)}\n".encode())


def rows_csv(rows: Sequence[Score] | Sequence[LesionScore], *, columns: tuple[str, ...]) -> str:
    """One row a score below a header; undefined numbers are left empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = (getattr(row, column) for column in columns)
        writer.writerow("" if isinstance(value, float) and math.isnan(value) else value for value in values)
    return text.getvalue()


def _text(interval: Mapping[str, float]) -> str:
    if not interval["cases"]:
        return "-"
    return f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"
