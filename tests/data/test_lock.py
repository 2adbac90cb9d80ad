import subprocess
import sys
import threading
from pathlib import Path

import pytest

from segsweep.data.lock import locked
from segsweep.errors import StoreError

HOLD = """
import sys
from pathlib import Path
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
