"""The Optuna study behind a sweep: the one record of which trials there are, what they were given and how they ended.

`StudySearch` lets Ray Tune draw from it. It is our own in place of Ray's OptunaSearch because a sweep must survive its driver: the
study alone, without any pickled searcher, says which trials to continue (CONTRIBUTING.md, "Resuming a sweep").
"""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from segsweep.errors import RecipeError, ResourceError
from segsweep.models.tracking import public
from segsweep.sweeps.following import ERROR, Report
from segsweep.sweeps.training import RESULT, read_result

# So many suggestions in a row that cannot be trained end a sweep.
MOST_REFUSED = 20
CONFIG, SETTINGS = "segsweep.config", "segsweep.settings"
OBJECTIVE = "dice"

SuggestConfig = Callable[[optuna.Trial], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class SweptTrial:
    """One trial as a sweep ends: `dice` is None when it was stopped early or failed."""

    name: str
    state: str
    dice: float | None
    epochs: int
    config: Mapping[str, Any]
    folder: Path


def open_study(storage: str, *, name: str, settings: Mapping[str, Any], seed: int) -> optuna.Study:
    """Make the study or open it again.

    Raises RecipeError when it was begun with other settings, ResourceError when its database cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    try:
        database = optuna.storages.get_storage(storage)
    except Exception as error:  # every database's driver raises its own
        reason = public(str(error).partition("\n")[0])
        raise ResourceError(
            f"study database {public(storage)!r} cannot be used ({reason}); "
            "expected sqlite:///FILE or the address of a database that runs in SEGSWEEP_STUDIES"
        ) from error
    study = optuna.create_study(storage=database, study_name=name, direction="maximize", load_if_exists=True)
    # Trials that exist have used up the first draws: a resumed sweep must not draw them again.
    study.sampler = optuna.samplers.TPESampler(
        seed=seed + len(study.trials), n_startup_trials=5, multivariate=True, constant_liar=True
    )
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


class FixedTrial:
    """An Optuna trial for `space`: what the user fixed is given as it is and not drawn, so no sampler learns from it."""

    def __init__(self, trial: optuna.Trial, *, fixed: Mapping[str, Any]) -> None:
        self._trial, self._fixed = trial, fixed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """The fixed value, where it is one of the choices; they may be names of what was fixed: then any will do."""
        if name not in self._fixed:
            return self._trial.suggest_categorical(name, choices)
        return self._fixed[name] if self._fixed[name] in choices else choices[0]

    def suggest_float(self, name: str, low: float, high: float, **options: Any) -> float:
        """The fixed value, or one that is drawn."""
        return self._fixed[name] if name in self._fixed else self._trial.suggest_float(name, low, high, **options)

    def suggest_int(self, name: str, low: int, high: int, **options: Any) -> int:
        """The fixed value, or one that is drawn."""
        return self._fixed[name] if name in self._fixed else self._trial.suggest_int(name, low, high, **options)


class StudySearch(Searcher):
    """Hands Tune first the trials that an earlier driver left unfinished, then new ones up to `trials` in all.

    `suggest_config` makes a trial's parameters and raises when they cannot be trained: such a trial fails here and another is drawn,
    or with `queued` the next one is taken that waits in the study, if any does.
    """

    def __init__(
        self,
        study: optuna.Study,
        *,
        suggest_config: SuggestConfig,
        sweep: Path,
        trials: int,
        report: Report,
        queued: bool = False,
    ) -> None:
        super().__init__()
        self._queued = queued
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
        if self._unfinished:
            trial = optuna.Trial(self._study, self._unfinished.pop(0)._trial_id)
        elif (asked := self._ask() if self._new else None) is not None:
            trial = asked
            self._new -= 1
        else:
            self._new = 0
            return Searcher.FINISHED  # type: ignore[return-value]  Tune's own word, which its signature omits
        self._open[trial_id] = trial
        return {**trial.user_attrs[CONFIG], "folder": str(trial_folder(self._sweep, number=trial.number))}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keep the learning curve: Optuna's samplers and plots use it."""
        trial, epoch = self._open.get(trial_id), result.get("epoch")
        if trial is not None and epoch is not None and "patch_dice_smoothed" in result:
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
        if error:
            self._study.tell(trial.number, state=TrialState.FAIL)
        elif (trial_folder(self._sweep, number=trial.number) / RESULT).is_file():
            self._tell(trial.number)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study holds everything."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the study holds everything."""

    def _ask(self) -> optuna.Trial | None:
        """A new trial whose parameters can be trained, or None when none was drawn."""
        for _ in range(MOST_REFUSED):
            if self._queued and not self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                return None
            trial = self._study.ask()
            try:
                trial.set_user_attr(CONFIG, self._suggest_config(trial))
            except Exception as error:  # recipes raise what they like; the sweep goes on
                self._refuse(trial, reason=str(error) or repr(error))
            else:
                return trial
        return None

    def _refuse(self, trial: optuna.Trial, *, reason: str) -> None:
        folder = trial_folder(self._sweep, number=trial.number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ERROR).write_text(reason + "\n")
        self._study.tell(trial.number, state=TrialState.FAIL)
        self._report(folder.name, 0, 0, f"failed: {reason}")

    def _settle_ended(self) -> None:
        """Trials whose run ended, or never got its parameters, before the last driver could say so."""
        for frozen in list(self._unfinished):
            if (trial_folder(self._sweep, number=frozen.number) / RESULT).is_file():
                self._tell(frozen.number)
            elif CONFIG not in frozen.user_attrs:
                self._study.tell(frozen.number, state=TrialState.FAIL)
            else:
                continue
            self._unfinished.remove(frozen)

    def _tell(self, number: int) -> None:
        result = read_result(trial_folder(self._sweep, number=number))
        if result["status"] == "finished" and OBJECTIVE in result:
            self._study.tell(number, result[OBJECTIVE])
        else:
            self._study.tell(number, state=TrialState.PRUNED)


def has_unfinished(study: optuna.Study) -> bool:
    """Whether a trial was begun and not ended."""
    return any(trial.state == TrialState.RUNNING for trial in study.get_trials(deepcopy=False))


def trials_left(study: optuna.Study, *, trials: int) -> int:
    """How many are to run: those begun and not ended, and new ones until `trials` ended well."""
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    ended = sum(state.is_finished() and state != TrialState.FAIL for state in states)
    return max(states.count(TrialState.RUNNING), trials - ended)


def ended_trials(study: optuna.Study, *, sweep: Path) -> tuple[SweptTrial, ...]:
    """Trials that ended, best first, those without a final value last."""
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    found = [swept(trial, sweep=sweep) for trial in ended]
    return tuple(sorted(found, key=lambda trial: (trial.dice is None, -(trial.dice or 0.0), trial.name)))


def swept(trial: FrozenTrial, *, sweep: Path) -> SweptTrial:
    """A trial of the study with what its folder says."""
    folder = trial_folder(sweep, number=trial.number)
    result = read_result(folder) if (folder / RESULT).is_file() else {}
    return SweptTrial(
        name=folder.name,
        state=str(result.get("status", "failed")),
        # Optuna gives a pruned trial the last value that it reported: a Dice of patches.
        dice=trial.value if trial.state == TrialState.COMPLETE else None,
        epochs=int(result.get("epoch", 0)),
        config=trial.user_attrs.get(CONFIG, {}),
        folder=folder,
    )
