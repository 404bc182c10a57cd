"""What the Ray side of a cluster passes around: what its actors are started with, and what they say of themselves.

Values only; nothing here knows Ray.
"""

from __future__ import annotations

import hashlib

import attrs

from hasfaas.backends.cluster.child import GATEWAY_MODULE, NODE_MODULE, Identity, Place
from hasfaas.backends.cluster.members import Member
from hasfaas.core.version import VERSION


@attrs.frozen
class Launch:
    """What a cluster is started with: settings (`Settings.to_json()`), what gateway and node agents show each other, and the
    text of the tokens file. `version` is the hasfaas that wrote it; the modules are what the two children run."""

    settings_json: str
    gateway: Identity
    node: Identity
    tokens: str = attrs.field(repr=False)
    version: str = VERSION
    gateway_module: str = GATEWAY_MODULE
    node_module: str = NODE_MODULE

    @property
    def launch_id(self) -> str:
        """Names this launch: other settings or other certificates make another. It gives nothing of them away."""
        parts = (self.version, self.settings_json, self.gateway.cert_pem, self.node.cert_pem)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def on_node(self, place: Place) -> NodeLaunch:
        """What a node needs of it: neither the gateway's key nor the tokens."""
        return NodeLaunch(self.launch_id, place, self.node, self.settings_json, self.version, self.node_module)


@attrs.frozen
class NodeLaunch:
    """What a node's actor is started with."""

    launch_id: str
    place: Place
    identity: Identity
    settings_json: str
    version: str
    module: str


@attrs.frozen
class AgentState:
    """A node's actor. `refused` is a google.rpc.Status in hex, why its child cannot start; `port` is 0 while it has none."""

    place: Place
    launch_id: str
    pid: int
    child_pid: int = 0
    port: int = 0
    refused: str = ""


@attrs.frozen
class GatewayState:
    """The gateway's child. `port` is 0 while none listens."""

    host: str
    pid: int = 0
    port: int = 0
    generation: int = 0
    refused: str = ""
    starts: int = 0


@attrs.frozen
class ControlState:
    """The control actor, and all that it sees. `hosts` are the addresses where the gateway is or may come to be; `asked` are
    the bundles that the gateway would have of Ray's autoscaler."""

    launch_id: str
    ca_pem: str
    settings_json: str = attrs.field(repr=False)
    version: str
    node_id: str
    pid: int
    gateway: GatewayState
    members: tuple[Member, ...]
    hosts: tuple[str, ...]
    asked: tuple[dict[str, float], ...] = ()
    trouble: str = ""


@attrs.frozen
class Stopped:
    """How a cluster ended: whether the gateway and which nodes finished by themselves, and which had to be ended."""

    gateway: bool
    nodes: tuple[str, ...]
    ended: tuple[str, ...] = ()
