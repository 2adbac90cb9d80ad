"""What is told to MLflow is first written to this machine's disk and sent from there: no training ever waits for a server.

Entries go out in their order, from one thread, with the time at which they were made. The folder `outbox` of the workspace has one
file a driver, deleted when all of it was sent; what a dead driver left, the next one sends before its own.
"""

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mlflow.exceptions import MlflowException

from segsweep.errors import ModelError, ResourceError
from segsweep.models.databases import public
from segsweep.models.outbox_file import SUFFIX, OutboxFile
from segsweep.models.tracking import LOCKED_OUT, Status, Tracker

# Seconds between two tries while the server is away: the first wait, doubled up to the last.
FIRST_WAIT, LONGEST_WAIT = 2.0, 60.0
# An entry that failed this often (after a quarter of an hour) while the server answers other questions is refused.
MOST_TRIES = 20
# Tries in a row, without waits, of someone who waits for all to be sent.
HURRIED_TRIES = 2
OPERATIONS = ("metrics", "table", "tag", "inputs", "file", "picture", "finish")

# MLflow's word for what a proxy also says while its server starts.
NO_SUCH_PAGE = "ENDPOINT_NOT_FOUND"
# HTTP: what may pass (timeout, too many requests, cancelled) though it begins with a 4.
LATER = (408, 429, 499)

Answer = Literal["refused", "locked out", "away"]
# A run is named by its tags; MLflow's own id is asked for when an entry is sent.
Tags = Mapping[str, str]


class Outbox:
    """The tracker's operations, as entries that are on the disk when a call returns. Begin a run first, `close` at the end.

    `say` is told, from the thread that sends, when the server goes and comes back, and of an entry that it will never take.
    """

    def __init__(self, tracker: Tracker, *, name: str, say: Callable[[str], None]) -> None:
        self.tracker, self._say = tracker, say
        folder = tracker.workspace.outbox
        folder.mkdir(parents=True, exist_ok=True)
        self._earlier = sorted(folder.glob(f"*{SUFFIX}"))
        self._server = public(tracker.workspace.tracking_uri)
        header = {"experiment": tracker.experiment, "server": self._server}
        slug = re.sub(r"[^\w-]", "_", name)[:100]
        self._own = OutboxFile.create(folder / f"{time.time_ns()}-{slug}{SUFFIX}", header=header)
        self._trackers = {tracker.experiment: tracker}
        self._run_ids: dict[tuple[str, ...], str] = {}
        # Guards the own file and all that follows.
        self._changed = threading.Condition()
        self._hurry, self._trouble = 0, ""
        self._closing = self._given_up = self._ended = False
        threading.Thread(target=self._work, name="outbox", daemon=True).start()

    def begin(
        self, run: Tags, *, name: str, parent: Tags | None = None, params: Mapping[str, Any] | None = None
    ) -> None:
        """Begin a run, or go on with the one of these tags. Its parent was begun before it."""
        self._append(
            {"do": "begin", "run": run, "name": name, "parent": parent, "params": params, "started_ms": _now()}
        )

    def metrics(self, run: Tags, values: Mapping[str, float], *, step: int) -> None:
        """Log one step, at this moment."""
        numbers = {key: float(value) for key, value in values.items()}
        self._append({"do": "metrics", "run": run, "values": numbers, "step": step, "timestamp_ms": _now()})

    def table(self, run: Tags, rows: Sequence[Mapping[str, Any]], *, path: str) -> None:
        """Store rows as the JSON table `path`."""
        self._append({"do": "table", "run": run, "rows": rows, "path": path})

    def tag(self, run: Tags, values: Mapping[str, Any]) -> None:
        """Set tags."""
        self._append({"do": "tag", "run": run, "values": values})

    def inputs(self, run: Tags, datasets: Sequence[Mapping[str, Any]]) -> None:
        """Say what a run learned from."""
        self._append({"do": "inputs", "run": run, "datasets": datasets})

    def file(self, run: Tags, text: str, *, path: str) -> None:
        """Store a text as the artifact `path`."""
        self._append({"do": "file", "run": run, "text": text, "path": path})

    def picture(self, run: Tags, content: bytes, *, path: str) -> None:
        """Store bytes as the artifact `path`; the entry holds them, so a file may go."""
        self._append({"do": "picture", "run": run, "encoded": base64.b64encode(content).decode(), "path": path})

    def finish(self, run: Tags, *, status: Status = "FINISHED") -> None:
        """End a run at this moment."""
        self._append({"do": "finish", "run": run, "status": status, "ended_ms": _now()})

    def flush(self, *, patience: float = 600.0) -> None:
        """Wait until all is sent: so many seconds, and not at all on a server that is away.

        Raises ModelError, one sentence that says that nothing is lost.
        """
        with self._changed:
            self._hurry_up()
            self._changed.wait_for(lambda: not self._own.waiting or not self._hurry or self._ended, timeout=patience)
            self._hurry = 0
            if self._own.waiting:
                raise ModelError(
                    f"{self._own.waiting} entries for MLflow wait in {self._own.path} ({self._trouble or 'it is slow'}); all results "
                    "are kept: see that its server runs and MLFLOW_TRACKING_URI is right, then give the same command again"
                )

    def close(self, *, patience: float = 30.0) -> None:
        """Send what is left, as long as `flush` would wait; what waits after that is said, and sent by the next driver."""
        with self._changed:
            self._closing = True
            self._hurry_up()
            self._changed.wait_for(lambda: self._ended, timeout=patience)
            self._given_up = True
            waiting = self._own.waiting
            if self._ended:  # else the thread waits for an answer still, and the file is let go of as the process ends
                self._own.close()
        if waiting:
            self._say(f"failed: {waiting} entries wait in {self._own.path}; the next sweep or training sends them")

    def _append(self, entry: Mapping[str, Any]) -> None:
        with self._changed:
            try:
                self._own.append(entry)
            except OSError as error:
                raise ResourceError(
                    f"{self._own.path}: an entry for MLflow cannot be written ({error.strerror}); "
                    "make room on this disk, then give the same command again"
                ) from error
            self._changed.notify_all()

    def _hurry_up(self) -> None:
        self._hurry = HURRIED_TRIES
        self._changed.notify_all()

    def _work(self) -> None:
        """The thread: what earlier drivers left, then this one's entries, until `close`."""
        try:
            for path in self._earlier:
                self._send_earlier(path)
            while self._has_more() and self._send_all(self._own):
                pass
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _send_earlier(self, path: Path) -> None:
        try:
            left = OutboxFile.left(path)
        except ModelError as error:
            self._say(f"failed: {error}")
            return
        if left is None:
            return
        server = left.header["server"]
        if server == self._server:
            self._send_all(left)
        elif left.waiting:
            self._say(
                f"failed: {left.waiting} entries of an earlier driver wait in {path} for MLFLOW_TRACKING_URI={server}"
            )
        left.close()

    def _has_more(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._own.waiting or self._closing)
            return self._own.waiting > 0

    def _send_all(self, file: OutboxFile) -> bool:
        """Send until nothing waits, and then True. False when `close` gives up, or the server locks an earlier driver's user out."""
        tries = 0
        while file.waiting and not self._given_up:
            try:
                self._send(json.loads(file.first()), experiment=file.header["experiment"])
            except Exception as error:  # servers, databases and artifact stores each raise their own
                tries += 1
                reason, answer = _reason(error), _answer(error)
                if answer != "refused" and not (tries >= MOST_TRIES and self._answers()):
                    self._complain(answer, reason=reason)
                    if (answer == "locked out" and file is not self._own) or not self._wait(tries=tries):
                        return False
                    continue
                self._refuse(file, reason=reason)
            tries = 0
            self._took(file)
        return not file.waiting

    def _send(self, entry: dict[str, Any], *, experiment: str) -> None:
        if experiment not in self._trackers:
            self._trackers[experiment] = Tracker(self.tracker.workspace, experiment=experiment)
        tracker, run = self._trackers[experiment], entry["run"]
        fields = {key: value for key, value in entry.items() if key not in ("do", "run", "refused")}
        if entry["do"] == "begin":
            parent = fields.pop("parent")
            above = self._run_id(parent, tracker=tracker) if parent else None
            self._run_ids[_key(run, experiment=experiment)] = tracker.begin(**fields, tags=run, parent=above)
        elif entry["do"] in OPERATIONS:
            getattr(tracker, entry["do"])(self._run_id(run, tracker=tracker), **fields)
        else:
            raise ValueError(f"no operation {entry['do']!r}")

    def _run_id(self, run: Tags, *, tracker: Tracker) -> str:
        key = _key(run, experiment=tracker.experiment)
        if key not in self._run_ids:
            found = tracker.find(tags=run)
            if found is None:
                raise LookupError(f"no run has the tags {dict(run)}")
            self._run_ids[key] = found
        return self._run_ids[key]

    def _answers(self) -> bool:
        """Whether the server is well apart from one entry."""
        try:
            self.tracker.client.get_experiment(self.tracker.experiment_id)
        except Exception:
            return False
        return True

    def _refuse(self, file: OutboxFile, *, reason: str) -> None:
        if not file.refused.exists():
            self._say(f"failed: an entry cannot be stored ({reason}); such entries are put aside in {file.refused}")
        file.set_first_aside(reason=reason)
        self._run_ids.clear()

    def _wait(self, *, tries: int) -> bool:
        """Until the next try; False when there is none."""
        with self._changed:
            self._hurry = max(self._hurry - 1, 0)
            self._changed.notify_all()
            if self._closing and not self._hurry:
                return False
            longer = min(FIRST_WAIT * 2.0 ** min(tries - 1, 10), LONGEST_WAIT)
            self._changed.wait_for(lambda: self._hurry, timeout=longer)
            return True

    def _complain(self, answer: Answer, *, reason: str) -> None:
        if not self._trouble:
            what = "the server refuses the name or password" if answer == "locked out" else "the server is away"
            self._say(f"failed, entries wait in {self._own.path.parent} as {what}: {reason}")
        self._trouble = reason

    def _took(self, file: OutboxFile) -> None:
        if self._trouble:
            self._say("starting again: the server takes entries")
        with self._changed:
            self._trouble = ""
            file.drop_first()
            self._changed.notify_all()


def _answer(error: Exception) -> Answer:
    """What a failure says about the entry: never, not with this password, or perhaps later."""
    cause = error.__cause__ or error
    if isinstance(cause, MlflowException):
        status = 0 if cause.error_code == NO_SUCH_PAGE else cause.get_http_status_code()
    else:  # an artifact's upload
        status = getattr(getattr(cause, "response", None), "status_code", 0)
    if status in LOCKED_OUT:
        return "locked out"
    ours = isinstance(cause, ValueError | TypeError | LookupError | ModelError) and not isinstance(cause, OSError)
    return "refused" if ours or (400 <= status < 500 and status not in LATER) else "away"


def _reason(error: Exception) -> str:
    return " ".join(public(str(error.__cause__ or error) or repr(error)).split())


def _key(run: Tags, *, experiment: str) -> tuple[str, ...]:
    return (experiment, *(f"{key}={value}" for key, value in sorted(run.items())))


def _now() -> int:
    return int(time.time() * 1000)
