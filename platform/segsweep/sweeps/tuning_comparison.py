"""A published comparison as a sweep: its rows are the trials, then come ensembles of them, and the paper's figures beside ours."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import ray

from segsweep.data.joint import open_stores
from segsweep.data.manifest import read_json, write_json
from segsweep.data.mirror import HERE, Mirror
from segsweep.data.planning import Plan
from segsweep.data.storage import mirrored
from segsweep.data.store import Store
from segsweep.errors import RecipeError
from segsweep.evaluation.comparison import render
from segsweep.evaluation.whole_scans import Scores, score_case
from segsweep.inference.predictor import Predictor, load_member
from segsweep.learning import checkpoint
from segsweep.run import Run
from segsweep.sweeps.cluster import Resources
from segsweep.sweeps.comparison import Comparison, Row, config_of, published_params
from segsweep.sweeps.following import failure
from segsweep.sweeps.initial import INITIAL
from segsweep.sweeps.run_folder import MODEL, VALIDATION, joined_scores, read_result
from segsweep.sweeps.tuning_objectives import DICE, NSD
from segsweep.sweeps.tuning_study import CONFIG, FAILED, OUT_OF_MEMORY, SweptTrial, failed, swept
from segsweep.sweeps.validation import summarise

ROW = "row"
PAGE, FIGURES = "comparison.html", "comparison.json"


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of a comparison in a sweep: its search space, and afterwards its report.

    `pretrained` is a pinned checkpoint, or nothing; `study` the sweep's, `sweep` its folder, `home` what that is part of.
    """

    comparison: Comparison
    scale: float
    pretrained: str
    study: Any
    sweep: Path
    home: Mirror = HERE

    def space(self, trial: Any, plan: Plan) -> dict[str, Any]:
        """The row that a trial was made for. Raises RecipeError when the row that it starts from has no model."""
        names = [row.name for row in self.comparison.rows if not row.members]
        row = self.comparison.row(trial.suggest_categorical(ROW, names))
        config = config_of(row, plan=plan, scale=self.scale)
        if row.pretrained:
            return {**config, INITIAL: self.pretrained}
        if not row.initial:
            return config
        before = self.trial_of(row.initial)
        if before is None or before.dice is None:
            raise RecipeError(
                f"{row.name!r} starts from the model of {row.initial!r}, which was not trained to its end"
            )
        self.home.at(before.folder / MODEL).fetch()
        return {**config, INITIAL: str(before.folder)}

    def waves(self) -> tuple[tuple[Row, ...], ...]:
        """The rows that can be trained, in groups that follow one another."""
        return self.comparison.waves(pretrained=bool(self.pretrained))

    def enqueue(self, rows: Sequence[Row]) -> int:
        """Make a trial of every row that has none, or only failed ones; how many trials there are then that did not fail."""
        for row in rows:
            if all(map(failed, self._trials(row))):
                self.study.enqueue_trial({ROW: row.name}, user_attrs={ROW: row.name})
        return sum(not failed(trial) for trial in self.study.get_trials(deepcopy=False))

    def trial_of(self, name: str) -> SweptTrial | None:
        """The latest trial of a row, a failed one only where no other is; None where none ended."""
        ended = [trial for trial in self._trials(self.comparison.row(name)) if trial.state.is_finished()]
        ended.sort(key=lambda trial: (not failed(trial), trial.number))
        return swept(ended[-1], sweep=self.sweep) if ended else None

    def _trials(self, row: Row) -> list[Any]:
        """The trials of a row; of one that starts from a pre-trained model, those that started from the given one."""
        given = self.pretrained if row.pretrained else ""
        return [
            trial
            for trial in self.study.get_trials(deepcopy=False)
            if trial.user_attrs.get(ROW) == row.name
            and (not given or trial.user_attrs.get(CONFIG, {}).get(INITIAL, given) == given)
        ]


def report(rows: Rows, *, title: str, base: Run, store: Store, shared: Mapping[str, Any], resources: Resources) -> Path:
    """Write comparison.json and comparison.html into the sweep's folder; returns the page. Ensembles that are not there yet are scored."""
    comparison = rows.comparison
    entries = [_entry(row, rows=rows, store=store, base=base, resources=resources) for row in comparison.rows]
    scores = _every_score(rows)
    document = {
        "title": title,
        "source": comparison.source,
        "measured": comparison.measured,
        "dataset": store.dataset,
        "fold": base.fold,
        "cases": sorted(scores),
        "structures": sorted({name for values in scores.values() for name in values}),
        "scale": rows.scale,
        "notices": _notices(rows, entries=entries, store=store, shared=shared, scores=scores),
        "rows": entries,
    }
    rows.sweep.mkdir(parents=True, exist_ok=True)
    write_json(rows.sweep / FIGURES, document)
    page = rows.sweep / PAGE
    page.write_text(render(document))
    return page


def ensemble_scores(folders: Sequence[str], store: str, case_ids: Sequence[str]) -> Scores:
    """Scan Dice of the mean of several checkpoints, given by their addresses: case -> structure -> Dice."""
    with ExitStack() as stack:
        members = [load_member(stack.enter_context(mirrored(folder))) for folder in folders]
        predictor, opened = Predictor(members=tuple(members)), open_stores(store)
        return {case_id: score_case(predictor, store=opened, case_id=case_id).dice for case_id in case_ids}


def _entry(row: Row, *, rows: Rows, store: Store, base: Run, resources: Resources) -> dict[str, Any]:
    """What the report says of a row."""
    ensemble = _ensemble(row, rows=rows, store=store, base=base, resources=resources) if row.members else {}
    outcome = ensemble or _trained(row, rows=rows)
    ours = _over(rows.comparison.structures, figures=outcome.pop("figures"))
    names = dict.fromkeys((*row.published, *(name for name in ours if name == "dice" or name in row.published)))
    return {
        "name": row.name,
        **outcome,
        "metrics": {name: _compared(row.published.get(name), ours=ours.get(name)) for name in names},
    }


def _trained(row: Row, *, rows: Rows) -> dict[str, Any]:
    trial = rows.trial_of(row.name)
    params = published_params(row)
    entry: dict[str, Any] = {
        "trainable": row.trainable,
        "start": "a pre-trained model" if row.pretrained else row.initial,
        "members": [],
        "published_epochs": params.epochs,
        "published_patch_size": params.patch_size,
        "figures": {},
    }
    if trial is None:
        return {**entry, "state": "left out", "reason": "needs a pre-trained model"}
    entry |= {"trial": trial.name, "state": trial.state.replace("_", " "), "config": dict(trial.config)}
    if trial.state in (FAILED, OUT_OF_MEMORY):
        return {**entry, "reason": failure(trial.folder)}
    result = read_result(trial.folder)
    rows.home.at(trial.folder / MODEL).fetch()
    task = checkpoint.read_json(trial.folder / MODEL / checkpoint.RUN)["task"]
    return {**entry, "reason": "", "epochs": trial.epochs, "patch_size": task["patch_size"], "figures": result}


def _ensemble(row: Row, *, rows: Rows, store: Store, base: Run, resources: Resources) -> dict[str, Any]:
    entry = {"trainable": "", "start": "", "members": list(row.members), "figures": {}}
    trials = {name: rows.trial_of(name) for name in row.members}
    lacking = [name for name, trial in trials.items() if trial is None or trial.dice is None]
    if lacking:
        return {**entry, "state": "left out", "reason": f"needs the model of {', '.join(lacking)}"}
    models = [rows.home.at(trial.folder / MODEL) for trial in trials.values() if trial is not None]
    for model in models:
        model.fetch()
    digests = [checkpoint.verify(model.folder) for model in models]
    kept = rows.sweep / f"ensemble-{rows.comparison.rows.index(row):04d}.json"
    known = read_json(kept, do="delete it: the ensemble is measured again") if kept.is_file() else {}
    if known.get("members") != digests:
        # A worker's work: it has the GPU, where there is one.
        score = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus)(ensemble_scores)
        held_out = store.validation(base.fold)
        known = {
            "members": digests,
            "scores": ray.get(score.remote([model.uri for model in models], store.uri, held_out)),
        }
        write_json(kept, known)
    return {**entry, "state": "finished", "reason": "", "figures": summarise(known["scores"])}


def _every_score(rows: Rows) -> Scores:
    """Case -> structure -> Dice of a finished row: all rows are measured on the same."""
    for row in rows.comparison.rows:
        trial = None if row.members else rows.trial_of(row.name)
        if trial is not None and trial.dice is not None:
            return joined_scores([trial.folder], name=VALIDATION)
    return {}


def _over(structures: Sequence[str], *, figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures with `dice` and `nsd` as means over these structures alone, where there are any of them."""
    own = {
        measure: [figures[f"{measure}/{name}"] for name in structures if f"{measure}/{name}" in figures]
        for measure in (DICE, NSD)
    }
    return {**figures, **{measure: fmean(values) for measure, values in own.items() if values}}


def _compared(published: float | None, *, ours: float | None) -> dict[str, float | None]:
    difference = None if published is None or ours is None else ours - published
    return {"published": published, "ours": ours, "difference": difference}


def _notices(
    rows: Rows, *, entries: Sequence[Mapping[str, Any]], store: Store, shared: Mapping[str, Any], scores: Scores
) -> list[str]:
    """What keeps ours from being the paper's, in sentences."""
    papers = " or ".join(rows.comparison.datasets)
    known = {name for values in scores.values() for name in values}
    more = known - set(rows.comparison.structures)
    left_out = [entry["name"] for entry in entries if entry["state"] == "left out" and not entry["members"]]
    notices = []
    if rows.scale != 1.0:
        notices.append(
            f"Scaled: every row was trained for about {rows.scale:g} of the paper's epochs, on patches of about {rows.scale:g} of "
            "its voxels. The figures show that the comparison runs, not how the methods compare."
        )
    if store.dataset not in rows.comparison.datasets:
        notices.append(f"Other data: ours is trained and measured on {store.dataset}, the paper's on {papers}.")
    if rows.comparison.structures and len(more) not in (0, len(known)):
        notices.append(
            f"More structures: ours learned {len(more)} that the paper's table is not about; its mean is over the other "
            f"{len(known) - len(more)}."
        )
    if shared:
        values = ", ".join(f"{key}={value}" for key, value in shared.items())
        notices.append(f"Not as published: every row was given {values}.")
    if left_out and not rows.pretrained:
        notices.append(
            f"Left out, since they need a pre-trained model: {'; '.join(left_out)}. Give pretrained=models:/NAME/1 with the same "
            "command to train them."
        )
    return notices
