"""Candidates for an ensemble, and what they say of cases of the store that none of them was trained on.

Probabilities lie on the first candidate's spacing: a Predictor averages on its first member's grid, and candidates come best first. As in
validation, a case's annotated structures alone are looked for; what a model cleans up afterwards is not part of the comparison.
"""

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsweep.data.geometry import Spacing
from segsweep.data.joint import JointStore
from segsweep.data.mirror import shared
from segsweep.data.resampling import resample_label
from segsweep.data.store import Store
from segsweep.errors import ModelError
from segsweep.evaluation.contest import Contest
from segsweep.evaluation.contested import Access, Reference, contest
from segsweep.evaluation.decision import Decision
from segsweep.evaluation.measure import Measure
from segsweep.inference.export import CERTAIN
from segsweep.inference.predictor import load_member
from segsweep.inference.probabilities import CaseProbabilities, Entry, cached
from segsweep.learning.task import Task, task_from_json
from segsweep.models.catalogue import Registered, versions
from segsweep.models.ensemble import demand_alike, distinct, run_document
from segsweep.models.outoffold import out_of_fold
from segsweep.models.registry import fetch
from segsweep.models.tracking import DATA_TAG
from segsweep.workspace import Workspace

# Told (what, pieces done, pieces in all).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A registered single model, the folder that holds it, and the cases of the store that it was not trained on."""

    uri: str
    digest: str
    folder: Path
    task: Task
    cases: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Candidates and their cases, ready to be chosen from. `seconds` a case are each candidate's median; `num_bytes` is what is cached."""

    candidates: Sequence[Candidate]
    contests: Sequence[Contest]
    seconds: Sequence[float]
    num_bytes: int


def find_candidates(uris: Sequence[str], *, store: Store, workspace: Workspace) -> list[Candidate]:
    """The models at these addresses. Raises ModelError when there are fewer than two, one was not trained on this version of the store,
    or they do not segment the same thing."""
    if len(uris) < 2:
        raise ModelError(f"{len(uris)} candidate to choose from; expected at least 2: name more candidates")
    if isinstance(store, JointStore):
        raise ModelError(f"{store.uri} joins stores, whose cases no choice can be made by yet; expected a single store")
    found = [_candidate(one, store=store, workspace=workspace) for one in distinct(uris, workspace=workspace)]
    demand_alike({candidate.uri: candidate.task for candidate in found})
    return found


def compare(
    candidates: Sequence[Candidate],
    *,
    store: Store,
    cases: Sequence[str],
    workspace: Workspace,
    measure: Measure,
    scratch: Path,
    progress: Progress | None = None,
) -> Comparison:
    """Compute what is not cached yet, one model in memory at a time, and reduce every case to what the candidates disagree on."""
    spacing = candidates[0].task.spacing
    kept: list[dict[str, CaseProbabilities]] = []
    for number, candidate in enumerate(candidates):
        place = Entry(
            place=workspace.probabilities, digest=candidate.digest, store=store, spacing=spacing, home=shared(workspace)
        )
        member = functools.cache(functools.partial(load_member, candidate.folder))
        kept.append({})
        for done, case_id in enumerate(cases, start=number * len(cases) + 1):
            kept[-1][case_id] = cached(place, case_id=case_id, member=member)
            if progress is not None:
                progress("probabilities", done, len(cases) * len(candidates))
    num_bytes = sum(entry.num_bytes for entries in kept for entry in entries.values())
    seconds = [statistics.median(entry.seconds for entry in entries.values()) for entries in kept]
    contests = []
    for done, case_id in enumerate(cases, start=1):
        entries = [entries.pop(case_id) for entries in kept]
        contests.append(
            _contest(case_id, candidates=candidates, kept=entries, store=store, measure=measure, scratch=scratch)
        )
        if progress is not None:
            progress("cases compared", done, len(cases))
    return Comparison(candidates=candidates, contests=contests, seconds=seconds, num_bytes=num_bytes)


def _candidate(found: Registered, *, store: Store, workspace: Workspace) -> Candidate:
    tags = next(one.tags for one in versions(found.name, workspace=workspace) if one.version == found.version)
    if tags.get(DATA_TAG) != store.digest:
        raise ModelError(
            f"{found.uri} was not trained on this version of {store.dataset!r}, so it is not known which of its cases it has seen; "
            "expected candidates that were: train it again, or use rule=mean"
        )
    folder = fetch(found.uri, workspace=workspace)
    document = run_document(folder, uri=found.uri)
    cases = out_of_fold(store, fold=document["run"]["fold"])
    return Candidate(
        uri=found.uri, digest=found.digest, folder=folder, task=task_from_json(document["task"]), cases=cases
    )


def _contest(
    case_id: str,
    *,
    candidates: Sequence[Candidate],
    kept: Sequence[CaseProbabilities],
    store: Store,
    measure: Measure,
    scratch: Path,
) -> Contest:
    first = candidates[0].task
    names = first.table.labels.structures
    annotated = [names.index(name) for name in store.cases[case_id].annotated if name in names]
    alike = all(one.task.head == "softmax" and one.task.table == first.table for one in candidates)
    if alike:
        decision = Decision(membership=first.table.membership, channels="atoms")
        accesses: list[Access] = [entry.slices for entry in kept]
    else:
        atoms = first.table.within([names[index] for index in annotated])
        decision = Decision(membership=first.table.membership[atoms], channels="structures")
        accesses = [
            functools.partial(_by_structure, entry=entry, task=one.task, names=names)
            for entry, one in zip(kept, candidates, strict=True)
        ]
    columns = [
        store.table.membership[:, store.table.labels.structures.index(name)]
        if name in store.table.labels.structures
        else np.zeros(len(store.table.atoms), dtype=bool)
        for name in names
    ]
    membership = np.concatenate([np.stack(columns, axis=1), np.zeros((1, len(names)), dtype=bool)])
    reference = Reference(
        label=_label(store, case_id=case_id, spacing=first.spacing),
        spacing=store.grid(case_id).geometry.resampled(first.spacing).spacing,
        membership=membership,
        ignored=store.table.ignored,
        annotated=annotated,
    )
    return contest(
        case_id, candidates=accesses, decision=decision, reference=reference, measure=measure, scratch=scratch
    )


def _label(store: Store, *, case_id: str, spacing: Spacing) -> NDArray:
    """The reference (z, y, x) at a spacing: as the store derived it, or else derived the same way."""
    if store.has_grid(case_id, spacing=spacing):
        return store.grid(case_id, spacing).read_label()
    native = store.grid(case_id)
    return resample_label(native.read_label(), source=native.geometry, target=native.geometry.resampled(spacing))


def _by_structure(part: slice, /, *, entry: CaseProbabilities, task: Task, names: Sequence[str]) -> NDArray[np.uint8]:
    """Probabilities of structures, in the order of `names`: a softmax head's atoms that hold a structure, summed."""
    values, own = entry.slices(part), task.table.labels.structures
    order = [own.index(name) for name in names]
    if task.head != "softmax":
        return values[order]
    atoms = [np.flatnonzero(task.table.membership[:, structure]) for structure in order]
    return np.stack([np.minimum(values[one].sum(axis=0, dtype=np.uint16), CERTAIN).astype(np.uint8) for one in atoms])
