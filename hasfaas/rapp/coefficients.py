"""The trained coefficients that ship with the package: arrays by name in one small .npz file, and where they come from.

Keys are `part/name`, such as `v100/mean`; `meta` holds the version, the sources and the licences as JSON. The file
is written the same, byte for byte, from the same arrays.
"""

from __future__ import annotations

import functools
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hasfaas.core.errors import InvalidRequestError

SHIPPED = Path(__file__).with_name("coefficients.npz")
FORM = 1

Arrays = Mapping[str, np.ndarray[Any, Any]]


def write(path: str | Path, arrays: Arrays, meta: Mapping[str, object]) -> None:
    """Writes the arrays in the order of their names, with `meta` beside them."""
    text = json.dumps({"form": FORM, **meta}, sort_keys=True, indent=1)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(arrays):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.asarray(arrays[name], order="C"), allow_pickle=False)
            # A fixed date: the file shall depend on the numbers alone.
            archive.writestr(
                zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), buffer.getvalue(), zipfile.ZIP_DEFLATED
            )
        archive.writestr(zipfile.ZipInfo("meta.json", (1980, 1, 1, 0, 0, 0)), text, zipfile.ZIP_DEFLATED)


def read(path: str | Path) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """The arrays and `meta`. Raises InvalidRequestError if the file is missing, broken or of another form."""
    try:
        with zipfile.ZipFile(path) as archive:
            meta = json.loads(archive.read("meta.json"))
            arrays = {
                name.removesuffix(".npy"): np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)
                for name in archive.namelist()
                if name.endswith(".npy")
            }
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as exc:
        raise InvalidRequestError(
            f"coefficients={str(path)!r} cannot be read: {exc}", reason="BAD_COEFFICIENTS"
        ) from exc
    if meta.get("form") != FORM:
        raise InvalidRequestError(
            f"coefficients={str(path)!r} are of form {meta.get('form')!r}, this version reads {FORM}: run hasfaas rapp train",
            reason="BAD_COEFFICIENTS",
        )
    return arrays, meta


@functools.cache
def shipped() -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """The coefficients in the package, read once."""
    return read(SHIPPED)


def part(arrays: Arrays, name: str) -> dict[str, np.ndarray[Any, Any]]:
    """Those arrays whose key begins with `name/`, without it."""
    return {key.removeprefix(f"{name}/"): value for key, value in arrays.items() if key.startswith(f"{name}/")}
