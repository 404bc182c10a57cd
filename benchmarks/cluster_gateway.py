"""A cluster's gateway that scales as Ray Serve does, over whole GPUs: the rival of the cluster benchmark, started in place of
`hasfaas.backends.cluster.gateway_process` and spoken to as that is. Nothing else of it differs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import attrs

from hasfaas.backends import scaling
from hasfaas.backends.cluster import gateway_process
from hasfaas.core.settings import ScalingSettings
from hasfaas.scaling.baselines.ray_serve import RayServe
from hasfaas.scaling.policy import Policy

MODULE = "benchmarks.cluster_gateway"


def whole_gpus() -> RayServe:
    """Ray Serve's rules with the short delays: with its own of 30 s and 600 s it would not act within a short run."""
    return RayServe(tuned=True)


def _rival(settings: ScalingSettings) -> tuple[Policy, Mapping[str, Any]]:
    return whole_gpus(), attrs.asdict(settings)


if __name__ == "__main__":
    scaling.hybrid = _rival
    asyncio.run(gateway_process.serve())
