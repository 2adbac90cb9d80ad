"""Cases whose voxels lie elsewhere, fetched before the batches that draw from them, in the order of these batches."""

import threading
from collections.abc import Sequence

from segsweep.learning.patches import Distant, TrainingCase


class Arrivals:
    """What the batches under way need, by their numbers. Its methods may be called from several threads."""

    def __init__(self) -> None:
        self._needs: dict[int, list[Distant]] = {}
        self._changed = threading.Condition()
        self._closed = False

    def fetch(self, cases: Sequence[TrainingCase], *, number: int) -> None:
        """Fetch what a batch draws from, and wait for earlier ones to end where there is no room beside what they need.

        The first of all does not wait: where even its own cases have no room together, each comes when it is read.
        """
        # In the order of their draws, each once.
        needed = list(dict.fromkeys(case.distant for case in cases if case.distant))
        with self._changed:
            self._needs.setdefault(number, []).extend(needed)
        for one in needed:
            while not one.fetch(self._spared(number)):
                with self._changed:
                    if self._closed or min(self._needs, default=number) >= number:
                        return
                    self._changed.wait()

    def done(self, number: int) -> None:
        """A batch is made, or never will be."""
        with self._changed:
            self._needs.pop(number, None)
            self._changed.notify_all()

    def close(self) -> None:
        """No batch is wanted any more, and nobody waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _spared(self, number: int) -> set[str]:
        """Keys of what this batch and earlier ones need."""
        with self._changed:
            return {one.key for other, needs in self._needs.items() if other <= number for one in needs}
