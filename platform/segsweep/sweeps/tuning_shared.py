"""What all trials of a sweep share, checked before anything starts."""

from collections.abc import Mapping
from typing import Any

from segsweep import recipes
from segsweep.data.joint import open_stores
from segsweep.data.store import Store
from segsweep.errors import RecipeError, StoreError
from segsweep.evaluation.profiles import profile
from segsweep.run import Run
from segsweep.sweeps.comparison import comparison_of, config_of
from segsweep.sweeps.initial import INITIAL
from segsweep.sweeps.trial import changed
from segsweep.sweeps.tuning_objectives import DICE, NSD, parse_objectives
from segsweep.sweeps.tuning_options import SweepOptions, parse_folds
from segsweep.sweeps.tuning_study import OBJECTIVE

# The parameter that has held-out scans scored by NSD. Where it is the objective, it is the tolerance (mm) of the profile `plain`.
NSD_TOLERANCE = "nsd_tolerance"


def first_run(space: str, *, store: str, options: SweepOptions, params: Mapping[str, Any]) -> Run:
    """What a sweep is checked by before it starts: what its trials share, with the first row of a published comparison.

    Raises RecipeError or StoreError like `base_run`, and when no row can be trained without a pre-trained model.
    """
    base = base_run(space, store=store, options=options, params=params)
    return changed(base, config={**first_config(space, store=store, options=options), **base.params})


def first_config(space: str, *, store: str, options: SweepOptions) -> dict[str, Any]:
    """Trainable and parameters of the first row that can be trained; nothing for a space to search. Raises RecipeError."""
    comparison = comparison_of(recipes.load("search_spaces", name=space))
    if comparison is None:
        if options.scale != 1.0 or options.pretrained:
            raise RecipeError(f"{space} is no published comparison; expected scale=… and pretrained=… only with those")
        return {}
    if options.sampler != "tpe" or options.objective != DICE or options.warm:
        raise RecipeError(
            f"{space} is a published comparison, whose rows are the trials; expected no sampler=…, objective=… or warm=…"
        )
    if len(parse_folds(options.folds)) != 1:
        raise RecipeError(
            f"folds={options.folds}: {space} is a published comparison, whose rows are trained on one fold; expected one"
        )
    waves = comparison.waves(pretrained=bool(options.pretrained))
    if not waves:
        raise RecipeError(f"every row of {space} starts from a pre-trained model; give pretrained=models:/NAME/1")
    row = waves[0][0]
    config = config_of(row, plan=open_stores(store).plan, scale=options.scale)
    return {**config, **({INITIAL: options.pretrained} if row.pretrained else {})}


def base_run(space: str, *, store: str, options: SweepOptions, params: Mapping[str, Any]) -> Run:
    """What all trials share. Raises RecipeError or StoreError when there is no such space or store, or nothing to compare trials by."""
    recipe, opened = recipes.load("search_spaces", name=space), open_stores(store)
    comparison = comparison_of(recipe)
    own = dict(params)
    first = next(row.trainable for row in comparison.rows if not row.members) if comparison else recipe.TRAINABLE
    surfaces = NSD in parse_objectives(options.objective)
    scored = {NSD_TOLERANCE: profile("plain").rule("").tolerance} if surfaces else {}
    run = Run(
        trainable=own.pop("trainable", first),
        store=opened.uri,
        fold=folds_of(opened, options=options)[0],
        seed=options.seed,
        workers=options.workers,
        params={**scored, **getattr(recipe, "PARAMS", {}), **own},
    )
    if surfaces and not run.params[NSD_TOLERANCE]:
        raise RecipeError(
            f"objective={options.objective} cannot be measured with {NSD_TOLERANCE}=0; expected a tolerance in mm, or leave it out"
        )
    return run


def folds_of(store: Store, *, options: SweepOptions) -> tuple[int, ...]:
    """The folds that every trial trains; by the first of them it is judged while it trains.

    Raises StoreError when one is not there, or holds nothing out.
    """
    folds = parse_folds(options.folds) or tuple(range(store.num_folds))
    for fold in folds:
        if not store.validation(fold):
            raise StoreError(
                f"{store.uri}: fold {fold} holds out no annotated case to compare trials by; "
                "choose another fold, or convert more annotated cases"
            )
    return folds


def settings_of(space: str, *, base: Run, store: Store, options: SweepOptions) -> dict[str, Any]:
    """What must stay the same for trials to be comparable."""
    shared = {key: value for key, value in base.to_json().items() if key != "store"}
    # Sweeps of Dice alone are the rule, and older ones name no objective.
    objective = {} if options.objective == DICE else {OBJECTIVE: options.objective}
    folds = folds_of(store, options=options)
    several = {"folds": list(folds)} if len(folds) > 1 else {}
    return {"space": space, "data": store.digest, "scale": options.scale, **objective, **several, **shared}
