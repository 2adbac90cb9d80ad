import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segsweep.data import lock, storage
from segsweep.data.lock import leased, locked
from segsweep.errors import ResourceError, StoreError

HOLD = """
import sys
from pathlib import Path
from types import SimpleNamespace
from segsweep.data.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_holder_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match="another conversion is writing into this store; wait"), locked(tmp_path):
            pass
        other.kill()
        other.wait()
    with locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_who_waits_goes_on_when_the_holder_ends(tmp_path: Path) -> None:
    order: list[str] = []

    def wait() -> None:
        with locked(tmp_path, waiting=True):
            order.append("second")

    second = threading.Thread(target=wait)
    with locked(tmp_path):
        second.start()
        second.join(timeout=0.2)
        assert second.is_alive()
        order.append("first")
    second.join()
    assert order == ["first", "second"]


def test_a_lease_keeps_a_second_process_out_and_ends_with_the_first(
    object_storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "TOGETHER", 0.0)
    uri, busy = f"{object_storage.uri}/sweep/.driver.json", ResourceError("busy")
    with leased(uri, otherwise=busy):
        with pytest.raises(ResourceError, match="busy"), leased(uri, otherwise=busy):
            pass
        assert os.uname().nodename not in storage.read_bytes(uri).decode()
    assert not storage.exists(uri)
    dead = {"holder": "0", "renewed": time.time() - lock.LEASE}
    for left in (json.dumps(dead).encode(), b"", b"\xff{", b"[]", b'{"holder": "0"}'):
        storage.write_bytes(uri, left)
        with leased(uri, otherwise=busy):
            assert json.loads(storage.read_bytes(uri))["holder"] != "0"


def test_of_two_that_take_a_lease_at_once_the_later_one_has_it(
    object_storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{object_storage.uri}/.driver.json"
    later = SimpleNamespace(time=time.time, sleep=lambda _seconds: lock._take(uri, own="another"))
    monkeypatch.setattr(lock, "time", later)
    with pytest.raises(ResourceError, match="busy"), leased(uri, otherwise=ResourceError("busy")):
        pass
    assert lock._holder(uri) == "another"


@pytest.mark.usefixtures("heard")
def test_a_lease_is_renewed_and_one_that_was_lost_interrupts(
    object_storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "TOGETHER", 0.0)
    monkeypatch.setattr(lock, "RENEWAL", 0.05)
    uri = f"{object_storage.uri}/.driver.json"

    def renewed() -> float:
        return json.loads(storage.read_bytes(uri))["renewed"]

    with pytest.raises(KeyboardInterrupt), leased(uri, otherwise=ResourceError("busy")):
        begun, length = renewed(), len(storage.read_bytes(uri))
        object_storage.faults = {"PUT": [403]}
        while any(object_storage.faults["PUT"]) or renewed() <= begun:
            time.sleep(0.02)
        assert len(storage.read_bytes(uri)) == length
        storage.write_bytes(uri, b"{")
        while storage.read_bytes(uri) == b"{":
            time.sleep(0.02)
        for _ in range(50):
            lock._take(uri, own="another")
            time.sleep(0.2)
    assert lock._holder(uri) == "another", "whose lease is left alone"
