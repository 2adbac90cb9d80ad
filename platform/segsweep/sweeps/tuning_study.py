"""The Optuna study behind a sweep: the one record of which trials there are, what they were given and how they ended.

`StudySearch` lets Ray Tune draw from it. It is our own in place of Ray's OptunaSearch because a sweep must survive its driver: the
study alone, without any pickled searcher, says which trials to continue (CONTRIBUTING.md, "Resuming a sweep").
"""

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from segsweep.data.planning import Plan
from segsweep.errors import RecipeError
from segsweep.sweeps.training import RESULT, read_result

CONFIG, SETTINGS = "segsweep.config", "segsweep.settings"
OBJECTIVE = "dice"

Space = Callable[[optuna.Trial, Plan], dict[str, Any]]


def open_study(storage: str, *, name: str, settings: Mapping[str, Any], seed: int) -> optuna.Study:
    """Make the study or open it again. Raises RecipeError when it was begun with other settings."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
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


class StudySearch(Searcher):
    """Hands Tune first the trials that an earlier driver left unfinished, then new ones up to `trials` in all."""

    def __init__(self, study: optuna.Study, *, space: Space, plan: Plan, sweep: Path, trials: int) -> None:
        super().__init__()
        self._study, self._space, self._plan, self._sweep = study, space, plan, sweep
        self._unfinished = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.RUNNING]
        self._settle_ended()
        ended = sum(
            trial.state.is_finished() and trial.state != TrialState.FAIL for trial in study.get_trials(deepcopy=False)
        )
        self._new = max(0, trials - ended - len(self._unfinished))
        self._open: dict[str, optuna.Trial] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a pickled copy for its own restore, which is never used: connections stay out of it."""
        return {}

    @property
    def remaining(self) -> int:
        """Trials that this search will hand out."""
        return len(self._unfinished) + self._new

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The config of the next trial: parameter overrides and its folder."""
        if self._unfinished:
            frozen = self._unfinished.pop(0)
            trial = optuna.Trial(self._study, frozen._trial_id)
        elif self._new:
            self._new -= 1
            trial = self._study.ask()
            trial.set_user_attr(CONFIG, self._space(trial, self._plan))
        else:
            return None
        self._open[trial_id] = trial
        return {**trial.user_attrs[CONFIG], "folder": str(trial_folder(self._sweep, number=trial.number))}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keep the learning curve: Optuna's samplers and plots use it."""
        trial, epoch = self._open[trial_id], result.get("epoch")
        if epoch is not None and "patch_dice_smoothed" in result:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a continued trial reports its last epoch a second time
                trial.report(result["patch_dice_smoothed"], step=epoch)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study how the trial ended; one that was merely interrupted stays open for the next driver."""
        trial = self._open.pop(trial_id)
        if error:
            self._study.tell(trial.number, state=TrialState.FAIL)
        elif (trial_folder(self._sweep, number=trial.number) / RESULT).is_file():
            self._tell(trial.number)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study holds everything."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the study holds everything."""

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


def ended_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that ended, best first, those without a final value last."""
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    return sorted(ended, key=lambda trial: (trial.value is None, -(trial.value or 0.0), trial.number))
