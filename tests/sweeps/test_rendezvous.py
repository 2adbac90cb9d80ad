"""Workers of a training meet on the addresses of their nodes, and nobody else's machine can reach what they open."""

import contextlib
import json
import os
from pathlib import Path

import pytest
import ray
import torch
import torch.distributed as dist
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from segsweep.sweeps.rendezvous import OwnAddresses, interface_of

LISTENS = "0A"


def body(config: dict[str, str]) -> None:
    """Each worker writes down its rank, the sum of all ranks plus one, and on which addresses its process listens (the kernel's words)."""
    total = torch.tensor([dist.get_rank() + 1])
    dist.all_reduce(total)
    own = set()
    for link in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            own.add(str(link.readlink()))
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    addresses = {line[1].partition(":")[0] for line in lines if line[3] == LISTENS and f"socket:[{line[9]}]" in own}
    found = {"total": int(total), "addresses": sorted(addresses), "interface": os.environ["GLOO_SOCKET_IFNAME"]}
    (Path(config["folder"]) / f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()


@pytest.mark.usefixtures("cluster")
def test_workers_of_a_local_training_listen_on_loopback_only(tmp_path: Path) -> None:
    TorchTrainer(
        body,
        train_loop_config={"folder": str(tmp_path)},
        torch_config=OwnAddresses(),
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(storage_path=str(tmp_path / "ray")),
    ).fit()
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [one["total"] for one in found] == [3, 3]
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
    for one in found:
        assert one["addresses"] and set(one["addresses"]) <= loopback
        assert one["interface"] == "lo"


@pytest.mark.usefixtures("cluster")
def test_the_interface_of_an_address() -> None:
    assert interface_of("127.0.0.1") == interface_of(ray.util.get_node_ip_address()) == "lo"
    assert interface_of("203.0.113.7") == ""
