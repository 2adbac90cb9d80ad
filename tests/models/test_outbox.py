"""Whatever the tracking server does, an entry is written at once, sent in its order with its own time, and never lost or sent twice."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

from segsweep.errors import ModelError
from segsweep.models import outbox as module
from segsweep.models.outbox import Outbox
from segsweep.models.outbox_file import OutboxFile
from segsweep.models.tracking import PARENT_TAG, Tracker
from segsweep.workspace import Workspace

SWEEP, TRIAL = {"kind": "sweep"}, {"sweep": "toy", "trial": "trial-0000"}
TRAINING = {
    "name": "toy, fold 0: training", "digest": "d" * 64, "context": "training fold 0", "source": "stores/toy", "profile": {"cases": 8},
}  # fmt: skip


def nothing(_body: dict[str, Any]) -> int:
    """No request is refused."""
    return 0


class Server(ThreadingHTTPServer):
    """As much of MLflow's REST interface as an outbox asks for. `well` lets requests pass, `status` is what others answer."""

    daemon_threads = True

    def __init__(self, *, port: int = 0, runs: list[dict[str, Any]] | None = None) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.runs: list[dict[str, Any]] = [] if runs is None else runs
        self.well, self.asked = threading.Event(), threading.Event()
        self.well.set()
        self.refuses: Callable[[dict[str, Any]], int] = nothing
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def points(self) -> list[tuple[int, float]]:
        """Step and value of every metric that came, in its order, with those that came twice."""
        return [(point["step"], point["value"]) for run in self.runs for point in run["metrics"]]

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        asked = urlparse(self.path).path
        if "experiments" in asked:
            self.answer({"experiment": {"experiment_id": "1", "name": "toy", "lifecycle_stage": "active"}})
        else:
            self.answer({"run": self.shown(self.run(self.path.partition("run_id=")[2].partition("&")[0]))})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.set()
        self.server.well.wait()
        refused = self.server.refuses(body)
        if refused:
            self.answer({"error_code": str(refused), "message": "not this"}, status=refused)
            return
        match self.path.rpartition("/")[2]:
            case "search":
                self.answer({"runs": [self.shown(run) for run in self.server.runs if self.matches(run, body)]})
            case "create":
                tags = {tag["key"]: tag["value"] for tag in body["tags"]}
                self.server.runs.append(
                    {"id": f"r{len(self.server.runs)}", "tags": tags, "metrics": [], "status": "RUNNING"}
                )
                self.answer({"run": self.shown(self.server.runs[-1])})
            case "log-batch":
                self.run(body["run_id"])["metrics"] += body.get("metrics", [])
                self.answer({})
            case _:
                self.run(body["run_id"])["status"] = body["status"]
                self.answer({"run_info": {}})

    def run(self, run_id: str) -> dict[str, Any]:
        return next(run for run in self.server.runs if run["id"] == run_id)

    def matches(self, run: dict[str, Any], body: dict[str, Any]) -> bool:
        wanted = dict(re.findall(r"tags\.`(.*?)` = '(.*?)'", body["filter"]))
        return wanted.items() <= run["tags"].items()

    def shown(self, run: dict[str, Any]) -> dict[str, Any]:
        info = {"run_id": run["id"], "run_uuid": run["id"], "status": run["status"], "experiment_id": "1"}
        return {"info": info, "data": {"tags": [{"key": k, "value": v} for k, v in run["tags"].items()]}}

    def answer(self, document: dict[str, Any], *, status: int = 200) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing to standard error."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    found = Server()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{found.server_port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)
    yield found
    found.well.set()
    found.stop()


@pytest.fixture
def remote(server: Server, tmp_path: Path) -> Tracker:  # noqa: ARG001  it is what answers
    """A tracker on the stand-in server."""
    return Tracker(Workspace(root=tmp_path), experiment="toy")


def waiting(folder: Path) -> list[str]:
    return sorted(path.name.partition("-")[2] for path in folder.iterdir())


def test_all_kinds_of_entries_arrive_in_order_with_their_own_time(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = count(1000)
    monkeypatch.setattr(module, "_now", lambda: next(clock))
    outbox = Outbox(tracker, name="kinds", say=pytest.fail)
    outbox.begin(SWEEP, name="sweep")
    outbox.begin(TRIAL, name="trial-0000", parent=SWEEP, params={"patch_size": (8, 8, 8)})
    outbox.metrics(TRIAL, {"loss": 2.0, "dice": float("nan")}, step=1)
    outbox.metrics(TRIAL, {"loss": 1.0}, step=2)
    outbox.table(TRIAL, [{"structure": "Heart", "dice": 0.5}], path="dice.json")
    outbox.tag(TRIAL, {"a": "b"})
    for _ in range(2):  # as when a driver died before it could note that the first was sent
        outbox.inputs(TRIAL, [TRAINING, {**TRAINING, "name": "toy, fold 0: held out", "context": "validation fold 0"}])
    outbox.file(TRIAL, "text", path="a.txt")
    outbox.picture(TRIAL, b"\x89PNG", path="overlays/c01.png")
    outbox.finish(TRIAL, status="FAILED")
    outbox.close()
    run_id = tracker.find(tags=TRIAL)
    assert run_id is not None
    run = tracker.client.get_run(run_id)
    assert (run.info.run_name, run.info.status) == ("trial-0000", "FAILED")
    assert (run.info.start_time, run.info.end_time) == (1001, 1004)
    history = tracker.client.get_metric_history(run_id, "loss")
    assert [(point.step, point.value, point.timestamp) for point in history] == [(1, 2.0, 1002), (2, 1.0, 1003)]
    assert run.data.params == {"patch_size": "[8, 8, 8]"}
    assert run.data.tags[PARENT_TAG] == tracker.find(tags=SWEEP)
    assert (run.data.tags["a"], run.data.tags["segsweep.non_finite"]) == ("b", "step 1: dice")
    assert run.inputs is not None
    inputs = {found.dataset.name: (found.dataset, found.tags) for found in run.inputs.dataset_inputs}
    assert len(inputs) == len(run.inputs.dataset_inputs) == 2
    dataset, (context,) = inputs["toy, fold 0: training"]
    assert (dataset.digest, context.key, context.value) == ("d" * 36, "mlflow.data.context", "training fold 0")
    assert (json.loads(dataset.source), json.loads(dataset.profile or "")) == ({"uri": "stores/toy"}, {"cases": 8})
    assert {file.path for file in tracker.client.list_artifacts(run_id)} == {"a.txt", "dice.json", "overlays"}
    assert (tracker.workspace.artifacts / run_id / "artifacts" / "overlays" / "c01.png").read_bytes() == b"\x89PNG"
    assert waiting(tracker.workspace.outbox) == []


def test_a_run_that_was_cut_off_is_completed_and_not_made_again(tracker: Tracker) -> None:
    tags = {"sweep": "cut", "trial": "0"}
    first = tracker.start("cut", tags=tags, params={"epochs": 3})
    tracker.finish(first, status="KILLED")
    outbox = Outbox(tracker, name="cut", say=pytest.fail)
    for _ in range(2):
        outbox.begin(tags, name="cut", params={"epochs": 4, "loss": "dice"})
    outbox.flush()
    assert tracker.find(tags=tags) == first
    run = tracker.client.get_run(first)
    assert (run.data.params, run.info.status) == ({"epochs": "3", "loss": "dice"}, "RUNNING")
    outbox.close()


def test_nothing_is_lost_on_a_server_that_goes_and_comes_back(server: Server, remote: Tracker) -> None:
    said: list[str] = []
    lost = threading.Event()

    def say(words: str) -> None:
        said.append(words)
        lost.set()

    server.stop()
    outbox = Outbox(remote, name="toy", say=say)
    outbox.begin(TRIAL, name="trial-0000")
    for step in range(20):
        outbox.metrics(TRIAL, {"loss": float(step)}, step=step)
    assert lost.wait(10)
    with pytest.raises(ModelError, match=r"21 entries for MLflow wait in .*toy\.jsonl .*all results are kept: .*again"):
        outbox.flush()
    again = Server(port=server.server_port, runs=server.runs)
    outbox.flush()
    outbox.close()
    again.stop()
    assert server.points == [(step, float(step)) for step in range(20)]
    assert [words.partition(":")[0] for words in said] == [
        f"failed, entries wait in {remote.workspace.outbox} as the server is away",
        "starting again",
    ]


def test_appending_never_waits_for_the_server(server: Server, remote: Tracker) -> None:
    server.well.clear()
    outbox = Outbox(remote, name="toy", say=pytest.fail)
    outbox.begin(TRIAL, name="trial-0000")
    assert server.asked.wait(10), "the thread stands in a question that is not answered"
    for step in range(50):
        outbox.metrics(TRIAL, {"loss": 0.0}, step=step)
    assert server.runs == []
    (path,) = remote.workspace.outbox.iterdir()
    assert path.read_bytes().count(b'"metrics"') == 50
    server.well.set()
    outbox.flush()
    outbox.close()
    assert [step for step, _ in server.points] == list(range(50))


def test_next_driver_sends_the_rest_before_its_own_and_nothing_twice(server: Server, remote: Tracker) -> None:
    said: list[str] = []
    server.refuses = lambda body: 503 if any(point["step"] == 2 for point in body.get("metrics", [])) else 0
    first = Outbox(remote, name="toy", say=said.append)
    first.begin(TRIAL, name="trial-0000")
    for step in range(4):
        first.metrics(TRIAL, {"loss": 0.0}, step=step)
    first.close()
    assert server.points == [(0, 0.0), (1, 0.0)]
    assert re.fullmatch(r"failed: 2 entries wait in .*-toy\.jsonl; the next sweep or training sends them", said[-1])
    server.refuses = nothing
    second = Outbox(remote, name="other", say=pytest.fail)
    second.metrics(TRIAL, {"loss": 0.0}, step=4)
    second.close()
    assert [step for step, _ in server.points] == [0, 1, 2, 3, 4]
    assert len(server.runs) == 1
    assert waiting(remote.workspace.outbox) == []


@pytest.mark.parametrize(("status", "tries", "reason"), [(400, 20, "not this"), (500, 3, "too many 500")])
def test_entry_that_will_never_be_taken_is_put_aside(
    status: int, tries: int, reason: str, server: Server, remote: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_TRIES", tries)
    said: list[str] = []
    finished = threading.Event()

    def refuses(body: dict[str, Any]) -> int:
        if body.get("status") == "FINISHED":
            finished.set()
        return status if any(point["step"] < 2 for point in body.get("metrics", [])) else 0

    server.refuses = refuses
    outbox = Outbox(remote, name="toy", say=said.append)
    outbox.begin(TRIAL, name="trial-0000")
    for step in range(4):
        outbox.metrics(TRIAL, {"loss": 0.0}, step=step)
    outbox.metrics({"no": "such run"}, {"loss": 0.0}, step=9)
    outbox.finish(TRIAL)
    assert finished.wait(10)
    outbox.close()
    assert server.points == [(2, 0.0), (3, 0.0)]
    assert server.runs[0]["status"] == "FINISHED"
    assert waiting(remote.workspace.outbox) == ["toy.refused"]
    (refused,) = remote.workspace.outbox.iterdir()
    entries = [json.loads(line) for line in refused.read_text().splitlines()[2:]]
    assert [entry["step"] for entry in entries] == [0, 1, 9]
    assert reason in entries[0]["refused"]
    (words,) = [words for words in said if "put aside" in words]
    assert words.endswith(f"put aside in {refused}")


def test_wrong_password_is_said_once_and_stops_nothing(server: Server, remote: Tracker) -> None:
    said: list[str] = []
    asked = threading.Semaphore(0)

    def locked(_body: dict[str, Any]) -> int:
        asked.release()
        return 401

    server.refuses = locked
    outbox = Outbox(remote, name="toy", say=said.append)
    outbox.begin(TRIAL, name="trial-0000")
    assert all(asked.acquire(timeout=10) for _ in range(3))
    outbox.metrics(TRIAL, {"loss": 0.0}, step=0)
    with pytest.raises(ModelError, match="2 entries for MLflow wait"):
        outbox.flush()
    assert len(said) == 1
    assert "the server refuses the name or password" in said[0]
    server.refuses = nothing
    outbox.flush()
    outbox.close()
    assert server.points == [(0, 0.0)]


def test_entries_for_elsewhere_or_of_another_user_hold_nobody_up(server: Server, remote: Tracker) -> None:
    folder = remote.workspace.outbox
    folder.mkdir()
    entry = {"do": "metrics", "run": {"whose": "theirs"}, "values": {"loss": 0.0}, "step": 0, "timestamp_ms": 1}
    for name, address in (("1-elsewhere", "http://there"), ("2-theirs", f"http://127.0.0.1:{server.server_port}")):
        left = OutboxFile.create(folder / f"{name}.jsonl", header={"experiment": "toy", "server": address})
        left.append(entry)
        left.close()
    (folder / "3-damaged.jsonl").write_text("{}")
    server.refuses = lambda body: 403 if "theirs" in body.get("filter", "") else 0
    said: list[str] = []
    outbox = Outbox(remote, name="toy", say=said.append)
    outbox.begin(TRIAL, name="trial-0000")
    outbox.metrics(TRIAL, {"loss": 0.0}, step=0)
    outbox.close()
    assert server.points == [(0, 0.0)]
    assert waiting(folder) == ["damaged.jsonl", "elsewhere.jsonl", "theirs.jsonl"]
    assert "for MLFLOW_TRACKING_URI=http://there" in said[0]
    assert "no file of entries for MLflow" in said[2]
