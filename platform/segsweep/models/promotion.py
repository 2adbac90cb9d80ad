"""The champion of a name: a candidate takes its place only where it is better with confidence on cases that neither has seen.

The decision is written down before the alias moves: tags on the candidate's version, and a page in the workspace and in MLflow.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segsweep.data import storage
from segsweep.data.mirror import shared
from segsweep.data.store import Store
from segsweep.errors import ModelError, SegsweepError
from segsweep.evaluation.measure import Measure
from segsweep.evaluation.promotion import Verdict, compare, least_cases
from segsweep.evaluation.promotion_report import PromotionReport, render
from segsweep.evaluation.summary import finite
from segsweep.evaluation.whole_scans import Scores
from segsweep.models.catalogue import Registered, resolve, set_alias, versions
from segsweep.models.contenders import Contender, choices, contender, demand_comparable, held_run, open_data, unseen
from segsweep.models.ensemble import load_predictor
from segsweep.models.scores import scan_scores
from segsweep.models.tracking import FROM_TAG, answered, connect
from segsweep.workspace import Workspace

CHAMPION, CANDIDATE = "champion", "candidate"
# Tags of a version that was a candidate: the outcome, the version that it was compared with, why, and the numbers as JSON.
PROMOTED_TAG, AGAINST_TAG = "segsweep.promoted", "segsweep.promotion.against"
REASON_TAG, NUMBERS_TAG = "segsweep.promotion.reason", "segsweep.promotion.numbers"
MEAN_DICE = Measure()
ENSEMBLE_NOTICE = "The candidate is an ensemble: p is corrected for the trials of its members' sweeps, not for how they were combined."
CLEANED_NOTICE = (
    "The clean-up of {uri} was chosen on cases that it is compared on here (segsweep postprocess), which favours it."
)
# More structures than this are counted in a sentence instead of named.
MOST_NAMES = 8

# "first": there was no champion to beat; "forced": not better with confidence, or not comparable, and promoted all the same.
Outcome = Literal["promoted", "forced", "first", "not promoted", "already champion"]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """A decision. `verdict` and `page` are None where nothing was compared; `champion` is the version that was to be beaten."""

    outcome: Outcome
    reason: str
    candidate: Registered
    champion: Registered | None
    verdict: Verdict | None = None
    page: Path | None = None

    @property
    def promoted(self) -> bool:
        """Whether the candidate's version has the alias `champion` now."""
        return self.outcome != "not promoted"

    def __str__(self) -> str:
        against = "" if self.champion is None or self.champion == self.candidate else f" against {self.champion.uri}"
        return f"{self.outcome}: {self.candidate.uri}{against}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class _Compared:
    """Two models' scores on the same cases and what they came to."""

    store: Store
    cases: tuple[str, ...]
    tables: Mapping[str, NDArray[np.float64]]
    verdict: Verdict
    measure: Measure
    notices: tuple[str, ...]


def promote(
    model: str,
    *,
    workspace: Workspace,
    store: str = "",
    level: float = 0.95,
    measure: Measure = MEAN_DICE,
    force: bool = False,
    progress: Progress | None = None,
) -> Promotion:
    """Give the alias `champion` to a candidate if it is better than the present champion with confidence `level`, or `force`.

    `model` is an address, or a name that stands for `models:/NAME@candidate`; `store` is where its data lies now (where it was trained
    from, if empty); `measure` says what is compared. The first candidate of a name becomes its champion. Raises ModelError or
    StoreError when the candidate is damaged, and, unless forced, when the two cannot be compared. `progress` is told (model, scans
    done, scans to segment).
    """
    least_cases(level, choices=1)  # refuses a level that is none before any scan is segmented
    candidate = resolve(model if model.startswith("models:") else f"models:/{model}@{CANDIDATE}", workspace=workspace)
    found = contender(candidate, workspace=workspace)
    champion = _champion(candidate.name, workspace=workspace)
    if champion is None:
        load_predictor(candidate.uri, workspace=workspace)  # what cannot segment is no champion
        return _concluded(
            "first", reason="no champion to beat", candidate=candidate, champion=None, workspace=workspace
        )
    if champion == candidate:
        return Promotion(outcome="already champion", reason="nothing to decide", candidate=candidate, champion=champion)
    try:
        compared = _compare(
            found,
            champion=champion,
            workspace=workspace,
            store=store,
            level=level,
            measure=measure,
            progress=progress,
        )
    except SegsweepError as error:
        if not force:
            raise
        load_predictor(candidate.uri, workspace=workspace)  # nor by force
        reason = f"not compared: {error}"
        return _concluded("forced", reason=reason, candidate=candidate, champion=champion, workspace=workspace)
    outcome: Outcome = "promoted" if compared.verdict.better else "forced" if force else "not promoted"
    reason = compared.verdict.reason(str(measure)) + _structures(compared.verdict)
    return _concluded(
        outcome, reason=reason, candidate=candidate, champion=champion, workspace=workspace, compared=compared
    )


def _champion(name: str, *, workspace: Workspace) -> Registered | None:
    """The version that is champion now; None when none is."""
    if all(CHAMPION not in version.aliases for version in versions(name, workspace=workspace)):
        return None
    return resolve(f"models:/{name}@{CHAMPION}", workspace=workspace)


def _compare(
    candidate: Contender,
    *,
    champion: Registered,
    workspace: Workspace,
    store: str,
    level: float,
    measure: Measure,
    progress: Progress | None,
) -> _Compared:
    other = contender(champion, workspace=workspace)
    demand_comparable(candidate, champion=other)
    opened = open_data(candidate, store=store)
    own, others = unseen(candidate, store=opened), unseen(other, store=opened)
    cases = tuple(sorted(own.cases & others.cases))
    if not cases:
        raise ModelError(
            f"{candidate.version.uri} and {champion.uri} share no annotated case that neither was trained on ({len(own.cases)} are new "
            f"to the one, {len(others.cases)} to the other); expected some: train both on the same fold, or keep a validation split"
        )
    number = choices(candidate, store=opened, cases=frozenset(cases), workspace=workspace)
    tables = {}
    for version in (champion, candidate.version):
        told = None if progress is None else _pieces(progress, label=version.uri)
        scores = scan_scores(version, store=opened, case_ids=cases, workspace=workspace, measure=measure, progress=told)
        tables[version.uri] = _table(scores, structures=_annotated(opened, cases=cases))
    verdict = compare(
        tables[candidate.version.uri],
        champion=tables[champion.uri],
        structures=_annotated(opened, cases=cases),
        level=level,
        choices=number,
    )
    notices = (ENSEMBLE_NOTICE,) if number > 1 and len(candidate.trainings) > 1 else ()
    cleaned = {item.version for item in versions(champion.name, workspace=workspace) if FROM_TAG in item.tags}
    pair = (candidate.version, champion)
    notices += tuple(CLEANED_NOTICE.format(uri=one.uri) for one in pair if one.version in cleaned)
    return _Compared(
        store=opened,
        cases=cases,
        tables=tables,
        verdict=verdict,
        measure=measure,
        notices=(*notices, *dict.fromkeys((*own.unknowns, *others.unknowns))),
    )


@answered()
def _concluded(
    outcome: Outcome,
    *,
    reason: str,
    candidate: Registered,
    champion: Registered | None,
    workspace: Workspace,
    compared: _Compared | None = None,
) -> Promotion:
    """Write a decision down, then move the alias. Raises ModelError when meanwhile it was moved elsewhere."""
    page = (
        None if compared is None or champion is None else _page_of(champion, candidate=candidate, workspace=workspace)
    )
    decision = Promotion(
        outcome=outcome,
        reason=reason,
        candidate=candidate,
        champion=champion,
        verdict=compared.verdict if compared else None,
        page=page,
    )
    if decision.promoted:
        _demand_still(champion, candidate=candidate, workspace=workspace)
    client = connect(workspace)
    version = str(candidate.version)
    if page is not None and compared is not None:
        content = render(_report(decision, compared=compared))
        page.parent.mkdir(parents=True, exist_ok=True)
        storage.write_bytes(page, content.encode())
        shared(workspace).at(page.parent).send(lambda name: name == page.name)
        run_id = client.get_model_version(candidate.name, version).run_id
        if run_id and held_run(run_id, client=client):
            client.log_text(run_id, content, f"promotion/{page.name}")
    tags = {
        PROMOTED_TAG: outcome,
        AGAINST_TAG: champion.uri if champion else "",
        REASON_TAG: reason,
        NUMBERS_TAG: json.dumps(_numbers(compared)) if compared else "",
    }
    for key, value in tags.items():
        client.set_model_version_tag(candidate.name, version, key, value)
    if decision.promoted:
        set_alias(candidate.name, alias=CHAMPION, version=candidate.version, workspace=workspace)
    return decision


def _demand_still(champion: Registered | None, *, candidate: Registered, workspace: Workspace) -> None:
    """Raise ModelError unless the champion is still the one that was to be beaten: a comparison takes hours, and others promote too."""
    now = _champion(candidate.name, workspace=workspace)
    if now != champion:
        raise ModelError(
            f"{now.uri if now else 'no version'} is champion now; expected {champion.uri if champion else 'none'}, as when {candidate.uri} "
            "was looked at, so nothing was changed; give the same command again (scores are kept)"
        )


def _report(decision: Promotion, *, compared: _Compared) -> PromotionReport:
    return PromotionReport(
        title=f"{decision.candidate.uri} against {decision.champion.uri if decision.champion else ''}",
        decision=f"{decision.outcome}: {decision.reason}",
        dataset=compared.store.dataset,
        metric=str(compared.measure),
        cases=compared.cases,
        scores=compared.tables,
        verdict=compared.verdict,
        notices=compared.notices,
    )


def _page_of(champion: Registered, *, candidate: Registered, workspace: Workspace) -> Path:
    return workspace.reports / f"promotion-{candidate.name}-v{champion.version}-v{candidate.version}.html"


def _numbers(compared: _Compared) -> Mapping[str, object]:
    verdict = compared.verdict
    interval = verdict.overall.interval
    return finite(
        {
            "metric": str(compared.measure),
            "difference": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "p": verdict.overall.p,
            "p_corrected": verdict.overall.p_corrected,
            "cases": verdict.cases,
            "level": verdict.level,
            "choices": verdict.choices,
            "better": verdict.found("better"),
            "worse": verdict.found("worse"),
        }
    )


def _structures(verdict: Verdict) -> str:
    """Which structures are significantly better and worse, as the end of a sentence."""
    parts = {"better on": verdict.found("better"), "worse on": verdict.found("worse")}
    return "".join(f"; {words} {_named(names)}" for words, names in parts.items() if names)


def _named(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= MOST_NAMES else f"{len(names)} structures"


def _annotated(store: Store, *, cases: tuple[str, ...]) -> tuple[str, ...]:
    """Structures that are annotated in some of the cases, in the store's order."""
    present = {name for case in cases for name in store.cases[case].annotated}
    return tuple(name for name in store.table.labels.structures if name in present)


def _table(scores: Scores, *, structures: tuple[str, ...]) -> NDArray[np.float64]:
    return np.array([[values.get(name, math.nan) for name in structures] for values in scores.values()])


def _pieces(progress: Progress, *, label: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(label, done, total)
