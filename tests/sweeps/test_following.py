"""MLflow may go away: trials go on, nothing is lost or stored twice, and runs of interrupted trials are opened again."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segsweep.data import storage
from segsweep.models.outbox import Outbox
from segsweep.models.tracking import PARENT_TAG, Tracker
from segsweep.sweeps.following import ERROR, Follow, failure
from segsweep.sweeps.lineage import Lineage
from segsweep.sweeps.record import add_epoch
from segsweep.sweeps.run_folder import LOGGED
from segsweep.sweeps.shortage import note
from segsweep.workspace import Workspace


class Flaky(Tracker):
    """A tracker whose server can be away; `missed` is set when it was."""

    away, missed = False, threading.Event()

    def metrics(self, run_id: str, values: Mapping[str, float], *, step: int, timestamp_ms: int | None = None) -> None:
        if self.away:
            self.missed.set()
            raise ConnectionError("server does not answer")
        super().metrics(run_id, values, step=step, timestamp_ms=timestamp_ms)


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Flaky:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return Flaky(Workspace(root=tmp_path_factory.mktemp("workspace")), experiment="toy")


@pytest.fixture
def said() -> list[str]:
    """All that was reported."""
    return []


@pytest.fixture
def box(tracker: Flaky, said: list[str]) -> Iterator[Outbox]:
    with closing(Outbox(tracker, name="toy", say=said.append)) as found:
        yield found


def trial(folder: Path) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    return SimpleNamespace(config={"folder": str(folder), "loss": "dice_ce"}, error_file=None)


def leave_record(folder: Path) -> None:
    """What a training leaves for people, in short."""
    (folder / "record" / "overlays").mkdir(parents=True)
    (folder / "record" / "run.json").write_text("{}")
    (folder / "record" / "overlays" / "c01.png").write_bytes(b"PNG")
    add_epoch(folder, {"epoch": 1, "loss": 3.0})
    (folder / "validation.json").write_text('{"c01": {"Heart": 0.5}}')


def epoch(number: int, *, loss: float) -> dict[str, Any]:
    return {"epoch": number, "epochs": 3, "loss": loss, "status": "training"}


def test_outage_loses_nothing_and_each_point_is_stored_once(
    tracker: Flaky, box: Outbox, said: list[str], tmp_path: Path
) -> None:
    box.begin({"kind": "sweep"}, name="sweep")
    lineage = Lineage(
        tags={"mlflow.source.name": "segsweep tune toy"},
        inputs={
            0: [{"name": "toy", "digest": "abc", "context": "training fold 0", "source": "stores/toy", "profile": {}}]
        },
    )
    follow = Follow(
        box, parent={"kind": "sweep"}, sweep="outage", report=lambda *words: said.append(words[3]), lineage=lineage
    )
    one = trial(tmp_path / "trial-0000")
    follow.on_trial_start(0, [], one)
    follow.on_trial_result(0, [], one, {**epoch(1, loss=3.0), "system/cpu_percent": 150.0, "date": 7})
    follow.on_trial_result(0, [], one, {"waiting": 2, "since": datetime(2026, 1, 2, 14, 3).timestamp()})
    assert said[-1] == "waiting for room for 2 workers since 14:03"
    follow.on_trial_result(0, [], one, {"damaged": "starting from its first epoch: found epoch-00002 damaged"})
    assert said[-1] == "starting from its first epoch: found epoch-00002 damaged"
    tracker.away = True
    follow.on_trial_result(0, [], one, epoch(2, loss=2.0))
    follow.on_trial_result(0, [], one, epoch(3, loss=1.0))
    assert tracker.missed.wait(10)
    tracker.away = False
    result = {
        **epoch(3, loss=1.0), "status": "finished", "dice": 0.5, "dice/Heart": 0.5, "seconds_per_case": 7.0, "digest": "abc",
    }  # fmt: skip
    leave_record(tmp_path / "trial-0000")
    follow.on_trial_result(0, [], one, result)
    (tmp_path / "trial-0000" / "result.json").write_text(json.dumps(result))
    follow.on_trial_complete(0, [], one)
    follow.close()
    box.flush()
    run_id = follow.run_of("trial-0000")
    assert run_id is not None
    history = tracker.client.get_metric_history(run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    run = tracker.client.get_run(run_id)
    assert run.data.metrics == {"loss": 1.0, "dice": 0.5, "seconds_per_case": 7.0, "system/cpu_percent": 150.0}
    assert run.data.tags["mlflow.source.name"] == "segsweep tune toy"
    assert run.inputs is not None
    (learned,) = run.inputs.dataset_inputs
    assert (learned.dataset.name, learned.tags[0].value) == ("toy", "training fold 0")
    place = tracker.workspace.artifacts / run_id / "artifacts"
    assert {path.relative_to(place).as_posix() for path in place.rglob("*.*")} == {
        "run.json", "curves.svg", "overlays/c01.png", "dice_per_structure.json",
    }  # fmt: skip
    assert run.data.tags["mlflow.note.content"].startswith("**Dice 0.500** on 1 case held out")
    assert "outlined in orange" in run.data.tags["mlflow.note.content"]
    assert run.data.tags[PARENT_TAG] == tracker.find(tags={"kind": "sweep"})
    assert run.info.status == "FINISHED"
    assert [words for words in said if "does not answer" in words]


def test_interrupted_run_is_killed_and_opened_again(tracker: Flaky, box: Outbox, tmp_path: Path) -> None:
    runs = []
    for _ in range(2):
        follow = Follow(box, parent=None, sweep="interrupted", report=lambda *_: None)
        follow.on_trial_start(0, [], trial(tmp_path / "trial-0000"))
        box.flush()
        run_id = follow.run_of("trial-0000")
        assert run_id is not None
        assert tracker.client.get_run(run_id).info.status == "RUNNING"
        follow.close()
        box.flush()
        assert tracker.client.get_run(run_id).info.status == "KILLED"
        runs.append(run_id)
    assert runs[0] == runs[1]


def test_what_a_dead_driver_could_not_say_is_said_once(tracker: Flaky, box: Outbox, tmp_path: Path) -> None:
    result = {**epoch(3, loss=1.0), "status": "finished", "dice": 0.5, "dice/Heart": 0.5, "digest": "abc"}
    ended, failed, refused = (tmp_path / f"trial-000{number}" for number in range(3))
    for folder in (ended, failed, refused):
        folder.mkdir()
    (ended / "result.json").write_text(json.dumps(result))
    dead, after = (Follow(box, parent=None, sweep="dead", report=lambda *_: None) for _ in range(2))
    dead.on_trial_start(0, [], trial(ended))
    dead.on_trial_start(0, [], trial(failed))
    for _ in range(2):
        after.settle(ended, params={"loss": "dice_ce"})
        after.settle(failed, params={"loss": "dice_ce"})
        after.settle(refused, params={})
    after.close()
    box.flush()
    runs = {name: after.run_of(name) for name in ("trial-0000", "trial-0001", "trial-0002")}
    assert runs["trial-0002"] is None
    statuses = [tracker.client.get_run(run).info.status for run in runs.values() if run]
    assert statuses == ["FINISHED", "FAILED"]
    history = tracker.client.get_metric_history(str(runs["trial-0000"]), "dice")
    assert [(point.step, point.value) for point in history] == [(3, 0.5)]
    again = Follow(box, parent=None, sweep="dead", report=lambda *_: None)
    again.on_trial_start(0, [], trial(ended))  # whoever begins it anew has to end it anew
    again.settle(ended, params={})
    box.flush()
    assert tracker.client.get_run(str(runs["trial-0000"])).info.status == "FINISHED"


def test_trial_without_dice_is_told_by_its_status(box: Outbox, said: list[str], tmp_path: Path) -> None:
    follow = Follow(box, parent=None, sweep="words", report=lambda *words: said.append(words[3]))
    for name, status in (("trial-0000", "stopped_early"), ("trial-0001", "finished")):
        one = trial(tmp_path / name)
        result = {**epoch(3, loss=1.0), "status": status, "digest": "abc"}
        (tmp_path / name / "result.json").write_text(json.dumps(result))
        follow.on_trial_start(0, [], one)
        follow.on_trial_complete(0, [], one)
    assert [words for words in said if words.startswith("ended")] == ["ended: stopped early", "ended: finished"]


def test_failed_trial_keeps_its_log_even_when_it_never_started(
    tracker: Flaky, box: Outbox, said: list[str], tmp_path: Path
) -> None:
    follow = Follow(box, parent=None, sweep="failed", report=lambda *words: said.append(words[3]))
    log = tmp_path / "tune" / "error.txt"
    log.parent.mkdir()
    log.write_text("Traceback\n  ...\nValueError: no such loss\n\n")
    one = trial(tmp_path / "trial-0000")
    one.error_file = str(log)
    follow.on_trial_error(0, [], one)
    follow.on_trial_start(0, [], one)
    follow.on_trial_error(0, [], one)
    follow.close()
    box.flush()
    folder = tmp_path / "trial-0000"
    assert failure(folder) == "ValueError: no such loss"
    (folder / "error.txt").write_text("Traceback\nsegsweep.errors.ResourceError: node a: the disk of b is full\n")
    assert failure(folder) == "node a: the disk of b is full"
    note(tmp_path, patch_size=(96, 160, 160), batch_size=2)
    assert failure(tmp_path) == "out of memory with patch_size=96x160x160, batch_size=2"
    assert said[0] == f"failed: ValueError: no such loss; see {folder / ERROR}"
    run_id = follow.run_of("trial-0000")
    assert run_id is not None
    assert tracker.client.get_run(run_id).info.status == "FAILED"


def test_of_a_trial_in_a_bucket_what_it_left_comes_from_there_and_its_log_goes_there(
    tracker: Flaky, box: Outbox, object_storage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = replace(tracker.workspace, uri=f"{object_storage.uri}/lab")
    monkeypatch.setattr(tracker, "workspace", place)
    follow = Follow(box, parent=None, sweep="remote", report=lambda *_: None)
    ended, broken = (f"{place.uri}/sweeps/remote/trial-000{number}" for number in range(2))
    leave_record(tmp_path / "worker")
    result = {**epoch(3, loss=1.0), "status": "finished", "dice": 0.5, "dice/Heart": 0.5, "digest": "abc"}
    (tmp_path / "worker" / "result.json").write_text(json.dumps(result))
    storage.upload(tmp_path / "worker", uri=ended, last="result.json")
    log = tmp_path / "error.txt"
    log.write_text("ValueError: no such loss")
    for uri in (ended, broken):
        one = SimpleNamespace(config={"folder": uri, "loss": "dice_ce"}, error_file=str(log))
        follow.on_trial_start(0, [], one)
        (follow.on_trial_complete if uri == ended else follow.on_trial_error)(0, [], one)
    box.flush()
    run_id = follow.run_of("trial-0000") or ""
    pictures = tracker.workspace.artifacts / run_id / "artifacts" / "overlays"
    assert [path.name for path in pictures.iterdir()] == ["c01.png"]
    assert tracker.client.get_run(run_id).data.params == {"loss": "dice_ce"}
    assert storage.read_bytes(f"{broken}/{ERROR}") == log.read_bytes()
    assert not [name for name in storage.objects(place.uri) if name.endswith(LOGGED)], (
        "each machine tells its own MLflow"
    )
    settled = place.sweeps / "remote" / "trial-0000" / LOGGED
    follow.on_trial_complete(0, [], SimpleNamespace(config={"folder": ended}))
    assert settled.exists(), "no fetching takes that away"


def test_folds_have_runs_of_their_own_under_their_trials(tracker: Flaky, box: Outbox, tmp_path: Path) -> None:
    box.begin({"kind": "folded"}, name="sweep")
    one = trial(tmp_path / "trial-0000")
    last = {
        **epoch(2, loss=1.0),
        "status": "finished",
        "dice": 0.5,
        "dice/Heart": 0.5,
        "nsd": 0.7,
        "nsd/Heart": 0.7,
        "digest": "a",
    }
    # A driver that died in the second fold, and the one that took over: it is told again how the first one ended.
    for again in (False, True):
        follow = Follow(box, parent={"kind": "folded"}, sweep="folded", report=lambda *_: None)
        follow.on_trial_start(0, [], one)
        if not again:
            follow.on_trial_result(0, [], one, {**epoch(1, loss=3.0), "fold": 4})
        follow.on_trial_result(0, [], one, {**last, "fold": 4})
        follow.on_trial_result(0, [], one, {"later": epoch(1 + again, loss=2.0), "fold": 2})
        follow.close()
    box.flush()
    follow = Follow(box, parent={"kind": "folded"}, sweep="folded", report=lambda *_: None)
    names = ("trial-0000", "trial-0000/fold-4", "trial-0000/fold-2")
    runs = [tracker.client.get_run(follow.run_of(name) or "") for name in names]
    assert [run.info.status for run in runs] == ["KILLED", "FINISHED", "KILLED"]
    above = tracker.find(tags={"kind": "folded"})
    assert [run.data.tags[PARENT_TAG] for run in runs] == [above, runs[0].info.run_id, runs[0].info.run_id]
    assert [run.data.tags.get("segsweep.fold") for run in runs] == [None, "4", "2"]
    assert runs[1].data.params == {"fold": "4", "loss": "dice_ce"}
    assert [run.data.metrics.get("nsd") for run in runs] == [None, 0.7, None]
    for run, losses in zip(runs, ([], [(1, 3.0)], [(1, 2.0), (2, 2.0)]), strict=True):
        history = tracker.client.get_metric_history(run.info.run_id, "loss")
        assert [(point.step, point.value) for point in history] == losses
    # The trial fails in its second fold: so did that one.
    follow.on_trial_start(0, [], one)
    follow.on_trial_result(0, [], one, {"later": epoch(3, loss=1.0), "fold": 2})
    follow.on_trial_error(0, [], one)
    box.flush()
    statuses = [tracker.client.get_run(run.info.run_id).info.status for run in runs]
    assert statuses == ["FAILED", "FINISHED", "FAILED"]
