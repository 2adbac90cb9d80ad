"""Workers of a training meet on the addresses of their nodes. (test_training.py looks at where those of a training listen.)"""

import pytest
import ray

from segsweep.sweeps.rendezvous import interface_of


@pytest.mark.usefixtures("cluster")
def test_the_interface_of_an_address() -> None:
    assert interface_of("127.0.0.1") == interface_of(ray.util.get_node_ip_address()) == "lo"
    assert interface_of("203.0.113.7") == ""
