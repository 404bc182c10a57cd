"""What a deploy over a network is signed over: both ends make the same parts of a request."""

from __future__ import annotations

from hasfaas.wire.v1 import functions_pb2 as pb


def signed_parts(request: pb.DeployRequest) -> tuple[bytes, ...]:
    """All that decides what will run, and the challenge, which makes the signature good for this one deploy."""
    return (
        request.challenge,
        request.name.encode(),
        request.version.encode(),
        request.spec.SerializeToString(deterministic=True),
        bytes([request.warm]),
        request.bundle,
    )
