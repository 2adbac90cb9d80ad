"""Pieces of work as Ray tasks: as many at once as cores and memory allow, each failure an outcome of its own."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.exceptions import RayError

from segsweep.errors import SegsweepError

# Told after each finished piece of work: what it is called, how many are done, of how many.
Progress = Callable[[str, int, int], None]

# Starts again after its worker died, for example because the machine ran out of memory.
RETRIES = 2
# Where `ray up` leaves the cluster's own file: on its head, where drivers run.
AUTOSCALED = "~/ray_bootstrap_config.yaml"
# Memory is asked for in such steps (bytes): tasks that ask for the same follow one another in a worker at once.
STEP = 2**26

# What a node offers, by Ray's names: CPU, GPU, memory (bytes).
Node = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One call of the work: what messages call it, its arguments, and the memory (bytes) that it will need."""

    name: str
    arguments: tuple[Any, ...]
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the work returned, or (`failure` not empty) one sentence on why it did not."""

    value: Any = None
    failure: str = ""


def run_all(
    pieces: Sequence[Piece], *, work: Callable[..., Any], label: str, progress: Progress | None = None
) -> Mapping[str, Outcome]:
    """Piece name -> outcome, for all. Whatever goes wrong in one piece, the others go on."""
    outcomes: dict[str, Outcome] = {}
    for name, outcome in _as_they_end(pieces, work=work):
        outcomes[name] = outcome
        if progress:
            progress(label, len(outcomes), len(pieces))
    return outcomes


def known_nodes() -> list[Node]:
    """The nodes that are there, and those that the cluster's autoscaler may still start: one that begins with a head alone has room."""
    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    file = Path(AUTOSCALED).expanduser()
    return [*there, *to_come(yaml.safe_load(file.read_text()), there=there)] if file.is_file() else there


def to_come(config: Mapping[str, Any], *, there: Sequence[Node]) -> list[Node]:
    """Nodes that a cluster.yaml allows for beyond those that are there; of a type without resources nothing is known.

    The types together may allow for more than the cluster: then those that offer most are the ones to come.
    """
    missing: list[Node] = []
    for kind in config.get("available_node_types", {}).values():
        offered = kind.get("resources") or {}
        alike = [node for node in there if all(node.get(name, 0) == offered.get(name, 0) for name in ("CPU", "GPU"))]
        missing += [offered] * (kind.get("max_workers", 0) - len(alike)) if offered else []
    missing.sort(key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), reverse=True)
    workers = len(there) - 1  # the head is none
    return missing[: max(0, config.get("max_workers", sys.maxsize) - workers)]


def largest_memory(nodes: Sequence[Node]) -> int:
    """Bytes that the largest node with a core to work on has; where none says how much, more than anything needs."""
    return int(max((node["memory"] for node in nodes if node.get("CPU") and "memory" in node), default=sys.maxsize))


def _as_they_end(pieces: Sequence[Piece], *, work: Callable[..., Any]) -> Iterator[tuple[str, Outcome]]:
    """Few tasks are in flight, so what the driver holds does not grow with their number."""
    # Named, or a caller that Ray Tune started would hold its tasks to its own resources, which are none.
    task: Any = ray.remote(num_cpus=1, max_retries=RETRIES, scheduling_strategy="DEFAULT")(_attempt)
    known = known_nodes()
    most, largest = max(2, 2 * int(sum(node.get("CPU", 0) for node in known))), largest_memory(known)
    running: dict[ray.ObjectRef, str] = {}
    for piece in pieces:
        if piece.num_bytes > largest:
            yield piece.name, Outcome(failure=_too_large(piece, largest=largest))
            continue
        if len(running) == most:
            yield _next(running)
        # An eighth is left to trials, which hold some while they wait for what they convert.
        reserved = min(largest - largest // 8, -(-piece.num_bytes // STEP) * STEP)
        running[task.options(memory=reserved).remote(work, piece)] = piece.name
    while running:
        yield _next(running)


def _next(running: dict[ray.ObjectRef, str]) -> tuple[str, Outcome]:
    finished, _ = ray.wait(list(running), num_returns=1)
    name = running.pop(finished[0])
    try:
        return name, ray.get(finished[0])
    except RayError as error:
        return name, Outcome(
            failure=f"case {name}: its worker died again and again ({type(error).__name__}), perhaps for want of memory; "
            "free memory, or leave the case out"
        )


def _attempt(work: Callable[..., Any], piece: Piece) -> Outcome:
    try:
        return Outcome(value=work(*piece.arguments))
    except SegsweepError as error:
        return Outcome(failure=str(error))
    except OSError as error:
        return Outcome(failure=f"case {piece.name}: {error.strerror} ({Path(error.filename or '').name})")
    except Exception as error:  # libraries raise many types on malformed files, and the other cases shall go on
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return Outcome(failure=f"case {piece.name}: cannot be converted ({reason}); check its files, or leave it out")


def _too_large(piece: Piece, *, largest: int) -> str:
    return (
        f"case {piece.name}: needs about {piece.num_bytes / 1e9:.1f} GB of memory, the largest node has {largest / 1e9:.1f} GB; "
        "crop the scan, or convert on a larger machine"
    )
