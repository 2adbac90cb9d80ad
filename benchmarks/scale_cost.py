"""What work cost the process that did it: seconds, CPU seconds, memory; and the figures that `scale.py` gives."""

import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One thing that was measured `at` so many trials or cases. `unit` says of what `value` is."""

    what: str
    at: int
    value: float
    unit: str


@dataclass(kw_only=True)
class Figures:
    """All that was measured, said as it comes."""

    found: list[Figure] = field(default_factory=list)

    def add(self, what: str, *, at: int, value: float, unit: str) -> None:
        """Keep a figure and print it."""
        self.found.append(Figure(what=what, at=at, value=value, unit=unit))
        print(f"{at:>8}  {what:58} {value:14,.3f} {unit}", flush=True)

    @contextmanager
    def cost(self, what: str, *, at: int) -> Iterator[None]:
        """Measure the work of a block. CPU seconds are those of all threads of this process, memory is what it holds more than before."""
        before, began, held = time.process_time(), time.monotonic(), megabytes()
        yield
        self.add(what, at=at, value=time.monotonic() - began, unit="s")
        self.add(f"{what}, CPU", at=at, value=time.process_time() - before, unit="s")
        self.add(f"{what}, memory", at=at, value=megabytes() - held, unit="MB")

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps([asdict(one) for one in self.found], indent=1))


def megabytes() -> float:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def peak_megabytes() -> float:
    """The most that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
