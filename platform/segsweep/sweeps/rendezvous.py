"""Where the workers of a training meet: on the addresses by which Ray knows their nodes, which is loopback on one machine.

By themselves torch's store takes connections from anywhere, and gloo listens where the machine's name leads: on Debian and Ubuntu that
is 127.0.1.1, on which no other machine is reached.
"""

import fcntl
import os
import socket
import struct
from datetime import timedelta
from typing import Any

import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

TCPStore = dist.TCPStore  # type: ignore[attr-defined]  public by torch's documentation
# Linux's request for the address of a network interface.
SIOCGIFADDR = 0x8915
# The first worker's, while its process lives.
_served: TCPStore | None = None


class OwnAddresses(TorchConfig):
    """How torch's process group is set up, for Ray Train: NCCL for workers with GPUs, else gloo."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What Ray Train calls around a training."""
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        host, port = worker_group.execute_single(0, serve)
        worker_group.execute(_set_torch_distributed_env_vars)
        setting = {
            "backend": "nccl" if worker_group.get_resources_per_worker().get("GPU") else "gloo",
            "world_size": len(worker_group),
            "timeout": timedelta(seconds=backend_config.timeout_s),
        }
        ray.get(
            [
                worker_group.execute_single_async(place, join, host, port, place=place, **setting)
                for place in range(len(worker_group))
            ]
        )


def serve() -> tuple[str, int]:
    """Open the store in which workers leave their addresses, on this node's own; its address and port."""
    global _served
    address = ray.util.get_node_ip_address()
    listening = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    port = listening.getsockname()[1]
    _served = TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach())
    return address, port


def join(host: str, port: int, *, place: int, **setting: Any) -> None:
    """Make this worker the one of that rank in its process group. Interfaces that the user named stay."""
    name = interface_of(ray.util.get_node_ip_address())
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")
    dist.init_process_group(store=TCPStore(host, port), rank=place, **setting)


def interface_of(address: str) -> str:
    """The network interface that has an IPv4 address; "" for one that none has."""
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            try:
                answer = fcntl.ioctl(asking.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has none
                continue
        if socket.inet_ntoa(answer[20:24]) == address:
            return name
    return ""
