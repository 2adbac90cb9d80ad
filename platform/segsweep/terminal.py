"""What people see: bars while something long runs (plain lines where there is no terminal), and complaints on stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

# Without a terminal, one line this often is enough (seconds).
LINE_EVERY = 10.0
# What is told of a trial in a line of its own, at a terminal too, begins with one of these.
EVENTS = ("starting", "ended", "failed")

console = Console(highlight=False, soft_wrap=True)


def say(text: str, *, style: str = "") -> None:
    """Print a text as it is: paths and messages may hold square brackets, which are no markup, and names no commands."""
    console.print(_harmless(text), style=style, markup=False)


def counted(number: int, *, noun: str) -> str:
    """`1 case`, `2 cases`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def complain(*sentences: str) -> None:
    """Each sentence as one line on stderr, whatever line breaks it holds; no name in it can move the cursor or colour the terminal."""
    for sentence in sentences:
        print(f"segsweep: {_harmless(' '.join(sentence.split()))}", file=sys.stderr)


def _harmless(text: str) -> str:
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


class Bars:
    """Named bars. `count` suits work of so many pieces; `trial` also prints what a training has to say."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._printed: dict[str, float] = {}
        self._begun: dict[str, tuple[float, int]] = {}

    def count(self, label: str, done: int, total: int) -> None:
        """So many pieces of the labelled work are done."""
        self._update(label, done, total, "")

    def pieces(self, label: str) -> Callable[[int, int], None]:
        """`count` with its label: a function of (pieces done, pieces in all)."""
        return lambda done, total: self.count(label, done, total)

    def trial(self, label: str, done: int, total: int, words: str) -> None:
        """A training has done so many epochs; `words` is what it measured or what happened to it."""
        if words.startswith(EVENTS):
            self._print(f"  {label}  {words}")
            self._printed[label] = time.monotonic()
        self._update(label, done, total, f"{words}{self._pace(label, done, total)}")

    def _pace(self, label: str, done: int, total: int) -> str:
        """How long a training's epochs take, and when it will have done all, from the second that is seen of it."""
        now = time.monotonic()
        began, first = self._begun.setdefault(label, (now, done)) if done else (now, done)
        if not first < done < total:
            return ""
        seconds = (now - began) / (done - first)
        end = datetime.now().astimezone() + timedelta(seconds=seconds * (total - done))
        return f", {seconds:.1f} s an epoch, ends about {end:%H:%M}"

    def _update(self, label: str, done: int, total: int, words: str) -> None:
        if self._progress.console.is_terminal:
            if label not in self._tasks:
                self._tasks[label] = self._progress.add_task(label, total=total or None, words="")
            self._progress.update(self._tasks[label], completed=done, total=total or None, words=words)
        elif done == total or time.monotonic() - self._printed.get(label, 0.0) >= LINE_EVERY:
            self._printed[label] = time.monotonic()
            if not words.startswith(EVENTS):
                self._print(f"  {label}  {done}/{total}  {words}".rstrip())

    def _print(self, line: str) -> None:
        self._progress.console.print(line, markup=False)


@contextmanager
def bars() -> Iterator[Bars]:
    """Bars for the time of a `with` block."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[words]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bars(progress)
