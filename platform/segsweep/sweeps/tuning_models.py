"""The models that come out of a sweep: its best trials become registered versions, and the best of a name its candidate."""

from collections import Counter
from collections.abc import Sequence

from segsweep.data.mirror import shared
from segsweep.data.store import Store
from segsweep.errors import ModelError
from segsweep.models.cards import markdown_table, overall, span
from segsweep.models.catalogue import Registered, set_alias, versions
from segsweep.models.promotion import CANDIDATE
from segsweep.models.registry import register
from segsweep.models.tracking import DATA_TAG, DICE_TAG, FOLD_TAG, SWEEP_TAG, TRIAL_TAG
from segsweep.sweeps.folds import fold_folders
from segsweep.sweeps.following import Follow, describe
from segsweep.sweeps.lineage import scores_of
from segsweep.sweeps.run_folder import MODEL, read_result
from segsweep.sweeps.tuning_study import SweptTrial
from segsweep.workspace import Workspace

# Trials that the page of a sweep's run lists; all are below it.
NOTED = 10


def register_best(
    trials: Sequence[SweptTrial], *, count: int, trainable: str, follow: Follow, store: Store, folds: Sequence[int]
) -> tuple[Registered, ...]:
    """Register the best finished trials as versions of `DATASET-TRAINABLE`, `trainable` where a trial chose no other; one a fold.

    A version's Dice is that of its own fold. The first of the best trial of each name is proposed as `candidate`.
    """
    registered: list[Registered] = []
    for trial in [trial for trial in trials if trial.dice is not None][:count]:
        name = f"{store.dataset}-{trial.config.get('trainable', trainable)}"
        for fold, place in fold_folders(trial.folder, folds=folds).items():
            run = place.relative_to(trial.folder.parent).as_posix()
            run_id = follow.run_of(run)
            if run_id is None:
                raise ModelError(
                    f"{run}: its MLflow run is gone; expected it under the sweep's; restore the tracking database"
                )
            tags = {
                SWEEP_TAG: follow.sweep,
                TRIAL_TAG: trial.name,
                FOLD_TAG: str(fold),
                DICE_TAG: f"{read_result(place)['dice']:.4f}",
                DATA_TAG: store.digest,
            }
            shared(follow.tracker.workspace).at(place / MODEL).fetch()
            registered.append(
                register(
                    place / MODEL,
                    name=name,
                    tracker=follow.tracker,
                    run_id=run_id,
                    tags=tags,
                    scores=scores_of(place),
                )
            )
    for name in dict.fromkeys(version.name for version in registered):
        best = next(version for version in registered if version.name == name)
        propose(best, workspace=follow.tracker.workspace)
    return tuple(registered)


def propose(best: Registered, *, workspace: Workspace) -> None:
    """Move the alias `candidate` to a version, unless the present one did better on the same fold of the same data.

    On other cases its Dice says nothing.
    """
    known = {version.version: version for version in versions(best.name, workspace=workspace)}
    own = known[best.version].tags
    rivals = (
        version
        for version in known.values()
        if CANDIDATE in version.aliases and all(version.tags.get(tag) == own.get(tag) for tag in (DATA_TAG, FOLD_TAG))
    )
    if all((rival.dice or 0.0) <= (known[best.version].dice or 0.0) for rival in rivals):
        set_alias(best.name, alias=CANDIDATE, version=best.version, workspace=workspace)


def sweep_note(trials: Sequence[SweptTrial], *, space: str, registered: Sequence[Registered]) -> str:
    """Markdown for the page of a sweep's run: its best trials with their scores and parameters, and what was registered."""
    measured = [trial for trial in trials if trial.dice is not None]
    rows = [
        (str(place), trial.name, _scored(trial), str(trial.epochs), describe(trial.config))
        for place, trial in enumerate(measured[:NOTED], start=1)
    ]
    counts = ", ".join(
        f"{number} {state.replace('_', ' ')}" for state, number in Counter(t.state for t in trials).items()
    )
    lines = [f"Search space `{space}`: {len(trials)} trials ended ({counts})."]
    if rows:
        lines += ["", markdown_table(("", "trial", "Dice (95 % interval)", "epochs", "parameters"), rows=rows)]
    if registered:
        lines += ["", f"Registered: {', '.join(f'`{version.uri}`' for version in registered)}."]
    return "\n".join(lines)


def _scored(trial: SweptTrial) -> str:
    scores = scores_of(trial.folder)
    interval = f" ({span(overall(scores))})" if any(scores.values()) else ""
    return f"{trial.dice:.3f}{interval}"
