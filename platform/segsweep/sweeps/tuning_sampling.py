"""Which points of a search space become trials: by one of Optuna's samplers, from a queue, over a grid, or known from earlier sweeps.

`Probe` looks into a space without drawing from it: spaces are functions, and only calling one tells what it draws.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from segsweep.errors import RecipeError

SAMPLERS = ("tpe", "gp", "random", "grid", "nsga2")
# Trials before a sampler learns from them, and those of a generation: sweeps are of tens of trials.
STARTUP, POPULATION = 5, 10
MOST_POINTS = 10_000
# Marks a trial that is only known from an earlier sweep.
WARM = "segsweep.warm"

# A space with all but the trial given.
Draw = Callable[[Any], object]
# Where a new trial comes from; None when there is none left.
Ask = Callable[[optuna.Study], optuna.Trial | None]


class _EndlessError(RecipeError):
    """A space that has no grid."""


class FixedTrial:
    """An Optuna trial for `space`: what the user fixed is given as it is and not drawn, so no sampler learns from it."""

    def __init__(self, trial: Any, *, fixed: Mapping[str, Any]) -> None:
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


class Probe:
    """Stands in for an Optuna trial: `choose` gives every value by name and distribution; what was asked for is kept."""

    number = 0

    def __init__(self, choose: Callable[[str, BaseDistribution], Any]) -> None:
        self._choose = choose
        self.params: dict[str, Any] = {}
        self.distributions: dict[str, BaseDistribution] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """As Optuna's."""
        return self._ask(name, CategoricalDistribution(choices))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """As Optuna's."""
        return self._ask(name, FloatDistribution(low, high, log=log, step=step))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """As Optuna's."""
        return self._ask(name, IntDistribution(low, high, log=log, step=step))

    def _ask(self, name: str, distribution: BaseDistribution) -> Any:
        if name not in self.params:
            self.distributions[name] = distribution
            self.params[name] = self._choose(name, distribution)
        return self.params[name]


def make_sampler(name: str, *, seed: int) -> BaseSampler:
    """One of Optuna's own. (A grid's points wait in the queue: nothing is sampled.)"""
    if name == "tpe":
        return TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True, constant_liar=True)
    if name == "gp":
        return GPSampler(seed=seed, n_startup_trials=STARTUP, warn_independent_sampling=False)
    if name == "nsga2":
        return NSGAIISampler(seed=seed, population_size=POPULATION)
    return RandomSampler(seed=seed)


def drawn(study: optuna.Study) -> optuna.Trial | None:
    """A trial from the queue, or else from the study's sampler."""
    return study.ask()


def queued(study: optuna.Study) -> optuna.Trial | None:
    """A trial from the queue, or none."""
    return study.ask() if study.get_trials(deepcopy=False, states=(TrialState.WAITING,)) else None


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All points of a space, in an order that covers it from the beginning. Calling it makes a trial of one that no trial had."""

    points: tuple[dict[str, Any], ...]

    def __call__(self, study: optuna.Study) -> optuna.Trial | None:
        """A trial from the queue, or of the grid's next point; None when every point had its trial."""
        waiting = queued(study)
        if waiting is not None:
            return waiting
        left = self.untried(study)
        if not left:
            return None
        study.enqueue_trial(left[0])
        return study.ask()

    def untried(self, study: optuna.Study) -> list[dict[str, Any]]:
        """The points that no trial of the study's own had, whatever became of it."""
        had = {_key(trial.params) for trial in study.get_trials(deepcopy=False) if WARM not in trial.user_attrs}
        return [point for point in self.points if _key(point) not in had]


def make_grid(draw: Draw, *, seed: int) -> Grid:
    """The grid of a space. Raises RecipeError when it draws real numbers without a step, or has too many points or none."""
    points = []
    for point in _points(draw):
        points.append(point)
        if len(points) > MOST_POINTS:
            raise RecipeError(
                f"sampler=grid: the space has more than {MOST_POINTS} points; expected fewer choices, or another sampler=…"
            )
    random.Random(seed).shuffle(points)
    return Grid(points=tuple(points))


def default_point(draw: Draw, *, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The space's point for the plan's own run: what a parameter is by default, or else the first of its choices.

    A number whose default is outside what the space draws is left out: the sampler draws it.
    """
    point: dict[str, Any] = {}

    def choose(name: str, distribution: BaseDistribution) -> Any:
        candidates = _default_candidates(distribution, default=defaults.get(name))
        if candidates:
            point[name] = candidates[0]
        return point.get(name, getattr(distribution, "low", None))

    # What a space raises for its default is told when trial 0 is drawn.
    with suppress(Exception):
        draw(Probe(choose))
    return point


def fitting(draw: Draw, *, values: Mapping[str, Any], fixed: Mapping[str, Any]) -> Probe | None:
    """The space as an earlier trial's values go through it; None where it draws others, or what was fixed then and now differs."""

    def choose(name: str, distribution: BaseDistribution) -> Any:
        if name not in values or not _holds(distribution, values[name]):
            raise LookupError(name)
        return values[name]

    probe = Probe(choose)
    try:
        draw(probe)
    except Exception:  # ours, or what a recipe raises for a point that it does not allow
        return None
    other = (values.keys() | fixed.keys()) - probe.params.keys()
    alike = all(name in fixed and name in values and _key(fixed[name]) == _key(values[name]) for name in other)
    return probe if alike else None


def _points(draw: Draw) -> Iterator[dict[str, Any]]:
    """Every point once: each call takes the first value of what is not given yet, and leaves the others for later.

    Points for which the space raises are left out. Raises RecipeError where those are all.
    """
    left: list[dict[str, Any]] = [{}]
    found, refusal = False, ""
    while left:
        given = left.pop()
        probe = Probe(lambda name, distribution, given=given: given.get(name, _choices(name, distribution)[0]))
        try:
            draw(probe)
        except _EndlessError:
            raise
        except Exception as error:  # recipes raise what they like
            refusal = str(error) or repr(error)
        else:
            found = True
            yield probe.params
        names = list(probe.params)
        for index, name in enumerate(names):
            if name not in given:
                before = {known: probe.params[known] for known in names[:index]}
                left += [{**before, name: value} for value in _choices(name, probe.distributions[name])[1:]]
    if not found:
        raise RecipeError(f"sampler=grid: the space allows none of its points ({refusal}); correct its recipe")


def _choices(name: str, distribution: BaseDistribution) -> list[Any]:
    """All values of a distribution. Raises _EndlessError when there is no end of them."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        count = round((distribution.high - distribution.low) / distribution.step) + 1
        return [round(distribution.low + index * distribution.step, 12) for index in range(count)]
    raise _EndlessError(
        f"sampler=grid: the space draws {name} from real numbers without a step; expected choices, "
        f"give {name}=… a value, or choose another sampler=…"
    )


def _default_candidates(distribution: BaseDistribution, *, default: Any) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        same = [choice for choice in distribution.choices if _key(choice) == _key(default)]
        return same or list(distribution.choices)
    return [default] if _holds(distribution, default) else []


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a distribution could have given a value."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and distribution._contains(distribution.to_internal_repr(value))


def _key(value: Any) -> str:
    """Values as one compares them: what JSON cannot tell apart (tuples, lists) is the same."""
    return json.dumps(value, sort_keys=True, default=str)
