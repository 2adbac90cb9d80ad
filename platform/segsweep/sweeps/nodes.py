"""`python -m segsweep.sweeps.nodes [WANTED SECONDS]` on a cluster's head: its nodes as lines of JSON, until so many are there.

`segsweep cluster up` and `status` run it there by ssh.
"""

import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray._private.state import available_resources_per_node

from segsweep.errors import SegsweepError
from segsweep.sweeps.admission import demand_admission
from segsweep.sweeps.token import use_token

# What Ray counts beside what a user asks for.
SHOWN = ("CPU", "GPU")
PAUSE = 2.0


def census() -> list[dict[str, Any]]:
    """The nodes that are alive: address, whether it is the head, resources in all and in use (memory in bytes)."""
    free = available_resources_per_node()
    return [
        {
            "address": node["NodeManagerAddress"],
            "head": "node:__internal_head__" in node["Resources"],
            "all": {name: node["Resources"].get(name, 0) for name in (*SHOWN, "memory")},
            "busy": {name: _busy(node["Resources"], free.get(node["NodeID"], {}), name=name) for name in SHOWN},
        }
        for node in ray.nodes()
        if node["Alive"]
    ]


def _busy(there: Mapping[str, float], free: Mapping[str, float], *, name: str) -> float:
    return there.get(name, 0) - free.get(name, 0)


def main(wanted: int, *, seconds: float) -> int:
    """Print the nodes, and again when there are more, until `wanted` are there; 1 when the time ends before."""
    demand_admission("auto", token=use_token())
    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    end, seen = time.monotonic() + seconds, 0
    while True:
        nodes = census()
        if len(nodes) != seen or len(nodes) >= wanted:
            print(json.dumps({"nodes": nodes}), flush=True)
        if len(nodes) >= wanted or time.monotonic() > end:
            return int(len(nodes) < wanted)
        seen = len(nodes)
        time.sleep(PAUSE)


if __name__ == "__main__":
    wanted, seconds = sys.argv[1:] or ("0", "0")
    try:
        sys.exit(main(int(wanted), seconds=float(seconds)))
    except SegsweepError as error:
        sys.exit(f"segsweep: {error}")
