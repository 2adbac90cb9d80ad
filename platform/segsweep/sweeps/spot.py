"""`python -m segsweep.sweeps.spot` on a worker rented as a spot instance: AWS's note that it takes it back becomes Ray's draining.

Ray then starts nothing new there, and trainings hear of it and go on elsewhere. Ends at once on instances of other kinds.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from typing import TypeVar
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import ray._private.services
import ray.util
from ray._raylet import GcsClient  # type: ignore[attr-defined]  compiled, as what follows is generated
from ray.core.generated import autoscaler_pb2, gcs_pb2

from segsweep.sweeps.token import use_token

# The instance metadata service; the variable is that of AWS's own tools.
METADATA = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254").rstrip("/")
# AWS asks for a look every 5 seconds; the note comes 120 seconds before the end.
PAUSE, NOTICE = 5.0, 120.0
# How long the service may be silent, and a session with it may last (seconds; at most 6 hours).
TIMEOUT, SESSION = 2.0, 21600
# How long a service that never answered is asked what the machine is.
PATIENCE = 120.0
# How long Ray may be silent, so that there is time to ask again.
RAY_TIMEOUT = 10.0
# A proxy of the environment is not for an address of the machine itself.
_open = build_opener(ProxyHandler({})).open
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Note:
    """AWS ends (`terminate`), stops or hibernates the instance at a moment of the clock."""

    action: str
    at: datetime

    @property
    def seconds(self) -> float:
        """How long there is still, at least 0."""
        return max(0.0, (self.at - datetime.now(UTC)).total_seconds())


def is_spot(metadata: str) -> bool:
    """Whether the machine is a spot instance."""
    return _read(metadata, "instance-life-cycle") == "spot"


def read_note(metadata: str) -> Note | None:
    """The note, where there is one. Without a readable time AWS's two minutes count."""
    text = _read(metadata, "spot/instance-action")
    if text is None:
        return None
    found = json.loads(text)
    try:
        at = datetime.fromisoformat(found["time"])
    except (KeyError, ValueError):
        at = datetime.fromtimestamp(time.time() + NOTICE, tz=UTC)
    return Note(action=str(found.get("action", "terminate")), at=at if at.tzinfo else at.replace(tzinfo=UTC))


def watch(metadata: str, *, drain: Callable[[Note], None], pause: float = PAUSE, patience: float = PATIENCE) -> bool:
    """Wait for the note and hand it on; whether the machine was a spot instance at all.

    A service that fails is asked again, and so is `drain` until the note's time is over; then what it raised is raised.
    """
    end = time.monotonic() + patience
    while (found := _ask(is_spot, metadata)) is None and time.monotonic() < end:
        time.sleep(pause)
    if not found:
        return False
    while not (note := _ask(read_note, metadata)):
        time.sleep(pause)
    while True:
        try:
            drain(note)
            return True
        except Exception:  # Ray raises many types while its head is away
            if not note.seconds:
                raise
            time.sleep(pause)


def drain_node(address: str, *, host: str, note: Note) -> None:
    """Tell the Ray at HOST:PORT that the node of this address ends when the note says; RuntimeError where it does not take that."""
    cluster = GcsClient(address=address)
    alive = [
        node_id.hex()
        for node_id, node in cluster.get_all_node_info(timeout=RAY_TIMEOUT).items()
        if node.node_manager_address == host and node.state == gcs_pb2.GcsNodeInfo.ALIVE  # type: ignore[attr-defined]
    ]
    if not alive:
        raise RuntimeError(f"Ray at {address} has no node {host}")
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # type: ignore[attr-defined]
    deadline = int((time.time() + note.seconds) * 1000)
    for node_id in alive:
        accepted, why = cluster.drain_node(
            node_id, reason, f"AWS takes the spot instance back: {note.action}", deadline
        )
        if not accepted:
            raise RuntimeError(f"Ray at {address} does not drain {host}: {why}")


def main() -> int:
    """Watch this machine; 0 once its node drains, or when it is no spot instance."""
    use_token()

    def drain(note: Note) -> None:
        address = ray._private.services.find_bootstrap_address(None)
        drain_node(str(address), host=ray.util.get_node_ip_address(), note=note)
        print(f"draining: AWS will {note.action} this instance in {note.seconds:.0f} s", flush=True)

    if not watch(METADATA, drain=drain):
        print("no spot instance: nothing to watch for", flush=True)
    return 0


def _ask(question: Callable[[str], T], metadata: str) -> T | None:
    """What the service answers, None where it fails for now."""
    try:
        return question(metadata)
    except (OSError, HTTPException, ValueError):
        return None


def _read(metadata: str, name: str) -> str | None:
    """A value of the service, None where it has none. A session comes first, as IMDSv2 asks. Raises what urllib does where it fails."""
    try:
        lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(SESSION)}
        with _open(Request(f"{metadata}/latest/api/token", method="PUT", headers=lifetime), timeout=TIMEOUT) as answer:
            session = answer.read().decode()
        request = Request(f"{metadata}/latest/meta-data/{name}", headers={"X-aws-ec2-metadata-token": session})
        with _open(request, timeout=TIMEOUT) as answer:
            return answer.read().decode()
    except HTTPError as error:
        if error.code == 404:
            return None
        raise


if __name__ == "__main__":
    sys.exit(main())
