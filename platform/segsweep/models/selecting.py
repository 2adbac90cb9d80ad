"""An ensemble chosen by what its members say of cases that none of them was trained on, registered with the record of the choice."""

import dataclasses
import functools
import itertools
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segsweep.data.store import Store
from segsweep.evaluation.ensembles import Ensembles, Shares, one_hot, score, uniform
from segsweep.evaluation.measure import Measure
from segsweep.evaluation.selection import LEAST_CASES, PLAIN, Limits, Selected, select
from segsweep.evaluation.selection_page import render
from segsweep.evaluation.statistics import difference_interval, mean_interval
from segsweep.evaluation.summary import finite
from segsweep.inference.export import CERTAIN
from segsweep.learning.checkpoint import METRICS
from segsweep.models.candidates import Comparison, Progress, compare, find_candidates
from segsweep.models.catalogue import Registered
from segsweep.models.ensemble import build
from segsweep.models.registry import demand_name
from segsweep.models.tracking import Tracker

RECORD, PAGE = "selection.json", "selection.html"


@dataclass(frozen=True, kw_only=True)
class Built:
    """A registered ensemble, one sentence on what it is worth, and the record of the choice (None where nothing was chosen)."""

    registered: Registered
    verdict: str
    record: Mapping[str, Any] | None = None


def build_greedy(
    uris: Sequence[str],
    *,
    store: Store,
    name: str,
    tracker: Tracker,
    limits: Limits,
    measure: Measure,
    progress: Progress | None = None,
) -> Built:
    """Choose among candidates, best first, and register what was chosen; the plain mean of the first ones where cases are too few.

    `progress` is told (what, pieces done, all) of probabilities that are computed or verified, cases compared, and searches. Raises
    ModelError when candidates were not trained on this version of the store, do not segment the same thing, or none keeps within the
    budget.
    """
    demand_name(name)
    candidates = find_candidates(uris, store=store, workspace=tracker.workspace)
    cases = sorted(set.intersection(*(set(candidate.cases) for candidate in candidates)))
    groups = [store.cases[case_id].group or case_id for case_id in cases]
    if len(set(groups)) < LEAST_CASES:
        chosen = uris[: max(2, min(PLAIN, limits.most))]
        registered = build(chosen, name=name, tracker=tracker)
        return Built(
            registered=registered,
            verdict=f"the mean of {', '.join(chosen)}, since only {len(set(groups))} independent cases are out of fold for all "
            f"candidates and a choice needs {LEAST_CASES}: keep a validation split, or name candidates of one fold",
        )
    tracker.workspace.probabilities.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=tracker.workspace.probabilities, prefix=".selection-") as scratch:
        compared = compare(
            candidates,
            store=store,
            cases=cases,
            workspace=tracker.workspace,
            measure=measure,
            scratch=Path(scratch),
            progress=progress,
        )
        ensembles = Ensembles(compared.contests)
        found = select(
            ensembles,
            costs=compared.seconds,
            limits=limits,
            groups=groups,
            progress=None if progress is None else functools.partial(progress, "searches"),
        )
        record = describe(compared, ensembles=ensembles, found=found, limits=limits, measure=measure, store=store)
    members = found.choice.members
    registered = build(
        [candidates[index].uri for index in members],
        name=name,
        tracker=tracker,
        rule="greedy",
        weights=[round(float(found.choice.weights[index]), 6) for index in members],
        record={
            RECORD: json.dumps(record, indent=1),
            PAGE: render(record),
            METRICS: json.dumps(finite(_metrics(record))),
        },
    )
    return Built(registered=registered, verdict=record["verdict"], record=record)


def describe(
    compared: Comparison, *, ensembles: Ensembles, found: Selected, limits: Limits, measure: Measure, store: Store
) -> dict[str, Any]:
    """The record of a choice as a JSON-able dictionary: all rows of its table, its members, the nested gain and the verdict."""
    candidates, choice = compared.candidates, found.choice
    letters = _letters(len(candidates))
    rows = _rows(compared, ensembles=ensembles, found=found, letters=letters)
    return finite(
        {
            "dataset": store.dataset,
            "store": store.digest,
            "measure": measure.name,
            "metric": f"{measure} at the candidates' common spacing, mean over cases, then over structures",
            "precision": 0.5 / CERTAIN,
            "cached_bytes": compared.num_bytes,
            "spacing_mm": list(candidates[0].task.spacing),
            "cases": [one.case for one in compared.contests],
            "structures": list(candidates[0].task.table.labels.structures),
            "limits": dataclasses.asdict(limits),
            "candidates": [
                {"letter": letter, "uri": one.uri, "digest": one.digest, "seconds": seconds}
                for letter, one, seconds in zip(letters, candidates, compared.seconds, strict=True)
            ],
            "rows": rows,
            "members": [
                {
                    "letter": letters[index],
                    "uri": candidates[index].uri,
                    "weight": round(float(choice.weights[index]), 6),
                    "gain": float(found.gains[index]),
                    "seconds": compared.seconds[index],
                }
                for index in choice.members
            ],
            "disagreement": found.disagreement.round(6).tolist(),
            "best_single": letters[choice.best],
            "nested": dataclasses.asdict(found.nested),
            "better": found.better,
            "verdict": _verdict(found, best=candidates[choice.best].uri, cases=len(compared.contests), measure=measure),
        }
    )


def _letters(count: int) -> list[str]:
    """A, B, …, Z, AA, AB, …"""
    words = (
        "".join(letters)
        for size in itertools.count(1)
        for letters in itertools.product("ABCDEFGHIJKLMNOPQRSTUVWXYZ", repeat=size)
    )
    return list(itertools.islice(words, count))


def _rows(
    compared: Comparison, *, ensembles: Ensembles, found: Selected, letters: Sequence[str]
) -> list[dict[str, Any]]:
    """The table of the papers: every model alone, plain means of the best ones, and what was chosen."""
    count = len(letters)
    singles = [one_hot(index, count=count) for index in range(count)]
    scores = [score(ensembles.table(shares)) for shares in singles]
    top = sorted(np.argsort([-value for value in scores], kind="stable")[:PLAIN].tolist())
    means = [list(group) for size in (2, 3) for group in itertools.combinations(top, size)]
    single = ensembles.table(singles[found.choice.best])

    def row(kind: str, shares: Shares) -> dict[str, Any]:
        table = ensembles.table(shares)
        members = [index for index in range(count) if shares[index] > 0]
        return {
            "kind": kind,
            "name": "+".join(letters[index] for index in members),
            "seconds": sum(compared.seconds[index] for index in members),
            "score": dataclasses.asdict(mean_interval(table)),
            "difference": dataclasses.asdict(difference_interval(table, second=single)),
        }

    return [
        *(row("single", shares) for shares in singles),
        *(row("mean", uniform(group, count=count)) for group in means),
        row("greedy", found.choice.shares),
    ]


def _verdict(found: Selected, *, best: str, cases: int, measure: Measure) -> str:
    if found.choice.members == [found.choice.best]:
        return f"no weighted mean beats {best} on the {cases} cases of the choice, so the ensemble is that model alone"
    gain, over_mean = found.nested.gain, found.nested.gain_over_mean
    measured = (
        f"on cases that the choice did not see it gains {gain.mean:+.4f} {measure.name} ({gain.low:+.4f} to {gain.high:+.4f}), over the "
        f"mean of the best singles {over_mean.mean:+.4f} ({over_mean.low:+.4f} to {over_mean.high:+.4f})"
    )
    if found.better:
        return f"the ensemble beats {best}: {measured}"
    return f"no ensemble beats {best} with confidence: {measured}"


def _metrics(record: Mapping[str, Any]) -> dict[str, Any]:
    gain, chosen = record["nested"]["gain"], record["rows"][-1]
    return {
        f"selection/{record['measure'].lower()}": chosen["score"]["mean"],
        "selection/seconds": chosen["seconds"],
        "nested/gain": gain["mean"],
        "nested/gain_low": gain["low"],
        "nested/gain_high": gain["high"],
    }
