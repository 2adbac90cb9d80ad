"""A driver whose cluster lost its head ends in one sentence; not before the head was away for long, and not if it left before."""

import socket
import subprocess
import sys
import time

CODE = """
import sys, time
from segsweep.sweeps.head import watch_head
end = time.monotonic() + float(sys.argv[2])
watch_head(sys.argv[1], joined=lambda: time.monotonic() < end, away=1.0)
time.sleep(3 + float(sys.argv[2]))
"""


def driver(address: str, *, joined: float) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", CODE, address, str(joined)], stderr=subprocess.PIPE, text=True)


def test_a_driver_ends_when_the_head_does_not_answer_any_more() -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        leaves, stays = driver(address, joined=0), driver(address, joined=60)
        head.accept()[0].close()
        time.sleep(2)
        assert stays.poll() is None
    _, words = stays.communicate(timeout=60)
    assert stays.returncode == 1
    assert words == (
        f"segsweep: the head of the Ray cluster at {address} has not answered for 1 s; what is done is kept: start the cluster again, "
        "then give the same command again\n"
    )
    assert leaves.communicate(timeout=60)[1] == "" and leaves.returncode == 0
