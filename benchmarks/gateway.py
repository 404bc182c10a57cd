"""A gateway of the benchmark's own, in folders of its own, so that it never meets the user's."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from hasfaas.sdk.client import Client, set_default_client
from hasfaas.sdk.config import load


@contextlib.contextmanager
def running_gateway(settings: Mapping[str, object] | None = None) -> Iterator[Client]:
    """A fresh gateway that this process's functions use; ended, with all it stored, at the end. Nothing is sized by itself in
    it, unless the settings say so."""
    with tempfile.TemporaryDirectory(prefix="hf-") as folder:
        own = {"state_dir": f"{folder}/state", "runtime_dir": f"{folder}/run", "scaling": {"enabled": False}}
        client = Client(load({**own, **(settings or {})}, cwd=Path(folder), env={}).settings)
        client.backend.up()
        set_default_client(client)
        try:
            yield client
        finally:
            set_default_client(None)
            client.backend.down()
