"""What segmenting each case took: seconds by stage, peak memory, and FLARE's areas under the curves of memory and processors.

`performance.csv` lies beside the label maps, a row a case. As in the FLARE challenges (FLARE22, Evaluation) the machine is looked at
every 0.1 s; an area is the sum of a quantity times the seconds since the look before: MB of GPU memory, MB of main memory, and
per cent of the processors' time that was not idle, on the whole machine. Where a quantity cannot be known, its fields are empty.
"""

import csv
import io
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from segsweep.data import storage
from segsweep.learning.memory import resident_bytes

FILE = "performance.csv"
STAGES = ("read", "resample", "network", "export", "write")
COLUMNS = (
    "case", "running_s", *(f"{stage}_s" for stage in STAGES),
    "peak_ram_mb", "peak_gpu_mb", "auc_ram_mb_s", "auc_gpu_mb_s", "auc_cpu_percent_s",
)  # fmt: skip
EVERY = 0.1
MEGABYTE = 2**20
STAT = Path("/proc/stat")

Item = TypeVar("Item")


class Stopwatch:
    """Seconds by stage. A stage within another one stops the outer one's clock; all run in one thread."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stages: list[str] = []
        self._since = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The block counts for this stage."""
        self._charge()
        self._stages.append(name)
        try:
            yield
        finally:
            self._charge()
            self._stages.pop()

    def during(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """The items; the time that making them takes counts for this stage."""
        upcoming = iter(items)
        while True:
            with self.stage(name):
                item = next(upcoming, _END)
            if item is _END:
                return
            yield item  # type: ignore[misc]  (all but the sentinel are items)

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._stages:
            self.seconds[self._stages[-1]] = self.seconds.get(self._stages[-1], 0.0) + now - self._since
        self._since = now


_END = object()


@dataclass(kw_only=True)
class Curve:
    """A quantity that is looked at now and then: its highest value, and its area (value times seconds). None where it is unknown."""

    highest: float | None = None
    area: float | None = None

    def add(self, value: float | None, *, seconds: float) -> None:
        """A value that stood for so many seconds."""
        if value is not None:
            self.highest = value if self.highest is None else max(self.highest, value)
            self.area = (self.area or 0.0) + value * seconds


@dataclass(kw_only=True)
class Usage:
    """Memory in MB and the processors' work in per cent, for the time of a `with` block."""

    ram: Curve = field(default_factory=Curve)
    gpu: Curve = field(default_factory=Curve)
    cpu: Curve = field(default_factory=Curve)

    def __enter__(self) -> "Usage":
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="performance", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        """Look every 0.1 s, and once more at the end."""
        before, ticks = time.perf_counter(), _processor_ticks()
        ended = False
        while not ended:
            ended = self._ended.wait(EVERY)
            now, ticks_now = time.perf_counter(), _processor_ticks()
            self.ram.add(resident_bytes() / MEGABYTE or None, seconds=now - before)
            self.gpu.add(_gpu_megabytes(), seconds=now - before)
            self.cpu.add(_busy_percent(ticks, ticks_now), seconds=now - before)
            before, ticks = now, ticks_now


def record(out: Path, *, case_id: str, seconds: Mapping[str, float], usage: Usage) -> None:
    """Put a case's row into `performance.csv`, in place of one that it had. `seconds` are those of `STAGES`."""
    row = {
        "case": case_id,
        "running_s": sum(seconds.values()),
        **{f"{stage}_s": seconds.get(stage, 0.0) for stage in STAGES},
        "peak_ram_mb": usage.ram.highest,
        "peak_gpu_mb": usage.gpu.highest,
        "auc_ram_mb_s": usage.ram.area,
        "auc_gpu_mb_s": usage.gpu.area,
        "auc_cpu_percent_s": usage.cpu.area,
    }
    texts = {name: f"{value:.3f}" if isinstance(value, float) else value or "" for name, value in row.items()}
    rows = {**_rows(out / FILE), case_id: texts}
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[name] for name in sorted(rows))
    storage.write_bytes(out / FILE, text.getvalue().encode())


def _rows(path: Path) -> dict[str, dict[str, str]]:
    """The rows that are there; none of a file of other columns, which is replaced."""
    if not path.is_file():
        return {}
    with path.open(newline="", errors="replace") as stream:
        reader = csv.DictReader(stream)
        return {row["case"]: row for row in reader} if tuple(reader.fieldnames or ()) == COLUMNS else {}


def _processor_ticks() -> tuple[int, int] | None:
    """Idle and all ticks of all processors since the machine started; None where the system does not tell."""
    try:
        ticks = [int(word) for word in STAT.read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return None
    return ticks[3], sum(ticks)


def _busy_percent(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    if before is None or after is None:
        return None
    idle, whole = after[0] - before[0], after[1] - before[1]
    return 100 - 100 * idle / whole if whole > 0 else 0.0


def _gpu_megabytes() -> float | None:
    """What is taken of the GPU's memory, by whomever, as its driver says; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    free, whole = torch.cuda.mem_get_info()
    return (whole - free) / MEGABYTE
