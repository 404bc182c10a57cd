"""What the processes of a cluster are told and say: lines of JSON, down their standard input and up their standard output.

A node agent and a gateway are processes of their own, and know nothing of Ray; whoever starts them (an actor of Ray's, or a
test) keeps their standard input open. The first line there is a start; a gateway gets the list of nodes with each change,
and both a stop. Standard output carries one `Ready` or `Refused`, then, of a gateway, what nodes it would have. At the end of
file of its input a process ends at once, with all that it has started: whoever started it is gone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs

NODE_MODULE = "hasfaas.backends.cluster.node_process"
GATEWAY_MODULE = "hasfaas.backends.cluster.gateway_process"


@attrs.frozen
class Place:
    """A node of the cluster: the id that Ray gave it, a name for people, and the address that others reach it by."""

    node_id: str
    name: str
    host: str


@attrs.frozen
class Identity:
    """What a process shows the others: the authority (PEM), its certificate and key, and the key that signs bundles (hex)."""

    ca_pem: str
    cert_pem: str
    key_pem: str = attrs.field(repr=False)
    signing_key: str = attrs.field(repr=False)


@attrs.frozen
class StartNode:
    """The first line to a node agent. `settings_json` is `Settings.to_json()`; both folders are this process's own."""

    place: Place
    identity: Identity
    settings_json: str
    state_dir: str
    runtime_dir: str


@attrs.frozen
class StartGateway:
    """The first line to a gateway. `tokens` is the text of the tokens file that it begins with."""

    place: Place
    identity: Identity
    settings_json: str
    state_dir: str
    runtime_dir: str
    tokens: str = attrs.field(repr=False)


@attrs.frozen
class NodeAddress:
    """A node agent that listens."""

    place: Place
    port: int


@attrs.frozen
class Nodes:
    """To a gateway: all node agents that there are now."""

    nodes: tuple[NodeAddress, ...]


@attrs.frozen
class Stop:
    """Finish what you have, end what you started, and end."""


@attrs.frozen
class Ready:
    """It listens on this port. `generation` is, of a gateway, that of the state it has taken over."""

    port: int
    generation: int = 0


@attrs.frozen
class Refused:
    """It could not start: a google.rpc.Status, in hex."""

    status: str


@attrs.frozen
class Ask:
    """From a gateway: resources of nodes that it has no room without, as Ray names them; empty once it has."""

    bundles: tuple[Mapping[str, float], ...]


Line = StartNode | StartGateway | Nodes | Stop | Ready | Refused | Ask
_KINDS: dict[str, type[Any]] = {
    cls.__name__: cls for cls in (StartNode, StartGateway, Nodes, Stop, Ready, Refused, Ask)
}


def write(line: Line) -> bytes:
    """The line, with its end."""
    return json.dumps({type(line).__name__: attrs.asdict(line)}).encode() + b"\n"


def read(text: bytes | str) -> Line:
    """The line back. Only our own processes write these: what is none of them is a bug, and raises as such."""
    ((name, fields),) = json.loads(text).items()
    if "place" in fields:
        fields["place"] = Place(**fields["place"])
    if "identity" in fields:
        fields["identity"] = Identity(**fields["identity"])
    if "nodes" in fields:
        fields["nodes"] = tuple(NodeAddress(Place(**n["place"]), n["port"]) for n in fields["nodes"])
    if "bundles" in fields:
        fields["bundles"] = tuple(fields["bundles"])
    line: Line = _KINDS[name](**fields)
    return line
