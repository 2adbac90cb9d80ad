"""AWS's note reaches Ray; machines without such notes are left alone."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import ray

from segsweep.sweeps import spot
from segsweep.sweeps.spot import Note


@pytest.fixture
def texts() -> Iterator[dict[str, str]]:
    """What a metadata service says, by the last part of the path; its address is under `address`.

    Under `codes` is how it answers the next requests instead: 200 as ever, 0 not at all, else with that code.
    """
    said: dict[str, str] = {}

    class Answer(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.say("session" if self.headers["X-aws-ec2-metadata-token-ttl-seconds"] else None)

        def do_GET(self) -> None:
            known = self.headers["X-aws-ec2-metadata-token"] == "session"
            self.say(said.get(self.path.removeprefix("/latest/meta-data/")) if known else None)

        def say(self, text: str | None) -> None:
            code, _, said["codes"] = said.get("codes", "").partition(" ")
            if code == "0":
                return
            self.send_response(int(code) if code not in ("", "200") else 200 if text else 404)
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, format: str, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
    said["address"] = f"http://127.0.0.1:{server.server_port}"
    yield said
    server.shutdown()
    server.server_close()


def test_a_note_is_handed_on_once_it_is_there(texts: dict[str, str]) -> None:
    texts["instance-life-cycle"] = "spot"
    heard: list[Note] = []
    watcher = threading.Thread(
        target=spot.watch, args=[texts["address"]], kwargs={"drain": heard.append, "pause": 0.05}
    )
    watcher.start()
    watcher.join(0.3)
    assert watcher.is_alive() and not heard
    at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=110)
    texts["spot/instance-action"] = json.dumps({"action": "terminate", "time": f"{at:%Y-%m-%dT%H:%M:%SZ}"})
    watcher.join()
    assert heard == [Note(action="terminate", at=at)]
    assert 0 < heard[0].seconds <= 110


def test_whoever_fails_for_a_moment_is_asked_again(texts: dict[str, str]) -> None:
    texts["instance-life-cycle"] = "spot"
    at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=110)
    texts["spot/instance-action"] = json.dumps({"action": "terminate", "time": at.isoformat()})
    texts["codes"] = "503 0 200 200 429 0 200 500"
    refusals, heard = [RuntimeError("no such node"), ConnectionError("no head")], []

    def drain(note: Note) -> None:
        if refusals:
            raise refusals.pop()
        heard.append(note)

    assert spot.watch(texts["address"], drain=drain, pause=0.01)
    assert heard == [Note(action="terminate", at=at)] and not texts["codes"]


def test_once_the_time_is_over_what_went_wrong_is_told(texts: dict[str, str]) -> None:
    texts["instance-life-cycle"] = "spot"
    texts["spot/instance-action"] = json.dumps({"action": "stop", "time": "2026-01-01T00:00:00Z"})

    def drain(note: Note) -> None:
        raise RuntimeError(f"cannot {note.action}")

    with pytest.raises(RuntimeError, match="cannot stop"):
        spot.watch(texts["address"], drain=drain, pause=0.01)


@pytest.mark.parametrize("found", ["{}", '{"action": "stop", "time": "soon"}'])
def test_without_a_readable_time_there_are_two_minutes(texts: dict[str, str], found: str) -> None:
    texts["spot/instance-action"] = found
    note = spot.read_note(texts["address"])
    assert note and 60 < note.seconds <= spot.NOTICE


def test_other_machines_are_not_watched(texts: dict[str, str]) -> None:
    texts["instance-life-cycle"] = "on-demand"
    assert not spot.watch(texts["address"], drain=lambda note: pytest.fail(str(note)))
    assert not spot.watch("http://127.0.0.1:1", drain=lambda note: pytest.fail(str(note)), pause=0.01, patience=0.05)


@pytest.mark.usefixtures("cluster")
def test_a_node_that_ray_does_not_know_is_named() -> None:
    address = ray.get_runtime_context().gcs_address
    with pytest.raises(RuntimeError, match=rf"Ray at {address} has no node 10\.0\.0\.9"):
        spot.drain_node(address, host="10.0.0.9", note=Note(action="terminate", at=datetime.now(UTC)))
