"""The arguments of `hasfaas invoke` as Python values.

JSON where it parses as JSON, else text; `key=value` is a keyword argument; `@file` is what the file holds by its
ending; `@@text` is "@text"; `-` is standard input. Law: no pickle is ever read.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs

from hasfaas.core.errors import InvalidRequestError

NPY_MAGIC = b"\x93NUMPY"


@attrs.frozen
class Given:
    """The arguments of a call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = attrs.field(hash=False)


def parse(texts: Sequence[str], read_stdin: Callable[[], bytes]) -> Given:
    """The values. Raises InvalidRequestError that names the argument, or the file, and the cure."""
    if sum(text == "-" or text.endswith("=-") for text in texts) > 1:
        raise InvalidRequestError("- (standard input) can be given to one argument only")
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for text in texts:
        key, mark, rest = text.partition("=")
        if not (mark and key.isidentifier()):
            args.append(_value(text, read_stdin))
        elif key in kwargs:
            raise InvalidRequestError(f"argument {key} is given twice")
        else:
            kwargs[key] = _value(rest, read_stdin)
    return Given(tuple(args), kwargs)


def _value(text: str, read_stdin: Callable[[], bytes]) -> Any:
    if text == "-":
        return _of_stdin(read_stdin())
    if text.startswith("@@"):
        return text[1:]
    if text.startswith("@") and len(text) > 1:
        return read_file(Path(text[1:]))
    return _json_or_text(text)


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _of_stdin(data: bytes) -> Any:
    if data.startswith(NPY_MAGIC):
        return _numpy("- (standard input)", io.BytesIO(data))
    try:
        return _json_or_text(data.decode())
    except UnicodeDecodeError:
        return data


def read_file(file: Path) -> Any:
    """What a file holds: arrays (.npy), a dict of arrays (.npz), JSON, a uint8 image of H x W x 3, text, else bytes.

    Raises InvalidRequestError for one that cannot be read, or is not what its ending says.
    """
    readers: dict[str, Callable[[Path], Any]] = {
        ".npy": lambda path: _numpy(f"@{path}", path),
        ".npz": lambda path: _numpy(f"@{path}", path),
        ".json": lambda path: json.loads(path.read_bytes()),
        ".txt": lambda path: path.read_bytes().decode(),
        ".png": _image,
        ".jpg": _image,
        ".jpeg": _image,
    }
    try:
        return readers.get(file.suffix.lower(), Path.read_bytes)(file)
    except InvalidRequestError:
        raise  # said already; it is a ValueError too
    except OSError as exc:
        why = exc.strerror or str(exc)
    except ValueError as exc:  # not JSON, not UTF-8
        why = f"not what its ending says: {exc}"
    raise InvalidRequestError(f"argument @{file} cannot be read: {why}; to send text that starts with @, write @@")


def _numpy(name: str, file: Path | io.BytesIO) -> Any:
    import numpy as np

    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                return {key: loaded[key] for key in loaded.files}
    except (ValueError, EOFError) as exc:
        raise InvalidRequestError(f"argument {name} is no array that can be read without pickle: {exc}") from exc
    return loaded


def _image(file: Path) -> Any:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as exc:
        raise InvalidRequestError(
            f"argument @{file}: reading images needs Pillow, which is not installed: pip install 'hasfaas[images]'"
        ) from exc
    import numpy as np

    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"), dtype=np.uint8)
    except UnidentifiedImageError as exc:
        raise InvalidRequestError(f"argument @{file} is no image that Pillow can read") from exc
