"""A sweep's warm start: finished trials of earlier sweeps whose parameters its space could have drawn, as knowledge for its sampler."""

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import TrialState

from segsweep.errors import RecipeError, unknown
from segsweep.sweeps.tuning_database import open_database
from segsweep.sweeps.tuning_sampling import WARM, Draw, fitting
from segsweep.sweeps.tuning_study import HAD, MEMORY, SETTINGS, failed, objectives_of, own_trials

# Settings that trials may differ in and still be comparable: how often one looks changes nothing in it.
WITHOUT_EFFECT = ("scan_validation_every",)


def earlier_studies(storage: str, *, names: Sequence[str], objectives: Sequence[str]) -> tuple[optuna.Study, ...]:
    """The studies of earlier sweeps.

    Raises RecipeError for one that is not in the database or that optimised something else, ResourceError like `open_database`.
    """
    if not names:
        return ()
    database = open_database(storage)
    known = optuna.get_all_study_names(database)
    for name in names:
        if name not in known:
            raise RecipeError(f"warm={name}: {unknown(name, kind='sweeps', known=known)}")
    studies = tuple(optuna.load_study(study_name=name, storage=database) for name in names)
    for study in studies:
        if objectives_of(study) != tuple(objectives):
            raise RecipeError(
                f"warm={study.study_name}: that sweep's objective was {','.join(objectives_of(study))}, this one's is "
                f"{','.join(objectives)}; expected sweeps of the same"
            )
    return studies


def learn_from(earlier: optuna.Study, *, study: optuna.Study, draw: Draw, fixed: Mapping[str, Any]) -> int:
    """Add to the study what it does not know yet of an earlier one; how many of that one's trials it knows then.

    `fixed` is what the user fixed for all trials of this sweep, its preset too: trials with other values there do not fit.
    """
    before = {trial.user_attrs.get(WARM) for trial in study.get_trials(deepcopy=False)}
    given, fixed = _telling(earlier.user_attrs[SETTINGS].get("fixed", {})), _telling(fixed)
    count = 0
    for trial in own_trials(earlier):
        name = f"{earlier.study_name}/{trial.number}"
        probe = None
        if trial.state == TrialState.COMPLETE and not failed(trial):
            probe = fitting(draw, values={**given, **trial.params}, fixed=fixed)
        if probe is None:
            continue
        count += 1
        if name not in before:
            study.add_trial(
                optuna.trial.create_trial(
                    values=trial.values,
                    params=probe.params,
                    distributions=probe.distributions,
                    user_attrs={WARM: name},
                    constraints={MEMORY: HAD},
                )
            )
    return count


def _telling(fixed: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fixed.items() if key not in WITHOUT_EFFECT}
