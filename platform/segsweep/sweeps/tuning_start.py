"""What a search is asked for, checked before anything starts, and what its study holds before the first trial is drawn."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from segsweep import recipes
from segsweep.sweeps.following import Report
from segsweep.sweeps.preparing import Prepared
from segsweep.sweeps.tuning_objectives import parse_objectives
from segsweep.sweeps.tuning_sampling import Ask, Draw, FixedTrial, Grid, default_point, drawn, make_grid
from segsweep.sweeps.tuning_study import failed, own_trials, untouched
from segsweep.sweeps.tuning_warm import earlier_studies, learn_from


@dataclass(frozen=True, kw_only=True)
class Start:
    """How a search begins. `draw` calls its space; `first` are the points of its first trials, of which trial 0 is the plan's own run."""

    draw: Draw
    ask: Ask
    first: tuple[dict[str, Any], ...]
    earlier: tuple[Any, ...]
    fixed: Mapping[str, Any]

    def fill(self, study: Any, *, report: Report) -> None:
        """Put into the study what it does not hold yet: the first points into a new one, and what is known of earlier sweeps."""
        # A driver that died here put some of them in, and began none.
        if untouched(study):
            for point in self.first:
                study.enqueue_trial(point, skip_if_exists=True)
        for earlier in self.earlier:
            count = learn_from(earlier, study=study, draw=self.draw, fixed=self.fixed)
            words = f"starting from {count} of its {len(own_trials(earlier))} trials, which finished and fit this space"
            report(earlier.study_name, 0, 0, words)

    def most(self, study: Any, *, trials: int) -> int:
        """How many trials there can be in all: no more than a grid has points."""
        if not isinstance(self.ask, Grid):
            return trials
        begun = sum(not failed(trial) for trial in own_trials(study))
        return min(trials, begun + len(self.ask.untried(study)))


def search_start(
    recipe: ModuleType, *, sampler: str, objective: str, warm: tuple[str, ...], storage: str, prepared: Prepared,
    fixed: Mapping[str, Any],
) -> Start:  # fmt: skip
    """Check what is asked of a search over a recipe's space. `prepared` is the plan's own run, `fixed` what the user fixed.

    Raises RecipeError when the sampler cannot draw from this space, or an earlier sweep is unknown or had other objectives.
    """
    plan = prepared.store.plan
    own = {key: value for key, value in fixed.items() if key != "preset"}

    def draw(trial: Any) -> object:
        return recipe.space(FixedTrial(trial, fixed=own), plan)

    defaults = {"trainable": prepared.run.trainable, **recipes.params_json(prepared.params)}
    first = recipe.first(plan) if hasattr(recipe, "first") else [default_point(draw, defaults=defaults)]
    # Where points differed in what is fixed now, they are one and the same trial.
    free = [{key: value for key, value in point.items() if key not in own} for point in first]
    return Start(
        draw=draw,
        ask=make_grid(draw, seed=prepared.run.seed) if sampler == "grid" else drawn,
        first=tuple(point for number, point in enumerate(free) if point and point not in free[:number]),
        earlier=earlier_studies(storage, names=warm, objectives=parse_objectives(objective)),
        fixed=fixed,
    )
