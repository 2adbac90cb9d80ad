"""A sweep that this process holds: its trials run by Ray Tune, then its best registered and its pages written."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.tune

from segsweep.data.mirror import Mirror
from segsweep.data.store import Store
from segsweep.errors import SegsweepError
from segsweep.models.catalogue import Registered
from segsweep.models.outbox import Outbox, Tags
from segsweep.models.tracking import NOTE_TAG
from segsweep.run import Run
from segsweep.sweeps import tuning_page
from segsweep.sweeps.cluster import Resources
from segsweep.sweeps.following import ERROR, Follow, Report, failure
from segsweep.sweeps.orphans import free_orphans
from segsweep.sweeps.recovery import BEGIN_AGAIN, Recovery, own_sentences
from segsweep.sweeps.run_folder import light, tidy
from segsweep.sweeps.stopping import make_scheduler
from segsweep.sweeps.trial import as_trainable
from segsweep.sweeps.tuning_comparison import FIGURES, PAGE, Rows
from segsweep.sweeps.tuning_comparison import report as compare
from segsweep.sweeps.tuning_models import register_best, sweep_note
from segsweep.sweeps.tuning_options import SweepOptions
from segsweep.sweeps.tuning_record import FILE, StudyRecord
from segsweep.sweeps.tuning_sampling import queued
from segsweep.sweeps.tuning_start import Start
from segsweep.sweeps.tuning_study import (
    FAILED,
    OUT_OF_MEMORY,
    StudySearch,
    SweptTrial,
    ended_trials,
    has_unfinished,
    learning_curves,
)  # fmt: skip

# Ray Tune's own records, in a sweep's folder while its trials run; the driver alone reads them.
TUNE = "tune"


@dataclass(frozen=True, kw_only=True)
class Swept:
    """A sweep's trials, best first, and the registered versions of the best (none when the user interrupted it).

    `report` shows all trials, `page` a published comparison; both are HTML files in the sweep's folder.
    """

    name: str
    trials: tuple[SweptTrial, ...]
    registered: tuple[Registered, ...]
    interrupted: bool
    page: Path | None = None
    report: Path | None = None


@dataclass(frozen=True, kw_only=True)
class HeldSweep:
    """A sweep whose folder, which has its name, no other driver writes into.

    `base` is what its trials share, `fixed` what the user chose of that; `suggest` gives a trial the rest, `resources` are those of a
    worker. It has `rows` where it is a published comparison, else a `start`. `parent` is its MLflow run.
    """

    space: str
    base: Run
    fixed: Mapping[str, Any]
    store: Store
    folds: tuple[int, ...]
    options: SweepOptions
    folder: Path
    home: Mirror
    study: Any
    record: StudyRecord
    rows: Rows | None
    start: Start | None
    suggest: Callable[[Any], dict[str, Any]]
    resources: Resources
    concurrent: int
    outbox: Outbox
    parent: Tags
    follow: Follow
    report: Report

    def run(self) -> bool:
        """Run the trials that are left; false when the user interrupted them."""
        for trials in self._queue():
            search = StudySearch(
                self.study, suggest_config=self.suggest, sweep=self.folder, trials=trials, report=self.report,
                ask=self.start.ask if self.start else queued, home=self.home, record=self.record,
            )  # fmt: skip
            _settle(self.ended(), follow=self.follow)
            if search.remaining:
                self._run_trials(search)
            if search.remaining > 0 or has_unfinished(self.study):
                return False
        shutil.rmtree(self.folder / TUNE, ignore_errors=True)
        self.outbox.flush()
        return True

    def ended(self) -> tuple[SweptTrial, ...]:
        """The trials that ended, best first."""
        return ended_trials(self.study, sweep=self.folder)

    def publish(self) -> Swept:
        """Register the best and write the pages. Raises SegsweepError when no trial ended well, ModelError when MLflow lost one."""
        name, ended, dataset = self.folder.name, self.ended(), self.store.dataset
        _demand_any(ended, name=name)
        registered = register_best(
            ended, count=self.options.register, trainable=self.base.trainable, follow=self.follow, store=self.store,
            folds=self.folds,
        )  # fmt: skip
        self.outbox.tag(self.parent, {NOTE_TAG: sweep_note(ended, space=self.space, registered=registered)})
        page = published = None
        if self.rows:
            page = compare(
                self.rows, title=f"{self.space} on {dataset}", base=self.base, store=self.store, shared=self.fixed,
                resources=self.resources,
            )  # fmt: skip
            published = json.loads((self.folder / FIGURES).read_text())
        title = f"{name}: {self.space} on {dataset}"
        summary = tuning_page.write(self.study, sweep=self.folder, title=title, folds=self.folds, comparison=published)
        for file in ((PAGE, FIGURES) if self.rows else ()) + (tuning_page.PAGE, tuning_page.FIGURES):
            self.outbox.file(self.parent, (self.folder / file).read_text(), path=file)
        self.home.at(self.folder).send(_page)
        return Swept(name=name, trials=ended, registered=registered, interrupted=False, page=page, report=summary)

    def _queue(self) -> Iterator[int]:
        """How many trials there shall be, each time that some were put before all others: a space's first ones, or a wave of rows."""
        if self.rows:
            yield from map(self.rows.enqueue, self.rows.waves())
        elif self.start:
            self.start.fill(self.study, report=self.report)
            yield self.start.most(self.study, trials=self.options.trials)

    @own_sentences()
    def _run_trials(self, search: StudySearch) -> None:
        """Run all that the search hands out. Afterwards only the trials' own folders are left: Tune's records are not needed."""
        curves = learning_curves(self.study, sweep=self.folder)
        tuner = ray.tune.Tuner(
            as_trainable(self.base, resources=self.resources, folds=self.folds),
            tune_config=ray.tune.TuneConfig(
                search_alg=search,
                scheduler=make_scheduler(self.options.stop, grace=self.options.grace, curves=curves, home=self.home),
                num_samples=search.remaining,
                max_concurrent_trials=self.concurrent,
                reuse_actors=True,  # or every trial waits for a new process to import torch
            ),
            run_config=ray.tune.RunConfig(
                name=TUNE,
                storage_path=str(self.folder),
                callbacks=[Recovery(self.report), self.follow],
                failure_config=BEGIN_AGAIN,
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        finally:
            self.follow.close()
            free_orphans()
            shutil.rmtree(self.folder / TUNE, ignore_errors=True)


def seen(name: str) -> bool:
    """Whether a driver looks at a file of the sweep's folder; the study's record is read in the bucket and nowhere else."""
    return light(name) and name != FILE


def _page(name: str) -> bool:
    """Whether a file of the sweep's folder is its own, and no trial's."""
    return seen(name) and "/" not in name


def _settle(ended: Iterable[SweptTrial], *, follow: Follow) -> None:
    """What a driver that died could no longer do: tell MLflow how trials ended, and remove what Ray left of them."""
    for trial in ended:
        tidy(trial.folder)
        follow.settle(trial.folder, params=trial.config)


def _demand_any(trials: tuple[SweptTrial, ...], *, name: str) -> None:
    """Raise SegsweepError when no trial ended well."""
    if all(trial.state in (FAILED, OUT_OF_MEMORY) for trial in trials):
        last = max(trials, key=lambda trial: trial.name)
        raise SegsweepError(
            f"sweep {name!r}: all {len(trials)} trials failed; the last: {failure(last.folder)}; "
            f"see {last.folder / ERROR}, then give the same command again"
        )
