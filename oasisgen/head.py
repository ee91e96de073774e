"""Is there a Ray where RAY_ADDRESS says? Ray itself would try for minutes, or end the process with a page of text."""

import os

import grpc
from ray._common.utils import get_ray_address_file
from ray._private import services
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS

from oasisgen.errors import UserError

SECONDS = 10.0  # for an answer
QUESTION = "/ray.rpc.NodeInfoGcsService/GetClusterId"  # which only a head understands


def require_ray() -> None:
    """Raise UserError unless a head answers at the address that `ray.init` will take, or it will start one itself."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith("http"):
        raise UserError(
            f"RAY_ADDRESS={address} is for `ray job submit`: a driver of your own needs that of the head, :6379"
        )
    if "://" in address:  # through Ray's client a driver holds no slices, and Ray Train and Ray Data do not support it
        raise UserError(
            f"RAY_ADDRESS={address} is for Ray's client, which these jobs cannot use: name the head's host:6379 on a "
            "node of the cluster, or use `ray job submit`"
        )
    try:
        head = services.canonicalize_bootstrap_address(None)  # type: ignore[arg-type]  # as ray.init calls it
    except (ValueError, ConnectionError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"no Ray at RAY_ADDRESS={address} ({reason}): name host:port, or unset it") from None
    if head and (reason := answers_wrong(head)):
        if address:
            raise UserError(f"no Ray at RAY_ADDRESS={address} ({reason}): start it, or unset")
        note = get_ray_address_file(None)
        raise UserError(f"no Ray at {head}, which {note} names ({reason}): remove that file, or set RAY_ADDRESS=local")


def answers_wrong(head: str) -> str:
    """Why no head is at host:port; empty where there is one. Without a token a head answers that it wants one."""
    with init_grpc_channel(head, options=GLOBAL_GRPC_OPTIONS) as channel:
        try:
            channel.unary_unary(QUESTION)(b"", timeout=SECONDS)
        except grpc.RpcError as error:
            code = error.code()
            if code == grpc.StatusCode.UNIMPLEMENTED:
                return "something else answers there"
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                return "nothing answers there"
    return ""
