"""The tokens of a cluster: `tokens.json` at `cluster.state_url`, in the form of any gateway's file of tokens (no secrets).

The shell writes it from wherever the store is reached; the gateway copies it every few seconds into its own file, which it
reads again as usual. Two shells that write at once take turns on a file system; on a store without locks the one whose write
was replaced is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from hasfaas.backends.cluster.state_folder import open_folder
from hasfaas.core import token_file
from hasfaas.core.errors import ConflictError
from hasfaas.core.own_file import write_own
from hasfaas.core.tokens import Grant

TOKENS = "tokens.json"


class SharedTokens:
    """The tokens at one URL. Each method raises UnavailableError (STATE_UNAVAILABLE) when the store cannot do it."""

    def __init__(self, url: str) -> None:
        """Raises InvalidRequestError for a URL that cannot be."""
        self._folder = open_folder(url)
        self._where = f"{self._folder.url}/{TOKENS}"

    def begin(self, text: bytes) -> None:
        """Puts these tokens there, unless there are some: a cluster's first gateway brings those it was started with."""
        with self._folder.alone():
            if self._folder.read(TOKENS) is None:
                self._folder.write(TOKENS, text)

    def pull(self, path: Path) -> bool:
        """Copies the tokens to a gateway's own file; whether they had changed. Without any there it stays as it is. A damaged
        text is copied too: from then on the gateway lets nobody in, and says so."""
        text = self._folder.read(TOKENS)
        if text is None or (path.exists() and path.read_bytes() == text):
            return False
        write_own(path, text)
        return True

    def read(self) -> dict[str, Grant]:
        """The tokens by name. Raises AuthError for damaged ones."""
        text = self._folder.read(TOKENS)
        return {} if text is None else token_file.parse(text, self._where)

    def add(self, grant: Grant) -> None:
        """Adds a token. Raises InvalidRequestError when its name is taken, ConflictError."""
        self._change(lambda grants: token_file.added(grants, grant))

    def remove(self, name: str) -> None:
        """Takes a token out. NotFoundError when there is none of that name, ConflictError."""
        self._change(lambda grants: token_file.removed(grants, name, self._where))

    def _change(self, change: Callable[[Mapping[str, Grant]], Mapping[str, Grant]]) -> None:
        with self._folder.alone():
            text = token_file.text(change(self.read()))
            self._folder.write(TOKENS, text)
            if self._folder.read(TOKENS) != text:
                raise ConflictError(
                    f"{self._where} was changed by somebody else at the same moment: see `hasfaas token list`, and try again",
                    reason="TOKENS_CHANGED",
                )
