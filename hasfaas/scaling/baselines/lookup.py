"""Scalers by name. A scaler's module is imported when it is asked for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any, cast

import attrs

from hasfaas.core.errors import InvalidRequestError
from hasfaas.scaling.policy import Policy


@attrs.frozen
class _Entry:
    """Where a scaler's class lies, and the options that its name decides."""

    module: str
    kind: str
    preset: Mapping[str, Any] = attrs.field(factory=dict, hash=False)


_BASELINES = "hasfaas.scaling.baselines"
_ENTRIES = {
    "hybrid": _Entry("hasfaas.scaling.scaler", "HybridScaler"),
    "kpa": _Entry(f"{_BASELINES}.kpa", "Kpa"),
    "ray": _Entry(f"{_BASELINES}.ray_serve", "RayServe"),
    "fast": _Entry(f"{_BASELINES}.fast_gshare", "FastGShare"),
    "fixed": _Entry(f"{_BASELINES}.fixed_slice", "FixedSlice"),
    "has": _Entry(f"{_BASELINES}.has_gpu", "HasGpu", {"repaired": False}),
    "has-repaired": _Entry(f"{_BASELINES}.has_gpu", "HasGpu", {"repaired": True}),
    "oracle": _Entry(f"{_BASELINES}.oracle", "Oracle"),
}
NAMES = tuple(_ENTRIES)
"""All known scalers; `hybrid` is ours."""


def named(name: str, **options: Any) -> Policy:
    """A fresh scaler, that remembers nothing yet.

    "fixed" needs `mean_rps` [function], "oracle" needs `rates_rps` [function, second]. Raises InvalidRequestError
    (BAD_POLICY) for an unknown name or option, listing the known ones, and for one that is missing or out of range.
    """
    if name not in _ENTRIES:
        raise _bad(f"policy={name!r} is unknown: use one of {', '.join(NAMES)}")
    entry = _ENTRIES[name]
    kind = getattr(import_module(entry.module), entry.kind)
    known = {key: p for key, p in inspect.signature(kind).parameters.items() if key not in entry.preset}
    for key in options:
        if key not in known:
            raise _bad(f"option {key!r} of policy {name!r} is unknown: use one of {', '.join(known) or 'none'}")
    for key, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and key not in options:
            raise _bad(f"policy {name!r} needs the option {key!r}")
    return cast(Policy, kind(**entry.preset, **options))


def _bad(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, reason="BAD_POLICY")
