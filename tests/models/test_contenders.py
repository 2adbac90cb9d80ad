"""Which cases a model never learned from, and from how many trials it was chosen on them."""

import dataclasses
from collections.abc import Callable

from segsweep.data.store import Store
from segsweep.learning.transfer import pinned
from segsweep.models import registry
from segsweep.models.catalogue import Registered
from segsweep.models.contenders import choices, contender, unseen
from segsweep.models.ensemble import build
from segsweep.models.tracking import TRIAL_TAG, Tracker
from segsweep.workspace import Workspace

Enter = Callable[..., Registered]

FOLDS = [["c00", "c01", "c02", "c03", "c04", "c05", "c06", "c07"], ["c08", "c09"]]
VALIDATION = ["c10", "c11"]
GOOD = 55.0


def test_cases_out_of_fold_are_those_that_no_training_saw(
    enter: Enter, workspace: Workspace, organs: Store, tracker: Tracker
) -> None:
    def cases(model: Registered) -> list[str]:
        return sorted(unseen(contender(model, workspace=workspace), store=organs).cases)

    zero, one, every = (enter("seen", GOOD, fold=fold) for fold in (0, 1, "all"))
    assert cases(zero) == [*FOLDS[0], *VALIDATION]
    assert cases(one) == [*FOLDS[1], *VALIDATION]
    assert cases(every) == VALIDATION
    both = build([zero.uri, one.uri], name="seen-both", tracker=tracker)
    assert cases(both) == VALIDATION
    # What the weights that a training began with have seen, this model has seen.
    later = enter("later", GOOD, fold=0, initial=pinned(registry.fetch(one.uri, workspace=workspace)))
    assert cases(later) == VALIDATION
    cases_left = {name: organs.cases[name] for name in ("c00", "c08", "c11")}
    moved = dataclasses.replace(organs, cases=cases_left, given_folds=(("c00",), ("c08",)))
    assert unseen(contender(zero, workspace=workspace), store=moved).cases == {"c00", "c11"}


def test_trials_count_where_they_were_compared(
    enter: Enter, workspace: Workspace, organs: Store, tracker: Tracker
) -> None:
    def counted(model: Registered, cases: list[str]) -> int:
        side = contender(model, workspace=workspace)
        return choices(side, store=organs, cases=frozenset(cases), workspace=workspace)

    def swept(name: str, trials: int) -> list[str]:
        parent = tracker.start(name)
        return [tracker.start(f"{name}-{i}", parent=parent, tags={TRIAL_TAG: f"trial-{i}"}) for i in range(trials)]

    alone = enter("choice", GOOD + 1)
    first, second = (
        enter("choice", GOOD, run_id=swept("s", 5)[2]),
        enter("choice", GOOD, fold=1, run_id=swept("t", 3)[0]),
    )
    assert [counted(model, FOLDS[0]) for model in (alone, first, second)] == [1, 5, 1]
    assert counted(first, VALIDATION) == 1, "no trial was compared there"
    folded = enter("choice", GOOD + 2, run_id=tracker.start("fold-0", parent=swept("u", 4)[1]))
    assert counted(folded, FOLDS[0]) == 4, "a fold's run lies under its trial's"
    both = build([first.uri, second.uri], name="choice-both", tracker=tracker)
    assert [counted(both, cases) for cases in (FOLDS[0], [*FOLDS[0], *FOLDS[1]], VALIDATION)] == [5, 8, 1]
