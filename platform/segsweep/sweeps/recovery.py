"""A trial whose process died, alone or with its node, is begun again by Tune and goes on in its folder; one that ended in an error is not.

To Tune both are failures. So a trial that ends in an error of its own says so first, and `Recovery` counts the other deaths.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.tune
from ray.exceptions import RayActorError
from ray.tune import Callback, FailureConfig, TuneError

from segsweep.errors import SegsweepError
from segsweep.sweeps.folds import told

# So often in a row is a trial begun again whose process died before another epoch.
MOST_DEATHS = 2
# Tune begins every trial again until `Recovery` says otherwise.
BEGIN_AGAIN = FailureConfig(max_failures=-1)
FOR_EVER, NEVER = -1, 0
OWN_ERROR = "own_error"


@contextmanager
def own_errors() -> Iterator[None]:
    """Tell Tune of an error in the block before it is raised, unless it says that another process died."""
    try:
        yield
    except RayActorError:
        raise
    except Exception:
        ray.tune.report({OWN_ERROR: True})
        raise


@contextmanager
def own_sentences() -> Iterator[None]:
    """Around Tune's loop: an error of ours in a callback, of which Tune raises the traceback as text, is raised as what it was."""
    try:
        yield
    except TuneError as error:
        found: BaseException | None = error
        while isinstance(found, TuneError):
            found = found.__context__
        if isinstance(found, SegsweepError):
            raise found from None
        raise


class Recovery(Callback):
    """Decides which failed trials Tune begins again. It stands before `Follow`, which keeps what it adds to a trial's log.

    `report` is a `following.Report`.
    """

    def __init__(self, report: Any) -> None:
        self._report = report
        self._deaths: dict[str, int] = {}
        self._counted: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a pickled copy for its own restore, which is never used."""
        return {}

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        result: dict[str, Any],
        **info: Any,  # noqa: ARG002
    ) -> None:
        """An epoch makes good for the deaths before it; after an error there is no other beginning."""
        if OWN_ERROR in result:
            trial.max_failures = NEVER
            self._deaths.pop(trial.trial_id, None)
        elif "epoch" in told(result):
            trial.max_failures = FOR_EVER
            self._deaths[trial.trial_id] = 0

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Its process died. Tune does not count the ones whose node had been drained; neither does this."""
        failures, before = trial.num_failures, self._counted.get(trial.trial_id, 0)
        self._counted[trial.trial_id] = failures
        deaths = self._deaths[trial.trial_id] = self._deaths.get(trial.trial_id, 0) + (failures > before)
        if deaths >= MOST_DEATHS:
            trial.max_failures = NEVER
        words = "its process died, or the node under it; it goes on from its last checkpoint"
        self._report(Path(trial.config["folder"]).name, 0, 0, words)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Say what became of one that was not begun again."""
        deaths = self._deaths.get(trial.trial_id, 0)
        if deaths and trial.error_file:
            with Path(trial.error_file).open("a") as log:
                log.write(
                    f"its process died {deaths + 1} times without an epoch in between; see what ended it in the logs of Ray, "
                    "then give the same command again\n"
                )
