"""Check that a Ray head answers at RAY_ADDRESS. Ray itself would retry for minutes, or exit with a page of text."""

import os

import grpc
from ray._common.utils import get_ray_address_file
from ray._private import services
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS

from oasisgen.errors import UserError

SECONDS = 10.0  # for an answer
QUESTION = "/ray.rpc.NodeInfoGcsService/GetClusterId"  # only a Ray head implements it


def require_ray() -> None:
    """Raise UserError unless `ray.init` will start its own Ray, or a head answers at the address that it will use."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith("http"):
        raise UserError(
            f"RAY_ADDRESS={address} is for `ray job submit`: to run the driver yourself, give the head's host:6379"
        )
    if "://" in address:  # Ray Client has no object store in the driver, and no Ray Train or Ray Data
        raise UserError(
            f"RAY_ADDRESS={address} is for Ray Client, which these jobs do not support: give the head's host:6379 on "
            "a node of the cluster, or use `ray job submit`"
        )
    try:
        head = services.canonicalize_bootstrap_address(None)  # type: ignore[arg-type]  # as ray.init calls it
    except (ValueError, ConnectionError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"no Ray at RAY_ADDRESS={address} ({reason}): set it to host:port, or unset it") from None
    if head and (reason := answers_wrong(head)):
        if address:
            raise UserError(f"no Ray at RAY_ADDRESS={address} ({reason}): start Ray there, or unset it")
        note = get_ray_address_file(None)
        raise UserError(f"no Ray at {head}, which {note} names ({reason}): remove that file, or set RAY_ADDRESS=local")


def answers_wrong(head: str) -> str:
    """Why there is no head at host:port; empty if there is. A head that refuses the call for lack of a token counts."""
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
