"""The variables that a function asks for in its replicas' environment: plain values, and names of secrets.

Law: no value of a secret is ever in an option, so that none gets into a version, a bundle, a store or a message. Whatever is
refused here may have been meant as one, so messages hold names and never values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from hasfaas.core.errors import InvalidRequestError

MOST_VARIABLES = 64
# What is told to a replica goes in one message of at most 200 kB, in which a character may take six times its size.
MOST_ENV_BYTES = 16 << 10
MOST_SECRET_BYTES = 64 << 10
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
# What decides which device and lane a replica has, how many threads it computes with, what its interpreter loads, and which
# gateway it calls is not a function's to say.
OWN_PREFIXES = ("HASFAAS_", "CUDA_MPS_", "LD_", "PYTHON")
OWN_NAMES = frozenset(
    {
        "CUDA_DEVICE_ORDER",
        "CUDA_VISIBLE_DEVICES",
        "NVIDIA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
    }
)


def ordered(names: Sequence[str]) -> Sequence[str]:
    """Names in one order, whichever they were given in; what is no list of names stays as it is, to be refused."""
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return tuple(sorted(names))
    return names


def copied(env: Mapping[str, str]) -> Mapping[str, str]:
    """A mapping of one's own; what is none stays as it is, to be refused."""
    return dict(env) if isinstance(env, Mapping) else env


def check_env(env: object) -> None:
    """Raises InvalidRequestError for what cannot be a function's `env`."""
    if not isinstance(env, Mapping):
        raise _bad("env", f'give a mapping of names to text, such as {{"MODE": "fast"}}, not a {type(env).__name__}')
    for name, value in env.items():
        _check_name("env", name)
        if not isinstance(value, str) or "\0" in value or not _is_unicode(value):
            raise _bad(f"env[{name!r}]", "give text, without a zero character in it")
    _check_count("env", len(env))
    size = sum(len(name) + len(value.encode()) for name, value in env.items())
    if size > MOST_ENV_BYTES:
        raise _bad(
            "env", f"{size} bytes of names and values, and at most {MOST_ENV_BYTES} may be; put more into a file"
        )


def check_secrets(secrets: object, env: Mapping[str, str]) -> None:
    """Raises InvalidRequestError for what cannot be a function's `secrets` beside this `env`."""
    if not isinstance(secrets, tuple):
        raise _bad("secrets", f'give a tuple of names, such as ("HF_TOKEN",), not a {type(secrets).__name__}')
    for name in secrets:
        _check_name("secrets", name)
        if name in env:
            raise _bad("secrets", f"{name} is in env too; take it out of one of them")
    if len(set(secrets)) < len(secrets):
        raise _bad("secrets", "a name stands there twice; give each once")
    _check_count("secrets", len(secrets))


def _check_name(option: str, name: object) -> None:
    if not isinstance(name, str):
        raise _bad(option, f"give names as text, not a {type(name).__name__}")
    if not _NAME.fullmatch(name):
        shown = repr(name) if option == "env" else "one of them"
        raise _bad(option, f"{shown} is no name of a variable; give up to 128 letters, digits and _, no digit first")
    if name in OWN_NAMES or name.startswith(OWN_PREFIXES):
        raise _bad(option, f"{name} is set by hasfaas or by a replica's device; leave it out")


def _check_count(option: str, count: int) -> None:
    if count > MOST_VARIABLES:
        raise _bad(option, f"{count} variables, and at most {MOST_VARIABLES} may be; put some into a file")


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _bad(option: str, cure: str) -> InvalidRequestError:
    return InvalidRequestError(f"{option}: {cure}", reason="BAD_OPTION")
