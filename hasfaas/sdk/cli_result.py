"""What `hasfaas invoke` does with a result: JSON on standard output, or a file."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from hasfaas.core.errors import InvalidRequestError

SUMMARISED_ABOVE = 1000
"""Elements: a larger array is shown by what is in it, not item by item."""


class Output:
    """Where results go: a file, or standard output. A stream is written as one JSON line an item."""

    def __init__(self, file: Path | None) -> None:
        """Raises InvalidRequestError now, rather than after the call, for a file that cannot be written."""
        if file is not None and file.suffix not in (".npy", ".json"):
            raise InvalidRequestError(f"--out {file}: give a name that ends in .npy (an array) or .json")
        if file is not None and not file.absolute().parent.is_dir():
            raise InvalidRequestError(f"--out {file}: there is no folder {file.absolute().parent}")
        self.file = file
        self.streams = False
        self._summarised = False
        self._written = 0

    def begin(self, *, streams: bool) -> None:
        """Before the call. Raises InvalidRequestError where what comes cannot go there."""
        self.streams = streams
        if streams and self.file is not None and self.file.suffix == ".npy":
            raise InvalidRequestError(f"--out {self.file}: the function streams; give a name that ends in .json")

    def write(self, value: object) -> None:
        """Writes the result, or one item of a stream. InvalidRequestError where the file cannot take it."""
        if self.file is None:
            click.echo(json.dumps(self.jsonable(value, limit=SUMMARISED_ABOVE)))
            return
        try:
            self._save(self.file, value)
        except OSError as exc:
            raise InvalidRequestError(f"--out {self.file} cannot be written: {exc.strerror or exc}") from exc

    def end(self) -> None:
        """After the last write: says on standard error what standard output does not show."""
        if self._summarised:
            click.echo(
                f"hasfaas: arrays above {SUMMARISED_ABOVE} elements are summarised; --out FILE keeps them", err=True
            )

    def _save(self, file: Path, value: object) -> None:
        array = as_array(value)
        if file.suffix == ".npy":
            if array is None:
                kind = type(value).__name__
                raise InvalidRequestError(f"--out {file}: the result is no array but {kind}; give a name in .json")
            import numpy as np

            np.save(file, array, allow_pickle=False)
        else:
            with file.open("a" if self._written else "w") as lines:
                lines.write(json.dumps(self.jsonable(value, limit=sys.maxsize)) + "\n")
        self._written += 1
        if not self.streams:
            what = f"{array.dtype} {array.shape}" if array is not None else type(value).__name__
            click.echo(f"hasfaas: wrote {file} ({what})", err=True)

    def jsonable(self, value: Any, *, limit: int) -> Any:
        """The value in JSON's own types; an array above `limit` elements as what is in it, other objects by repr."""
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (bytes, bytearray, memoryview)):
            return {"base64": base64.b64encode(value).decode()}
        if isinstance(value, Mapping):
            return {_key(key): self.jsonable(item, limit=limit) for key, item in value.items()}
        if isinstance(value, (set, frozenset)):
            return [self.jsonable(item, limit=limit) for item in sorted(value, key=repr)]
        if isinstance(value, (list, tuple)):
            return [self.jsonable(item, limit=limit) for item in value]
        array = as_array(value)
        if array is None:
            return repr(value)
        if array.size > limit:
            self._summarised = True
            return summary(array)
        return self.jsonable(array.tolist(), limit=limit)


def _key(key: object) -> str:
    """As JSON writes a key that is a scalar; by repr what JSON has no key for."""
    if isinstance(key, str):
        return key
    return json.dumps(key) if key is None or isinstance(key, (int, float)) else repr(key)


def as_array(value: Any) -> Any:
    """A numpy array or scalar, or a torch tensor, as an array; None for anything else. Imports neither of them."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        plain = value.detach().cpu()
        return (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
        return numpy.asarray(value)
    return None


def summary(array: Any) -> dict[str, object]:
    """What is in a large array. `min`, `max` and `mean` are null where its items have no order."""
    ordered = array.dtype.kind in "buif"
    return {
        "dtype": str(array.dtype),
        "shape": list(array.shape),
        "min": array.min().item() if ordered else None,
        "max": array.max().item() if ordered else None,
        "mean": float(array.mean(dtype="float64")) if ordered else None,
    }
