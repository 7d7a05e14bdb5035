"""``python -m fedkd.deploy.health HOST:PORT``: whether a SuperLink or SuperNode there is well.

For container health checks. It asks what Flower's ``--health-server-address`` answers.
"""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_SECONDS = 5.0


def is_serving(address: str) -> bool:
    """Whether a health server at an address says that its program is serving."""
    with grpc.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest()
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_SECONDS)
        except grpc.RpcError:
            return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    sys.exit(0 if is_serving(sys.argv[1]) else 1)
