"""Amounts of memory as people write them: "2GiB", "512MiB", "1.5GB", or plain bytes.

Binary units (KiB, MiB, GiB, TiB) are powers of 1024, decimal ones (kB, MB, GB, TB) powers of 1000. A fraction
of a byte is rounded down, and `format_memory` never rounds: what it writes is read back to the same number.
"""

from __future__ import annotations

import re

from hasfaas.core.errors import InvalidRequestError

_BINARY = {"TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
_DECIMAL = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "kB": 10**3}
_UNITS = {name.lower(): factor for name, factor in (_BINARY | _DECIMAL | {"B": 1}).items()} | {"": 1}
_PATTERN = re.compile(r"([0-9]+)(?:\.([0-9]+))?\s*([a-zA-Z]*)", re.ASCII)
# No machine has more, and a longer number is refused before it is multiplied.
_MOST_BYTES = 2**63 - 1
_LONGEST_TEXT = 40


def _refused(value: object, why: str) -> InvalidRequestError:
    return InvalidRequestError(
        f'memory={value!r} {why}; write it as "2GiB", "512MiB", "1.5GB", or as a whole number of bytes',
        reason="BAD_OPTION",
    )


def parse_memory(value: str | int) -> int:
    """Bytes in `value`: text with a unit (upper or lower case), or a whole number of bytes.

    Raises InvalidRequestError when it is neither, or is not between 1 byte and 2^63 - 1 bytes.
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _refused(value, "is not an amount of memory")
    count = value if isinstance(value, int) else _bytes_of(value)
    if not 1 <= count <= _MOST_BYTES:
        raise _refused(value, "is not between 1 byte and 2^63 - 1 bytes")
    return count


def _bytes_of(text: str) -> int:
    match = _PATTERN.fullmatch(text.strip()) if len(text) <= _LONGEST_TEXT else None
    if match is None:
        raise _refused(text, "is not a number with a unit")
    whole, fraction, unit = match[1], match[2] or "", match[3]
    factor = _UNITS.get(unit.lower())
    if factor is None:
        raise _refused(text, f"has the unknown unit {unit!r}")
    # Integers all the way: a float would lose bytes above 2^53.
    scale: int = 10 ** len(fraction)
    return int(whole + fraction) * factor // scale


def format_memory(size_bytes: int) -> str:
    """`size_bytes` in the largest binary unit that divides it, so that nothing is lost: "2GiB", "1536MiB".

    Raises InvalidRequestError when it is not between 1 byte and 2^63 - 1 bytes.
    """
    count = parse_memory(size_bytes)
    for unit, factor in _BINARY.items():
        if count % factor == 0:
            return f"{count // factor}{unit}"
    return f"{count}B"
