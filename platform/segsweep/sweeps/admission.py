"""Whether a cluster lets us in, asked before Ray does: Ray waits for 20 to 30 seconds and then names no reason."""

import os

import grpc
import ray._private.services
from ray.util import get_node_ip_address

from segsweep.errors import ResourceError
from segsweep.sweeps.head import answers
from segsweep.sweeps.token import DEFAULT_PATH, MODE, TOKEN, TOKEN_PATH, token_file

# Seconds for an answer. Clusters answer in milliseconds.
PATIENCE = 8.0
CLIENT = "ray://"
# The lightest question of each server: one is asked by drivers, the other by Ray's client.
QUESTIONS = {"": "/ray.rpc.NodeInfoGcsService/CheckAlive", CLIENT: "/ray.rpc.RayletDriver/ClusterInfo"}
SILENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def demand_admission(address: str, *, token: str) -> None:
    """Raise ResourceError when nothing answers at the address, or when what answers does not let this token in (empty: none)."""
    if os.environ.get("RAY_USE_TLS", "0") == "1":
        return  # the question would have to be encrypted with the user's certificates; Ray asks it then
    code = _ask(address, token=token)
    if code in SILENT:
        raise ResourceError(
            f"RAY_ADDRESS={address}: no cluster answers there; check the address and that the cluster is up (`segsweep cluster status`)"
        )
    if code == grpc.StatusCode.UNAUTHENTICATED:
        raise ResourceError(f"RAY_ADDRESS={address}: {_refusal(token)}")


def asks_for_token(address: str) -> bool:
    """Whether the cluster at the address lets in only those who show a token; one that does not cannot talk to a driver that wants one."""
    return os.environ.get("RAY_USE_TLS", "0") == "1" or _ask(address, token="") != grpc.StatusCode.OK


def is_alone(address: str) -> bool:
    """Whether the Ray at the address is one of this machine alone, which listens on loopback only."""
    if address.startswith(CLIENT):
        return False
    host, _, port = _place(address).rpartition(":")
    return host in ("127.0.0.1", "localhost") and not answers(f"{get_node_ip_address()}:{port}")


def _place(address: str) -> str:
    """HOST:PORT. Raises ResourceError where `auto` finds no Ray on this machine."""
    if address != "auto":
        return address.removeprefix(CLIENT).split("/")[0]
    place = ray._private.services.find_bootstrap_address(None)
    if not place:
        raise ResourceError("RAY_ADDRESS=auto: no Ray runs on this machine; start the cluster, or unset RAY_ADDRESS")
    return place


def _ask(address: str, *, token: str) -> grpc.StatusCode:
    scheme = CLIENT if address.startswith(CLIENT) else ""
    shown = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(_place(address), options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            channel.unary_unary(QUESTIONS[scheme])(b"", timeout=PATIENCE, metadata=shown)
        except grpc.RpcError as error:
            return error.code()  # type: ignore[attr-defined]  what is raised is also the call
    return grpc.StatusCode.OK


def _refusal(token: str) -> str:
    copy = f"copy {DEFAULT_PATH} from the machine that started the cluster, and `chmod 600` it"
    if token:
        found = TOKEN if os.environ.get(TOKEN) else token_file()
        return f"the cluster does not take the token in {found}; {copy}"
    if os.environ.get(MODE, "token").lower() != "token":
        return f"the cluster asks for a token, but {MODE}={os.environ[MODE]} here; unset it"
    return (
        f"the cluster asks for a token, and there is none in {token_file()}; {copy}, or name the file in {TOKEN_PATH}"
    )
