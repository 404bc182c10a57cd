"""A channel that shows a token with every RPC, and the token itself, read from its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from hasfaas.core.errors import AuthError
from hasfaas.core.own_file import read_own
from hasfaas.core.tokens import MOST_CHARACTERS, NO_TOKEN, Token, parse


def read_token(path: Path) -> Token:
    """The token in a file of this user. Raises AuthError that names the file: NO_TOKEN where there is none, BAD_TOKEN,
    UNSAFE_FILE where others can read it."""
    try:
        content = read_own(path, "the token", "ask for a new one", most_bytes=MOST_CHARACTERS + 1)
    except AuthError:
        raise
    except OSError as exc:
        raise AuthError(
            f"cluster.token_file={path}: {exc.strerror}; put a token there that `hasfaas token create` printed where the "
            "gateway runs",
            reason=NO_TOKEN,
        ) from exc
    try:
        return parse(content.decode("ascii", "replace"))
    except AuthError as exc:
        raise AuthError(f"cluster.token_file={path}: {exc.message}", reason=exc.reason) from None


class TokenChannel:
    """What a stub asks of a channel. gRPC's own call credentials refuse a plain line to loopback: the header is set here."""

    def __init__(self, channel: grpc.aio.Channel, token: Token) -> None:
        self._channel = channel
        self._metadata = (("authorization", f"Bearer {token.text}"),)

    def unary_unary(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        return self._shown(self._channel.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        return self._shown(self._channel.unary_stream(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        return self._shown(self._channel.stream_stream(*args, **kwargs))

    def _shown(self, start: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return start(*args, metadata=self._metadata, **kwargs)

        return call
