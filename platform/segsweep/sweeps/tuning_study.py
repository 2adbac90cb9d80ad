"""The Optuna study behind a sweep: the one record of which trials there are, what they were given and how they ended.

`StudySearch` lets Ray Tune draw from it. It is our own in place of Ray's OptunaSearch because a sweep must survive its driver: the
study alone, without any pickled searcher, says which trials to continue (CONTRIBUTING.md, "Resuming a sweep").
"""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from segsweep.data.mirror import HERE, Mirror
from segsweep.errors import RecipeError
from segsweep.sweeps.following import ERROR, Report
from segsweep.sweeps.run_folder import RESULT, light, read_result
from segsweep.sweeps.shortage import noted
from segsweep.sweeps.tuning_database import open_database, studied
from segsweep.sweeps.tuning_objectives import DICE, DIRECTIONS, Direction, front, parse_objectives, worst
from segsweep.sweeps.tuning_record import StudyRecord, restore
from segsweep.sweeps.tuning_sampling import WARM, Ask, drawn, make_sampler

# So many suggestions in a row that cannot be trained end a sweep.
MOST_REFUSED = 20
# Values of a trial's curve that the study keeps: a suggestion reads those of all trials that run, several times.
MOST_POINTS = 100
CONFIG, SETTINGS, SHORTAGE = "segsweep.config", "segsweep.settings", "segsweep.out_of_memory"
OBJECTIVE = "objective"
# The constraint by which samplers keep away from what ran out of memory: above 0 it did.
MEMORY, HAD, LACKED = "memory", -1.0, 1.0
# States of a trial that left no model.
FAILED, OUT_OF_MEMORY = "failed", "out of memory"

SuggestConfig = Callable[[optuna.Trial], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class SweptTrial:
    """One trial as a sweep ends: `dice` is None when it was stopped early or failed, else `values` has it with all that it cost."""

    name: str
    state: str
    dice: float | None
    epochs: int
    config: Mapping[str, Any]
    folder: Path
    values: Mapping[str, float] = field(default_factory=dict)


@studied()
def open_study(
    storage: str, *, name: str, settings: Mapping[str, Any], seed: int, sampler: str = "tpe", record: str = ""
) -> optuna.Study:
    """Make the study or open it again; it optimises what the settings' `objective` names, the mean Dice where they name none.

    What the `record` at an address knows, the study knows afterwards.
    Raises RecipeError when it was begun with other settings, ResourceError when its database cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    database = open_database(storage)
    directions: list[Direction] = [
        DIRECTIONS[objective] for objective in parse_objectives(settings.get(OBJECTIVE, DICE))
    ]
    restore(database, name=name, uri=record)
    study = optuna.create_study(storage=database, study_name=name, directions=directions, load_if_exists=True)
    # Trials that exist have used up the first draws: a resumed sweep must not draw them again.
    study.sampler = make_sampler(sampler, seed=seed + len(study.trials))
    wanted = json.loads(json.dumps(settings))
    found = study.user_attrs.get(SETTINGS)
    if found is None:
        study.set_user_attr(SETTINGS, wanted)
    elif found != wanted:
        differing = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        detail = "; ".join(f"{key} was {found.get(key)!r}, now {wanted.get(key)!r}" for key in differing)
        raise RecipeError(
            f"sweep {name!r} was begun with other settings ({detail}); choose another name=… or the same settings"
        )
    return study


def trial_folder(sweep: Path, *, number: int) -> Path:
    """Where a trial's run lies."""
    return sweep / f"trial-{number:04d}"


class StudySearch(Searcher):
    """Hands Tune first the trials that an earlier driver left unfinished, then new ones up to `trials` in all.

    `ask` says where new ones come from. `suggest_config` makes a trial's parameters and raises when they cannot be trained: such a
    trial fails here and another is asked for. `home` is what the sweep's folder is part of, `record` what outlives this machine.
    """

    def __init__(
        self,
        study: optuna.Study,
        *,
        suggest_config: SuggestConfig,
        sweep: Path,
        trials: int,
        report: Report,
        ask: Ask = drawn,
        home: Mirror = HERE,
        record: StudyRecord | None = None,
    ) -> None:
        super().__init__()
        self._home, self._record = home, record or StudyRecord(study, uri="")
        self._ask_study = ask
        self._objectives = objectives_of(study)
        self._study, self._suggest_config, self._sweep, self._report = study, suggest_config, sweep, report
        self._unfinished = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.RUNNING]
        self._settle_ended()
        self._new = trials_left(study, trials=trials) - len(self._unfinished)
        self._open: dict[str, optuna.Trial] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a pickled copy for its own restore, which is never used: connections stay out of it."""
        return {}

    @property
    def remaining(self) -> int:
        """Trials that this search will hand out."""
        return len(self._unfinished) + self._new

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The config of the next trial (parameter overrides and its folder), or FINISHED."""
        trial = self._begun()
        if trial is None and self._new:
            trial = self._ask()
            self._new = self._new - 1 if trial else 0
        if trial is None:
            return Searcher.FINISHED  # type: ignore[return-value]  Tune's own word, which its signature omits
        self._open[trial_id] = trial
        self._record.save(now=True)
        folder = trial_folder(self._sweep, number=trial.number)
        return {**trial.user_attrs[CONFIG], "folder": self._home.at(folder).uri}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keep the learning curve, at most every hundredth of it: Optuna's samplers and plots use it."""
        trial, epoch = self._open.get(trial_id), result.get("epoch")
        if len(self._objectives) > 1:  # Optuna keeps curves of a single objective only
            return
        if trial is not None and epoch is not None and "patch_dice_smoothed" in result and _is_kept(result):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a continued trial reports its last epoch a second time
                trial.report(result["patch_dice_smoothed"], step=epoch)

    def on_trial_complete(
        self,
        trial_id: str,
        result: dict[str, Any] | None = None,  # noqa: ARG002  the folder's own result is what counts
        error: bool = False,
    ) -> None:
        """Tell the study how the trial ended; one that was merely interrupted stays open for the next driver."""
        trial = self._open.pop(trial_id, None)
        if trial is None:  # Tune says it a second time when a callback failed
            return
        folder = trial_folder(self._sweep, number=trial.number)
        self._home.at(folder).fetch(light)
        lacked = noted(folder) is not None
        if error and not lacked:
            self._study.tell(trial.number, state=TrialState.FAIL)
        elif self._ended(trial.number):
            self._tell(trial)
        self._record.save(now=False)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study holds everything."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the study holds everything."""

    def _begun(self) -> optuna.Trial | None:
        """A trial that an earlier driver left; one that was asked for and never got its parameters gets them now."""
        while self._unfinished:
            frozen = self._unfinished.pop(0)
            trial = optuna.Trial(self._study, frozen._trial_id)
            if CONFIG in frozen.user_attrs or self._configure(trial):
                return trial
            self._new += 1
        return None

    def _ask(self) -> optuna.Trial | None:
        """A new trial whose parameters can be trained, or None when none was drawn."""
        for _ in range(MOST_REFUSED):
            trial = self._ask_study(self._study)
            if trial is None or self._configure(trial):
                return trial
        return None

    def _configure(self, trial: optuna.Trial) -> bool:
        """Give a trial its parameters; False when they cannot be trained."""
        try:
            trial.set_user_attr(CONFIG, self._suggest_config(trial))
        except Exception as error:  # recipes raise what they like; the sweep goes on
            self._refuse(trial, reason=str(error) or repr(error))
            return False
        return True

    def _refuse(self, trial: optuna.Trial, *, reason: str) -> None:
        folder = trial_folder(self._sweep, number=trial.number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ERROR).write_text(reason + "\n")
        self._home.at(folder).send(lambda name: name == ERROR)
        self._study.tell(trial.number, state=TrialState.FAIL)
        self._report(folder.name, 0, 0, f"failed: {reason}")

    def _settle_ended(self) -> None:
        """Trials whose run ended before the last driver could say so."""
        for frozen in list(self._unfinished):
            if self._ended(frozen.number):
                self._tell(optuna.Trial(self._study, frozen._trial_id))
                self._unfinished.remove(frozen)

    def _ended(self, number: int) -> bool:
        """Whether a trial's folder says how it ended."""
        folder = trial_folder(self._sweep, number=number)
        return (folder / RESULT).is_file() or noted(folder) is not None

    def _tell(self, trial: optuna.Trial) -> None:
        folder = trial_folder(self._sweep, number=trial.number)
        lacking = noted(folder)
        if lacking is not None:
            self._tell_shortage(trial, lacking=lacking)
            return
        result = read_result(folder)
        trial.set_constraint(MEMORY, HAD)
        if result["status"] == "finished" and all(name in result for name in self._objectives):
            self._study.tell(trial.number, [result[name] for name in self._objectives])
        else:
            self._study.tell(trial.number, state=TrialState.PRUNED)

    def _tell_shortage(self, trial: optuna.Trial, *, lacking: Mapping[str, Any]) -> None:
        """Not as a failure, of which no sampler learns: as a point that the constraint forbids, with the worst values so far."""
        complete = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        values = worst([known.values for known in complete if not failed(known)], objectives=self._objectives)
        trial.set_user_attr(SHORTAGE, dict(lacking))
        trial.set_constraint(MEMORY, LACKED)
        self._study.tell(trial.number, values)


def _is_kept(report: Mapping[str, Any]) -> bool:
    """Whether an epoch is one of those of a curve; the last one is."""
    step = -(-report.get("epochs", 1) // MOST_POINTS)
    return report["epoch"] % step == 0 or report.get("status", "training") != "training"


def objectives_of(study: optuna.Study) -> tuple[str, ...]:
    """What a study optimises, as names of a result."""
    return parse_objectives(study.user_attrs.get(SETTINGS, {}).get(OBJECTIVE, DICE))


def failed(trial: FrozenTrial) -> bool:
    """Whether a trial ended without a model: in an error, or for lack of memory."""
    return trial.state == TrialState.FAIL or SHORTAGE in trial.user_attrs


def own_trials(study: optuna.Study) -> list[FrozenTrial]:
    """A sweep's trials, without those that it only knows from earlier sweeps."""
    return [trial for trial in study.get_trials(deepcopy=False) if WARM not in trial.user_attrs]


def learning_curves(study: optuna.Study, *, sweep: Path) -> dict[str, dict[float, float]]:
    """Smoothed patch Dice by share of its epochs of every own trial with a result, by its folder's name.

    None where several objectives are sought.
    """
    curves = {}
    for trial in own_trials(study):
        folder = trial_folder(sweep, number=trial.number)
        if trial.state.is_finished() and trial.intermediate_values and (folder / RESULT).is_file():
            epochs = read_result(folder)["epochs"]
            curves[folder.name] = {epoch / epochs: dice for epoch, dice in trial.intermediate_values.items()}
    return curves


def untouched(study: optuna.Study) -> bool:
    """Whether no trial was begun yet, whatever is queued."""
    return all(trial.state == TrialState.WAITING for trial in study.get_trials(deepcopy=False))


def has_unfinished(study: optuna.Study) -> bool:
    """Whether a trial was begun and not ended."""
    return any(trial.state == TrialState.RUNNING for trial in study.get_trials(deepcopy=False))


def trials_left(study: optuna.Study, *, trials: int) -> int:
    """How many are to run: those begun and not ended, and new ones until `trials` ended well."""
    own = own_trials(study)
    ended = sum(trial.state.is_finished() and not failed(trial) for trial in own)
    return max(sum(trial.state == TrialState.RUNNING for trial in own), trials - ended)


def ended_trials(study: optuna.Study, *, sweep: Path) -> tuple[SweptTrial, ...]:
    """Trials that ended, best by the first objective first, those without a final value last; of several the Pareto front before all."""
    objectives = objectives_of(study)
    found = [swept(trial, sweep=sweep) for trial in own_trials(study) if trial.state.is_finished()]
    measured = [trial for trial in found if trial.dice is not None]
    chosen = front([trial.values for trial in measured], objectives=objectives)
    best = {measured[index].name for index in chosen}
    return tuple(
        sorted(
            found,
            key=lambda trial: (
                trial.dice is None,
                trial.name not in best,
                -trial.values.get(objectives[0], 0.0),
                trial.name,
            ),
        )
    )


def swept(trial: FrozenTrial, *, sweep: Path) -> SweptTrial:
    """A trial of the study with what its folder says."""
    folder = trial_folder(sweep, number=trial.number)
    result = read_result(folder) if (folder / RESULT).is_file() else {}
    state = OUT_OF_MEMORY if SHORTAGE in trial.user_attrs else str(result.get("status", FAILED))
    # Optuna gives a pruned trial the last value that it reported: a Dice of patches.
    complete = trial.state == TrialState.COMPLETE and not failed(trial)
    values = {name: float(result[name]) for name in DIRECTIONS if name in result} if complete else {}
    return SweptTrial(
        name=folder.name,
        state=state,
        dice=values.get(DICE),
        epochs=int(result.get("epoch", 0)),
        config=trial.user_attrs.get(CONFIG, {}),
        folder=folder,
        values=values,
    )
