"""A laptop and hosts of its own as namespaces of this machine (`hosts.sh`), and a cluster that `segsweep cluster up` started on them.

For tests marked `hosts`: `run`, `kill`, `start`, `cut`, `join`, `unplug` and `processes` do to a host what may happen to one.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

SCRIPT = Path(__file__).with_name("hosts.sh")
CHECKOUT = Path(__file__).resolve().parents[2]
NEEDED = ("ip", "nsenter", "rsync", "ss", "ssh", "unshare")
# All that Ray starts.
RAY_PROCESS = re.compile(r"raylet|gcs_server|ray::|ray/(dashboard|autoscaler|_private)|ray\.util\.client")


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """PREFIXl is the laptop, PREFIXh the head, PREFIXw1, ... the workers; `shared` is one folder for all of them."""

    folder: Path
    prefix: str
    subnet: str
    count: int

    @property
    def laptop(self) -> str:
        return f"{self.prefix}l"

    @property
    def head(self) -> str:
        return f"{self.prefix}h"

    @property
    def workers(self) -> tuple[str, ...]:
        return tuple(f"{self.prefix}w{number}" for number in range(1, self.count))

    @property
    def shared(self) -> Path:
        return self.folder / "shared"

    @property
    def file(self) -> Path:
        """The cluster's file, as `write_file` wrote it."""
        return self.folder / "cluster.yaml"

    def address(self, host: str) -> str:
        return f"{self.subnet}.{(self.head, *self.workers).index(host) + 1}"

    def command(self, host: str, command: str) -> list[str]:
        """Arguments that run a command in a login shell of a host, as root, past its network."""
        home = self.folder / host / "home"
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        alone = ("env", "-i", f"HOME={home}", "USER=root", f"PATH={path}")
        return [*self.inside(host), *alone, "bash", "--login", "-c", command]

    def inside(self, host: str) -> list[str]:
        """What a command begins with that runs on a host, in this process's environment."""
        first = self._script("pid", host)
        assert first, f"{host} is down"
        return ["nsenter", "--target", first, "--net", "--pid", "--mount", "--uts"]

    def run(self, host: str, command: str, *, check: bool = True, seconds: float = 900) -> str:
        """What a command said on a host, its complaints included; with `check` it must end well."""
        done = subprocess.run(
            self.command(host, command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=seconds, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{host}: {command}\n{done.stdout}"
        return done.stdout

    def processes(self, host: str) -> list[str]:
        """Ray's processes on a host, as the process list shows them."""
        listed = self.run(host, "ps -ww -eo args= | cat").splitlines()
        return [line for line in listed if RAY_PROCESS.search(line)]

    def kill(self, host: str) -> None:
        """The host ends at once, as by a power cut."""
        subprocess.run(("kill", "-9", self._script("pid", host)), check=True)

    def start(self, host: str) -> None:
        """A killed host is there again, without any Ray."""
        self._script("start", str(self.folder), self.prefix, self.subnet, host)

    def cut(self, host: str) -> None:
        """The host's packets reach nobody any more, and it sees no reason: its cable is in."""
        subprocess.run(("ip", "-n", self.laptop, "link", "set", f"v{host}", "nomaster"), check=True)

    def join(self, host: str) -> None:
        """A cut host reaches the others again."""
        subprocess.run(
            ("ip", "-n", self.laptop, "link", "set", f"v{host}", "master", f"{self.prefix}br", "up"), check=True
        )

    def unplug(self, host: str, *, seconds: float) -> None:
        """Pull a host's cable for a while."""
        for state in ("down", "up"):
            subprocess.run(("ip", "-n", self.laptop, "link", "set", f"v{host}", state), check=True)
            if state == "down":
                time.sleep(seconds)

    def up(self) -> None:
        """Make all hosts, without any Ray."""
        self.shared.mkdir(parents=True, exist_ok=True)
        self._script("up", str(self.folder), self.prefix, self.subnet, str(self.count))
        path = f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={CHECKOUT / 'platform'} OMP_NUM_THREADS=1\n"
        (self.folder / self.laptop / "home" / ".profile").write_text(path)

    def down(self) -> None:
        """End everything on all hosts, and the hosts."""
        self._script("down", str(self.folder), self.prefix)

    def write_file(self, *, num_cpus: int = 2, head_cpus: int = 0) -> Path:
        """docs/cluster-onprem.yaml for these hosts. They have no network, so that the project is not installed: .venv is this Python's."""
        text = (CHECKOUT / "docs" / "cluster-onprem.yaml").read_text()
        gaps = {
            "<head address>": self.address(self.head),
            "<worker address>": ", ".join(map(self.address, self.workers)),
            "<user>": "root",
            "<shared folder>": str(self.shared),
            "~/.ssh/id_ed25519": str(self.folder / "key"),
            "make -C ~/segsweep .venv/.ready": f"ln -sfn {sys.prefix} ~/segsweep/.venv",
            "--num-cpus=0": f"--num-cpus={head_cpus}",
            "ray start --address": f"ray start --num-cpus={num_cpus} --address",
            # Our own sources, whatever the linked Python has installed.
            "    export RAY_AUTH_MODE": "    export PYTHONPATH=$HOME/segsweep/platform OMP_NUM_THREADS=1\n    export RAY_AUTH_MODE",
            "    export MLFLOW_TRACKING_URI=http://127.0.0.1:5000\n": "",
            "    export SEGSWEEP_STUDIES='postgresql:///studies?host=/var/run/postgresql'\n": "",
        }
        for old, new in gaps.items():
            assert old in text, old
            text = text.replace(old, new)
        config = yaml.safe_load(text)
        # No PostgreSQL and no MLflow server: the workspace's own files.
        config |= {"cluster_name": self.prefix, "head_setup_commands": []}
        config["head_start_ray_commands"] = config["head_start_ray_commands"][:2]
        self.file.write_text(yaml.safe_dump(config, sort_keys=False))
        return self.file

    def cluster(self, verb: str, *, check: bool = True) -> str:
        """`segsweep cluster VERB` on the laptop, in the checkout."""
        return self.run(self.laptop, f"cd {CHECKOUT} && segsweep cluster {verb} {self.file}", check=check)

    def _script(self, *words: str) -> str:
        done = subprocess.run((str(SCRIPT), *words), stdout=subprocess.PIPE, text=True, timeout=120, check=True)
        return done.stdout.strip()


@pytest.fixture(scope="session")
def make_hosts(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., AbstractContextManager[Hosts]]:
    """`with make_hosts(prefix="ca", subnet="10.91.0", count=3) as hosts` has so many hosts and a laptop, without any Ray."""
    missing = [name for name in NEEDED if not shutil.which(name)]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"needs root and {', '.join(NEEDED)} (absent: {', '.join(missing) or 'none'})")

    @contextmanager
    def make(*, prefix: str, subnet: str, count: int = 3) -> Iterator[Hosts]:
        hosts = Hosts(folder=tmp_path_factory.mktemp(prefix), prefix=prefix, subnet=subnet, count=count)
        try:
            hosts.up()
            yield hosts
        finally:
            hosts.down()

    return make
