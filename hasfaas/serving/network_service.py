"""The gateway's service to callers on other machines: the same queues and functions, on stricter terms.

They share no memory with this host, so no segment of it is opened for them. A pickle runs code where it is read, which is the
right to deploy: a token without it sends plain values. A deploy is signed with the deployer's token, and then by this gateway
for its replicas, which run it on the gateway's own interpreter.
"""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from hasfaas.core.errors import AuthError
from hasfaas.core.signing import check_proof
from hasfaas.core.tokens import SCOPE, Grant
from hasfaas.serving.access import Access
from hasfaas.serving.challenges import Challenges
from hasfaas.serving.failure import Context, guard
from hasfaas.serving.gateway import Admitted, GatewayService, Terms
from hasfaas.wire.deploy_proof import signed_parts
from hasfaas.wire.status import ADDRESSES_KEY
from hasfaas.wire.v1 import functions_pb2 as pb

# Metadata is bounded, and one that answers is enough.
MOST_ADDRESSES = 64


class NetworkService(GatewayService):
    """GatewayService beyond this host. Behind it stands a guard that has checked the token's scope."""

    def __init__(
        self, own: GatewayService, access: Access, addresses: Callable[[], Sequence[str]] = lambda: ()
    ) -> None:
        """`own` serves this host: both have the same state, locks and queues included. `addresses` are those where a gateway
        may be found should this one go: clients are told, the first of them first."""
        vars(self).update(vars(own))
        self._access = access
        self._addresses = addresses
        self._challenges = Challenges()

    async def Session(  # type: ignore[override]  # noqa: N802
        self, request_iterator: AsyncIterator[pb.SessionRequest], context: Context
    ) -> None:
        if addresses := self._addresses()[:MOST_ADDRESSES]:
            await context.send_initial_metadata(((ADDRESSES_KEY, ",".join(addresses)),))
        await super().Session(request_iterator, context)

    async def BeginDeploy(  # noqa: N802
        self, request: pb.BeginDeployRequest, context: Context
    ) -> pb.BeginDeployResponse:
        async def answer() -> pb.BeginDeployResponse:
            word = self._challenges.give(self._grant(context).name, now_s=time.monotonic())
            return pb.BeginDeployResponse(challenge=word)

        return await guard(context, answer())

    def _terms(self, context: Context) -> Terms:
        return Terms(segments=False, pickles="deploy" in self._grant(context).scopes)

    def _admit(self, request: pb.DeployRequest, context: Context) -> Admitted:
        grant = self._grant(context)
        if grant.signing_key is None:
            raise AuthError(f"token {grant.name!r} gives no right to deploy", reason=SCOPE)
        self._challenges.take(request.challenge, grant.name, now_s=time.monotonic())
        check_proof(grant.signing_key, signed_parts(request), request.signature)
        return Admitted(self._control.sign(request.bundle), python=sys.executable)

    def _grant(self, context: Context) -> Grant:
        metadata: Any = context.invocation_metadata() or ()
        return self._access.grant(metadata)
