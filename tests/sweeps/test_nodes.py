"""A cluster's nodes, as the laptop hears of them."""

from typing import Any

import pytest
import ray

from segsweep.sweeps.nodes import census


@pytest.mark.usefixtures("cluster")
def test_the_head_is_told_with_what_is_busy() -> None:
    class Busy:
        def ready(self) -> bool:
            return True

    remote: Any = ray.remote
    busy = remote(num_cpus=1)(Busy).remote()
    assert ray.get(busy.ready.remote())
    (node,) = census()
    assert (node["address"], node["head"]) == ("127.0.0.1", True)
    assert node["all"]["CPU"] == ray.cluster_resources()["CPU"] and node["all"]["memory"] > 1e8
    assert node["busy"]["CPU"] >= 1 and node["busy"]["GPU"] == 0
    ray.kill(busy)
