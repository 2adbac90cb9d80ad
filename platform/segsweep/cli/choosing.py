"""Verbs that choose among models and their settings: ensemble, postprocess, promote."""
# ruff: noqa: PLC0415

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from segsweep import recipes
from segsweep.cli.app import StorePaths, Values, app, parsed
from segsweep.errors import RecipeError, unknown
from segsweep.terminal import bars, console, say
from segsweep.workspace import current_workspace

# Keys of `ensemble` by its rule.
RULES: Mapping[str, Sequence[str]] = {
    "mean": ("members",),
    "folds": ("members",),
    "greedy": ("candidates", "metric", "nsd_tolerance", "budget_seconds", "most", "bags", "seed"),
}
PROMOTE = ("level", "metric", "nsd_tolerance", "store")
POSTPROCESS = ("store",)


@app.command()
def ensemble(store: StorePaths, values: Values = None) -> None:
    """Build an ensemble of registered models and register it.

    Keys:
      rule      mean, folds (of one run, nnU-Net's) or greedy           (mean)
      members   model addresses         (the best 3 that this store trained);
                with rule=folds, a model whose other folds are looked for
      name      of the registered model                   (DATASET-ensemble)

    With rule=greedy, members and their weights are chosen by cases that no
    candidate was trained on (Caruana et al., 2004), at least 5 of them:
      candidates      model addresses  (the best 10 that this store trained)
      metric          dice or nsd                                     (dice)
      nsd_tolerance   of nsd, in mm                                      (2)
      budget_seconds  most seconds a case, as measured         (no limit)
      most            most different members                          (5)
      bags            searches by resampled cases, averaged          (10)
      seed            of the resampling and of the cross-validation   (0)

    Examples:
      segsweep ensemble stores/openkbp
      segsweep ensemble stores/openkbp members=models:/a/1,models:/b@candidate
      segsweep ensemble stores/openkbp rule=greedy budget_seconds=60
    """
    from segsweep.data.joint import open_stores
    from segsweep.models.ensemble import best_members, build, fold_members
    from segsweep.models.tracking import Tracker

    given = recipes.parse_pairs(values or [])
    rule = given.pop("rule", "mean")
    if rule not in RULES:
        raise RecipeError(unknown(rule, kind="rules of ensemble", known=RULES))
    for key in given:
        if key not in ("name", *RULES[rule]):
            raise RecipeError(unknown(key, kind=f"keys of ensemble rule={rule}", known=("name", "rule", *RULES[rule])))
    measure = _measure(given)
    opened, workspace = open_stores(store), current_workspace()
    name = given.pop("name", f"{opened.dataset}-ensemble")
    most = 10 if rule == "greedy" else 3
    named = given.pop(RULES[rule][0], "")
    members = (
        named.split(",") if named else best_members(opened.dataset, data=opened.digest, workspace=workspace, count=most)
    )
    if rule == "greedy":
        registered = _greedy_ensemble(members, store=opened, name=name, measure=measure, limits=parsed(given))
    else:
        if rule == "folds":
            members = fold_members(members[0], workspace=workspace)
        tracker = Tracker(workspace, experiment=opened.dataset)
        registered = build(members, name=name, tracker=tracker, rule="folds" if rule == "folds" else "mean").uri
        say(f"registered {registered}: the mean of {', '.join(members)}")
    say(f"next: segsweep predict {registered} SCANS predictions/")


@app.command()
def postprocess(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A registered model's address.")],
    values: Values = None,
) -> None:
    """Find the clean-up that helps a model, and register the model with it.

    Segments the cases that the model was not trained on and tries, as nnU-Net
    does, to keep the largest component alone: of the whole foreground, if the
    mean Dice rises and no structure's falls; then of each structure, if its own
    mean Dice rises. What helps is recorded in a new version of the same name,
    with the same weights; `predict` then applies it. Where nothing helps,
    nothing is registered.

    Keys:
      store   where the data lies now               (where it was trained from)

    Examples:
      segsweep postprocess models:/openkbp-unet@candidate
      segsweep postprocess models:/openkbp-ensemble store=stores/openkbp
    """
    from segsweep.models.postprocessing import postprocess as run

    given = recipes.parse_pairs(values or [])
    for key in given:
        if key not in POSTPROCESS:
            raise RecipeError(unknown(key, kind="keys of postprocess", known=POSTPROCESS))
    with bars() as shown:
        workspace, told = current_workspace(), shown.pieces("scans")
        done = run(model, workspace=workspace, store=given.get("store", ""), progress=told)
    table = Table("structure", "Dice before", "after", "better in", "worse in", box=None, pad_edge=False)
    for name, gain in done.found.gains.items():
        counts = (str(gain.better), str(gain.worse))
        table.add_row(escape(name), f"{gain.before:.4f}", f"{gain.after:.4f}", *counts)
    console.print(table)
    say(str(done))
    if done.registered is not None:
        say(f"next: segsweep predict {done.registered.uri} SCANS predictions/")


@app.command()
def promote(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name (its @candidate), or a model's address.")],
    values: Values = None,
    force: Annotated[bool, typer.Option("--force", help="Promote it all the same; the record says so.")] = False,
) -> None:
    """Make a candidate the champion of its name, if it is better with confidence.

    Both segment the cases that neither was trained on; the candidate is better
    when the interval of the mean difference in Dice (or NSD) lies above zero and
    so does Wilcoxon's test, corrected for the trials that it is the best of.
    Otherwise the champion stays. The first candidate of a name becomes champion.
    Exit code 0 whatever is decided: the first words say what it was.

    Keys:
      store          where the data lies now        (where it was trained from)
      level          of confidence                                      (0.95)
      metric         dice or nsd                                        (dice)
      nsd_tolerance  of nsd, in mm                                         (2)

    Examples:
      segsweep promote openkbp-unet
      segsweep promote models:/openkbp-unet/7 store=stores/openkbp metric=nsd
    """
    from segsweep.models.promotion import promote as run

    given = recipes.parse_pairs(values or [])
    for key in given:
        if key not in PROMOTE:
            raise RecipeError(unknown(key, kind="keys of promote", known=PROMOTE))
    measure = _measure(given)
    level = recipes.parse_value(given.get("level", "0.95"))
    if type(level) not in (int, float):
        raise RecipeError(f"level={level!r} cannot be used: expected a confidence such as 0.95")
    with bars() as shown:
        done = run(
            model,
            workspace=current_workspace(),
            store=given.get("store", ""),
            level=level,
            measure=measure,
            force=force,
            progress=shown.count,
        )
    say(str(done))
    if done.page:
        say(f"report: {done.page}")
    if done.promoted:
        say(f"next: segsweep predict models:/{done.candidate.name}@champion SCANS predictions/")


def _measure(given: dict[str, str]) -> Any:
    """The metric that is asked for, whose words are taken out."""
    from segsweep.evaluation.measure import Measure

    metric = given.pop("metric", "dice")
    if "nsd_tolerance" not in given:
        return Measure(metric=metric)
    tolerance = recipes.parse_value(given.pop("nsd_tolerance"))
    if metric != "nsd" or type(tolerance) not in (int, float):
        raise RecipeError(f"nsd_tolerance={tolerance!r} cannot be used: expected a length in mm, and metric=nsd")
    return Measure(metric=metric, nsd_tolerance=tolerance)


def _greedy_ensemble(
    candidates: Sequence[str], *, store: Any, name: str, measure: Any, limits: Mapping[str, Any]
) -> str:
    """Choose, register, and show the table of the choice; the address of what was registered."""
    from segsweep.evaluation.selection import Limits
    from segsweep.evaluation.selection_page import interval, number, seconds
    from segsweep.models.registry import fetch
    from segsweep.models.selecting import PAGE, build_greedy
    from segsweep.models.tracking import Tracker

    for key, value in limits.items():
        if type(value) is not int and (key, type(value)) != ("budget_seconds", float):
            raise RecipeError(f"{key}={value!r} cannot be used: expected a number, whole but for budget_seconds")
    allowed = Limits(**limits)
    tracker = Tracker(current_workspace(), experiment=store.dataset)
    with bars() as shown:
        built = build_greedy(
            candidates,
            store=store,
            name=name,
            tracker=tracker,
            limits=allowed,
            measure=measure,
            progress=shown.count,
        )
    if built.record is not None:
        heads = ("models", "rule", f"{built.record['measure']} (95 % interval)", "to the best single", "s/case")
        table = Table(*heads, box=None, pad_edge=False)
        for row in built.record["rows"]:
            differs = interval(row["difference"], sign="+", ends=3)
            table.add_row(row["name"], row["kind"], interval(row["score"], ends=3), differs, seconds(row["seconds"]))
        console.print(table)
        chosen = {one["letter"]: one for one in built.record["members"]}
        for one in built.record["candidates"]:
            member = chosen.get(one["letter"])
            share = f"  weight {member['weight']:.3f}, gain {number(member['gain'], sign='+')}" if member else ""
            say(f"{one['letter']} = {one['uri']}{share}")
        say(f"selection: {fetch(built.registered.uri, workspace=tracker.workspace) / PAGE}")
    say(f"registered {built.registered.uri}: {built.verdict}")
    return built.registered.uri
