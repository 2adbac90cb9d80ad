"""Clusters up, down and looked at: Ray's own commands, with what they leave undone on hosts of one's own (2.60)."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segsweep.errors import ResourceError
from segsweep.sweeps.hosts import Launch
from segsweep.sweeps.token import DEFAULT_PATH, TOKEN, TOKEN_PATH, find_token, keep_token

RAY = (sys.executable, "-m", "ray.scripts.scripts")
# Run on the head, in the environment of a login.
NODES = "python -m segsweep.sweeps.nodes"
# Packages are installed on workers after the head is up, several at a time.
WAIT_FOR_NODES = 1800
SSH_SECONDS = 15
COLOUR = re.compile(r"\x1b\[[0-9;]*m|\r")
# Ray's steps, `[3/7] Processing file mounts`.
STEP = re.compile(r"(\[\d(?:-\d)?/7\] .*)")
TROUBLE = re.compile(r"error|fail|denied|refused|not found|no such|unreachable|timed out|cannot|\*\*\*", re.IGNORECASE)
# Lines that say that something failed, not what.
EMPTY_WORDS = re.compile(
    r"!!!|update-failed|Failed to setup head node|(Setup|SSH|Initialization) command failed|Full traceback|^Traceback|Shared connection|"
    r"cannot set terminal process group|no job control|Command failed|ExitOnForwardFailure|Exception details|"
    r"^(File \"|raise |return |self\.|\^+$|click\.exceptions)"
)
# Everything that Ray starts, but not the shell that asks.
LEFT = "pgrep -f '[r]aylet|[g]cs_server|[r]ay::|[r]ay/dashboard|[r]ay/autoscaler|[r]ay/_private|[r]ay.util.client'"
Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Left:
    """What `down` found on one host: numbers of Ray processes that do not end, or why nobody could look."""

    host: str
    processes: tuple[int, ...] = ()
    trouble: str = ""


def up(launch: Launch, *, tell: Tell) -> list[dict[str, Any]]:
    """Start the cluster, or bring it up to date, and return its nodes once those that it always has are in.

    Raises ResourceError with the last useful line of what went wrong; the whole is in `log_file`.
    """
    demand_token(launch)
    if launch.local:
        _demand_hosts(launch)
    _ray(launch, "up", "--yes", "--no-config-cache", str(launch.file), tell=lambda line: _tell_step(line, tell=tell))
    found: list[dict[str, Any]] = []
    try:
        _exec(launch, f"{NODES} {launch.wanted} {WAIT_FOR_NODES}", tell=lambda line: _count(line, found, launch, tell))
    except ResourceError as error:
        missing = sorted(set(launch.hosts) - {node["address"] for node in found})
        if not missing:
            raise
        raise ResourceError(
            f"{launch.file}: {len(found)} of {launch.wanted} nodes are in, {', '.join(missing)} missing: {_told_by_head(launch, error)}; "
            "correct it and give the same command again"
        ) from None
    return found


def status(launch: Launch) -> list[dict[str, Any]]:
    """The nodes of a cluster that runs; see `nodes.census`."""
    found: list[dict[str, Any]] = []
    _exec(launch, NODES, tell=lambda line: found.extend(_nodes(line)))
    return found


def down(launch: Launch, *, tell: Tell) -> list[Left]:
    """End the cluster, and on hosts of one's own every Ray process, which `ray down` leaves on workers. Returns what is left."""
    _ray(launch, "down", "--yes", str(launch.file), tell=_say_nothing)
    tell("stopping Ray on every host" if launch.local else "the cloud ends the instances")
    with ThreadPoolExecutor(max_workers=16) as threads:
        found = list(threads.map(lambda host: _stop(launch, host), launch.hosts))
    return [left for left in found if left.processes or left.trouble]


def log_file(launch: Launch, verb: str) -> Path:
    """All that Ray said at its last command of this name (up, exec, down) on this cluster."""
    return Path(f"~/.ray/segsweep-{launch.name}-{verb}.log").expanduser()


def demand_token(launch: Launch) -> None:
    """Make the token where there is none. Raises ResourceError when the cluster would get another than this user shows."""
    keep_token()
    source = launch.config["file_mounts"].get(DEFAULT_PATH)
    if source is None:
        return
    path = Path(source).expanduser()
    if not path.is_file() or path.read_text().strip() != find_token():
        set_here = [name for name in (TOKEN, TOKEN_PATH) if os.environ.get(name)]
        raise ResourceError(
            f"{launch.file}: the cluster would ask for the token in {path}, and this user shows another ({', '.join(set_here)}); unset that"
        )


def useful(lines: Sequence[str]) -> str:
    """The last line that says what went wrong."""
    said = [line for line in map(str.strip, lines) if line and not EMPTY_WORDS.search(line)]
    troubles = [line for line in said if TROUBLE.search(line)]
    return (troubles or said or ["it said nothing"])[-1][:300].rstrip(".")


def _ray(launch: Launch, *words: str, tell: Tell) -> None:
    """Run one of Ray's commands, line by line."""
    environment = {"RAY_USAGE_STATS_ENABLED": "0", **os.environ}
    if launch.local:
        # The newer autoscaler, which `ray up` takes by default, starts no worker of a local provider.
        environment["RAY_UP_enable_autoscaler_v2"] = "0"
    lines: list[str] = []
    kept = log_file(launch, words[0])
    kept.parent.mkdir(mode=0o700, exist_ok=True)
    with (
        kept.open("w") as log,
        subprocess.Popen(
            (*RAY, *words),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        for line in process.stdout or ():
            lines.append(COLOUR.sub("", line).rstrip())
            log.write(f"{lines[-1]}\n")
            tell(lines[-1])
    if process.returncode:
        raise ResourceError(
            f"{launch.file}: `ray {words[0]}` failed: {useful(lines)}; correct it and give the same command again (all it said is in "
            f"{kept})"
        )


def _exec(launch: Launch, command: str, *, tell: Tell) -> None:
    """Run a command on the head."""
    _ray(launch, "exec", "--no-config-cache", str(launch.file), command, tell=tell)


def _say_nothing(_: str) -> None:
    """`ray down` has nothing to say that `down` does not."""


def _tell_step(line: str, *, tell: Tell) -> None:
    step = STEP.search(line)
    if step:
        tell(f"head: {step[1]}")


def _nodes(line: str) -> list[dict[str, Any]]:
    """The nodes that a line of `segsweep.sweeps.nodes` tells of, none for any other line."""
    return json.loads(line)["nodes"] if line.startswith('{"nodes"') else []


def _count(line: str, found: list[dict[str, Any]], launch: Launch, tell: Tell) -> None:
    nodes = _nodes(line)
    if nodes:
        found[:] = nodes
        tell(f"nodes: {len(nodes)} of {launch.wanted} are in")


def _told_by_head(launch: Launch, error: ResourceError) -> str:
    """What the head's log says of workers that did not come."""
    lines: list[str] = []
    tail = "tail -q -n 300 /tmp/ray/session_latest/logs/monitor.*"
    try:
        _exec(launch, tail, tell=lines.append)
    except ResourceError:
        return str(error)
    return useful(lines)


def _demand_hosts(launch: Launch) -> None:
    """Raise ResourceError for hosts that ssh does not reach: Ray would try for a quarter of an hour."""
    user, key = launch.config["auth"]["ssh_user"], launch.config["auth"].get("ssh_private_key")
    with ThreadPoolExecutor(max_workers=16) as threads:
        answers = list(threads.map(lambda host: _ssh(launch, host, "true"), launch.hosts))
    for host, answer in zip(launch.hosts, answers, strict=True):
        if answer.returncode:
            by_hand = f"ssh {f'-i {key} ' if key else ''}{user}@{host}"
            raise ResourceError(
                f"{launch.file}: no ssh to {user}@{host}: {useful(answer.stderr.splitlines())}; `{by_hand}` must work without a question"
            )


def _stop(launch: Launch, host: str) -> Left:
    """`ray stop` until nothing is left; and the head forgets the workers that it started."""
    state = shlex.quote(f"/tmp/ray/cluster-{launch.name}.state")
    script = f"ray stop > /dev/null 2>&1; {LEFT} > /dev/null && ray stop --force > /dev/null 2>&1; rm -f {state}; {LEFT}; true"
    done = _ssh(launch, host, script, seconds=120)
    if done.returncode:
        return Left(host=host, trouble=useful(done.stderr.splitlines()))
    return Left(host=host, processes=tuple(int(word) for word in done.stdout.split() if word.isdigit()))


def _ssh(launch: Launch, host: str, command: str, *, seconds: float = SSH_SECONDS) -> subprocess.CompletedProcess[str]:
    """A command in a login shell of a host, as Ray gives them; exit code 255 also for a host that does not answer in time."""
    auth: Mapping[str, str] = launch.config["auth"]
    options = ["BatchMode=yes", f"ConnectTimeout={SSH_SECONDS}", "StrictHostKeyChecking=accept-new", "LogLevel=ERROR"]
    if "ssh_proxy_command" in auth:
        options.append(f"ProxyCommand={auth['ssh_proxy_command']}")
    key = ["-i", str(Path(auth["ssh_private_key"]).expanduser())] if "ssh_private_key" in auth else []
    words = [part for option in options for part in ("-o", option)]
    remote = f"bash --login -i -c {shlex.quote(command)}"
    argv = ["ssh", *key, *words, f"{auth['ssh_user']}@{host}", remote]
    try:
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False
        )
    except FileNotFoundError:
        return subprocess.CompletedProcess(argv, 255, "", "ssh is not installed here")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(argv, 255, "", f"no answer in {seconds:.0f} s")
