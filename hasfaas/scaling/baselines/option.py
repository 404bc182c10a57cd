"""Options of scalers: what they may be, said in words when they are not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs

from hasfaas.core.errors import InvalidRequestError


def between(low: float, high: float = math.inf) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    """An attrs validator: a finite number in [low, high]. Raises InvalidRequestError (BAD_POLICY) that names the option."""

    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high or not math.isfinite(value):
            allowed = f"in [{low:g}, {high:g}]" if math.isfinite(high) else f"of at least {low:g}"
            raise InvalidRequestError(
                f"{attribute.name}={value!r} of {type(instance).__name__} must be a number {allowed}",
                reason="BAD_POLICY",
            )

    return check
