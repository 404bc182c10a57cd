"""A backend with a gateway for each project: two checkouts share neither functions, nor versions, nor logs.

A project is the nearest folder, from the working directory upwards, that holds a hasfaas.toml, a pyproject.toml or a .git.
Each gateway takes the configured devices for its own, so `down` one before another has to keep a promise on the same device.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import attrs

from hasfaas.core.settings import Settings
from hasfaas.core.signing import KEY_FILE, load_or_create_key
from hasfaas.sdk.backends import Backend, Endpoint, find_backend

__all__ = ["ProjectBackend"]

MARKS = ("hasfaas.toml", "pyproject.toml", ".git")


class ProjectBackend:
    """The local backend, in folders of the project that this process was started in."""

    def __init__(self, settings: Settings) -> None:
        self._key = settings.state_dir / KEY_FILE
        self._settings = settings_of(settings, project_of(Path.cwd()))
        self._local: Backend = find_backend(self._settings)

    def endpoint(self, announce: Callable[[str], None]) -> Endpoint:
        """The project's gateway, started if need be."""
        self._share_key()
        return self._local.endpoint(announce)

    def up(self) -> bool:
        """Starts the project's gateway, to stay."""
        self._share_key()
        return self._local.up()

    def down(self) -> bool:
        """Ends the project's gateway, and no other."""
        return self._local.down()

    def running(self) -> Endpoint | None:
        """The project's gateway, if it answers."""
        return self._local.running()

    def _share_key(self) -> None:
        """Clients sign with this user's key, so the gateway has to check with the same one, not with one of its own."""
        load_or_create_key(self._key)
        own = self._settings.state_dir / KEY_FILE
        own.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            own.symlink_to(self._key)


def project_of(folder: Path) -> Path:
    """The project that a folder is in; the folder itself when it is in none."""
    return next((one for one in (folder, *folder.parents) if any((one / mark).exists() for mark in MARKS)), folder)


def settings_of(settings: Settings, project: Path) -> Settings:
    """The settings of a project's gateway. They say `local`: functions that call functions find it by them alone."""
    tag = hashlib.sha256(os.fsencode(project)).hexdigest()[:8]
    return attrs.evolve(
        settings,
        backend="local",
        state_dir=settings.state_dir / "projects" / f"{project.name or 'root'}-{tag}",
        runtime_dir=settings.runtime_dir.with_name(f"{settings.runtime_dir.name}-{tag}"),
    )
