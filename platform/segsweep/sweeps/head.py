"""The cluster's head, as a driver that joined it sees it: when it is gone, so is the driver, after a sentence that says what to do."""

import os
import socket
import threading
import time
from collections.abc import Callable

from segsweep.terminal import complain

# Seconds without an answer after which a driver ends, and between two looks. Ray itself ends it after 60, in its own words.
AWAY, LOOK_EVERY = 45.0, 5.0


def watch_head(address: str, *, joined: Callable[[], bool], away: float = AWAY) -> None:
    """From now on, for as long as it is `joined`, end this process once the head at HOST:PORT has not answered for `away` seconds."""
    threading.Thread(target=_watch, args=(address, joined, away), daemon=True).start()


def _watch(address: str, joined: Callable[[], bool], away: float) -> None:
    answered = time.monotonic()
    while time.monotonic() - answered < away:
        time.sleep(min(LOOK_EVERY, away / 3))
        if not joined():
            return
        if answers(address):
            answered = time.monotonic()
    complain(
        f"the head of the Ray cluster at {address} has not answered for {away:.0f} s; what is done is kept: "
        "start the cluster again, then give the same command again"
    )
    os._exit(1)  # Ray's own threads would hold up any other end


def answers(address: str) -> bool:
    """Whether anything listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=LOOK_EVERY).close()
    except OSError:
        return False
    return True
