"""What a node agent takes out of Ray's books, so that Ray gives it to nobody else, and which devices it then has.

Pure. Ray counts GPUs and CPUs and divides them on paper only; hasfaas takes whole ones and divides them itself. A node where
the `[[devices]]` tables come to nothing gets no agent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from hasfaas.core.errors import InvalidRequestError
from hasfaas.core.settings import AUTO, DeviceSettings

CPU, CUDA = "cpu", "cuda"


@attrs.frozen
class RayNode:
    """A node as Ray lists it: its id, a name for people, the address that others reach it by, and what it has in all."""

    node_id: str
    name: str
    host: str
    cpus: float = 0.0
    gpus: float = 0.0


@attrs.frozen
class Reservation:
    """What one node's agent takes."""

    cpus: float = 0.0
    gpus: float = 0.0

    @property
    def bundle(self) -> Mapping[str, float]:
        """As Ray names resources, without those of which it takes none."""
        return {name: amount for name, amount in (("CPU", self.cpus), ("GPU", self.gpus)) if amount}


def ray_node(entry: Mapping[str, Any]) -> RayNode:
    """An entry of `ray.nodes()`. A node goes by the name it was started with (`ray start --node-name`), else by its host's:
    Ray calls one without a name by its address."""
    host, named = entry["NodeManagerAddress"], entry.get("NodeName", "")
    name = named if named and named != host else entry["NodeManagerHostname"]
    resources = entry.get("Resources", {})
    return RayNode(entry["NodeID"], name, host, float(resources.get("CPU", 0)), float(resources.get("GPU", 0)))


def reservation(tables: Iterable[DeviceSettings], node: RayNode) -> Reservation | None:
    """What the agent of `node` takes for these tables; None where they come to nothing there.

    GPUs for what is on GPUs, cores for a `cpu` device (its `cores`, else all that the node has), nothing for `sim` or a kind
    of one's own. More than the node has is not asked for: Ray would wait for it for ever, and the agent says what is missing.
    """
    kinds = [(table, _kind(table, gpus=node.gpus >= 1)) for table in _bound(tables, node.name)]
    there = [(table, kind) for table, kind in kinds if _comes_to_something(kind, node)]
    if not there:
        return None
    cores = [table.cores or node.cpus for table, kind in there if kind == CPU]
    gpus = [node.gpus if _takes_all(table) else table.count for table, kind in there if kind == CUDA]
    return Reservation(float(min(int(node.cpus), max(cores, default=0))), float(min(int(node.gpus), sum(gpus))))


def on_node(
    tables: Iterable[DeviceSettings], name: str, *, gpu_ids: Sequence[str], cores: int
) -> tuple[DeviceSettings, ...]:
    """The tables as the agent of the node `name` reads them, which was given these GPUs and so many cores: `auto` and a
    number of GPUs become the very GPUs that Ray gave, and a `cpu` device has no more cores than were reserved.

    Raises InvalidRequestError where Ray gave fewer GPUs than the tables ask for.
    """
    tables = _bound(tables, name)
    left = [gpu_id for gpu_id in gpu_ids if gpu_id not in {str(table.gpu) for table in tables}]
    found: list[DeviceSettings] = []
    for table in tables:
        kind = _kind(table, gpus=bool(gpu_ids))
        if kind == CPU and cores:
            found.append(attrs.evolve(table, kind=kind, cores=table.cores or cores))
        elif kind == CUDA and gpu_ids and table.gpu is None:
            count = len(left) if table.kind == AUTO else table.count
            if count > len(left):
                raise InvalidRequestError(
                    f"devices: count={count} GPUs are asked for, and of those that Ray has on this node {len(left)} are left "
                    f"({', '.join(gpu_ids)}): ask for fewer",
                    reason="BAD_OPTION",
                )
            found += _one_each(table, left[:count])
            left = left[count:]
        elif kind not in (CPU, CUDA) or (kind == CUDA and gpu_ids):
            found.append(table)
    return tuple(found)


def _bound(tables: Iterable[DeviceSettings], name: str) -> tuple[DeviceSettings, ...]:
    """Those that are for each node, and those for the node of this name."""
    return tuple(table for table in tables if table.node in (None, name))


def _kind(table: DeviceSettings, *, gpus: bool) -> str:
    return table.kind if table.kind != AUTO else CUDA if gpus else CPU


def _comes_to_something(kind: str, node: RayNode) -> bool:
    return {CPU: node.cpus >= 1, CUDA: node.gpus >= 1}.get(kind, True)


def _takes_all(table: DeviceSettings) -> bool:
    """`auto` is all GPUs. One that is named is sure with all of them only: which GPUs it gives is Ray's choice."""
    return table.kind == AUTO or table.gpu is not None


def _one_each(table: DeviceSettings, gpu_ids: Sequence[str]) -> list[DeviceSettings]:
    several = len(gpu_ids) > 1
    return [
        attrs.evolve(
            table,
            kind=CUDA,
            count=1,
            gpu=int(gpu_id) if gpu_id.isdigit() else gpu_id,
            id=f"{table.id}{index}" if table.id and several else table.id,
        )
        for index, gpu_id in enumerate(gpu_ids)
    ]
