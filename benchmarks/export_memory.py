"""The highest resident memory within a `with` block, above that before it: what export.py measures on both sides."""

import os
import threading
from pathlib import Path

EVERY = 0.005


class PeakMemory:
    """Looks every 5 ms; `above` is in bytes."""

    def __enter__(self) -> "PeakMemory":
        self._before = self._highest = _resident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def above(self) -> int:
        """The highest so far, less what was there before."""
        return self._highest - self._before

    def _watch(self) -> None:
        while not self._ended.wait(EVERY):
            self._highest = max(self._highest, _resident())


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
