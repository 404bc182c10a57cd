"""A node agent as the settings describe it, the same in every backend."""

from __future__ import annotations

from collections.abc import Sequence

from hasfaas.core.settings import Settings
from hasfaas.core.signing import KEY_FILE
from hasfaas.devices.base import DeviceInfo
from hasfaas.node.agent import AgentEvents, NodeAgent


def agent_of(settings: Settings, devices: Sequence[DeviceInfo], events: AgentEvents) -> NodeAgent:
    """An agent for these devices that keeps its files in the state folder, where the key that signs bundles lies too."""
    local = settings.local
    return NodeAgent(
        devices,
        log_dir=settings.state_dir / "logs",
        work_dir=settings.state_dir / "archives",
        key_path=settings.state_dir / KEY_FILE,
        window_ms=local.window_ms,
        quantum_ms=local.quantum_ms,
        start_timeout_s=settings.start_timeout_s,
        settings_json=settings.to_json(),
        events=events,
    )
