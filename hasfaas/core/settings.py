"""The settings as values: what they are, what each may be, and how they travel to a gateway process (JSON).

Where they come from (files, variables, the command line) is the business of `hasfaas.sdk.config`. A list is
one setting, replaced as a whole; tables are merged key by key.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from hasfaas.core import addresses, keys
from hasfaas.core.allocation import MAX_LANES
from hasfaas.core.errors import InvalidRequestError
from hasfaas.core.keys import ANY, Leaves, Place, Reader, Schema, Source
from hasfaas.core.memory import parse_memory
from hasfaas.core.spec import Batch, FunctionSpec

AUTO = "auto"
DEVICE_KINDS = ("cpu", "sim", "cuda")
_OWN_KEYS: Mapping[str, tuple[str, ...]] = {
    "cpu": ("cores",),
    "sim": ("sms", "cold_start_s", "profile", "lanes", "model"),
    "cuda": ("gpu", "partitions", "lanes", "protocol"),
}
PARTITIONS = ("auto", "static", "percentage", "none")
"""How the lanes of a GPU are kept apart: MPS static partitions, MPS percentages, the better of both, or one lane, no MPS."""
LOG_LEVELS = ("debug", "info", "warning", "error")
# The path of a unix socket has room for 108 bytes on Linux, with its closing zero; this keeps a margin.
SOCKET_PATH_BYTES = 100
GATEWAY_SOCKET = "gateway.sock"
FRAMES_SOCKET = "frames.sock"

_PROFILE_CURE = "give the path of a profile, or its table"


def _read_profile(place: Place, value: object) -> object:
    if isinstance(value, str | Path):
        return keys.read_path(place, value)
    if not isinstance(value, Mapping):
        raise place.refuse(value, _PROFILE_CURE)
    try:  # it goes to a gateway as JSON, so that is what it must be
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as exc:
        raise place.refuse(value, f"{_PROFILE_CURE}, of numbers, text and lists: {exc}") from exc
    return dict(value)


def _read_lanes(place: Place, value: object) -> tuple[float, ...]:
    given = value if isinstance(value, list | tuple) else ()
    if not given or any(isinstance(p, bool) or not isinstance(p, int | float) or not 0 < p <= 100 for p in given):
        raise place.refuse(value, "give a list of SM percents, such as [50, 25, 25]")
    if len(given) > MAX_LANES or sum(given) > 100.0 + 1e-9:
        raise place.refuse(value, f"give at most {MAX_LANES} SM percents that sum to at most 100")
    return tuple(float(percent) for percent in given)


def _read_gpu(place: Place, value: object) -> object:
    if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, str) and value.strip())):
        raise place.refuse(value, "give the number of a GPU, such as 0, or its UUID")
    return value


def _read_options(place: Place, value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise place.refuse(value, "give a table of the device's own options")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as exc:
        raise place.refuse(value, f"give numbers, text and lists: {exc}") from exc
    return dict(value)


@attrs.frozen
class DeviceSettings:
    """One `[[devices]]` table: `count` like devices.

    `kind` "auto" is this machine's GPUs, or its CPU where it has none. `memory` is the device's; `cores` is how many cores a
    cpu device owns. `sms`, `cold_start_s` and `profile` (a file, or the table itself) describe a sim device. `gpu` picks one
    of the machine's (its number or UUID); `partitions` says how a cuda device keeps lanes apart, and `protocol` how MPS is
    spoken to. `lanes` are the SM percents of lanes cut in advance. `options` are those of a kind that a package or a file of
    one's own adds. `id` names the device for a function's `device=` option; the devices of a `count` above 1 are `id0`,
    `id1` and so on.

    `model` names the type of a sim device, such as "v100": all devices of one model share their profiles. `price` is what an
    hour of one device costs beside that of others. `node` is the node of a cluster that the table is for: without it, it is
    for each.
    """

    kind: str = attrs.field(
        default=AUTO, validator=keys.text('give a kind of device, such as "cpu"', r"[a-z][a-z0-9_]*")
    )
    id: str | None = attrs.field(
        default=None,
        validator=keys.optional(
            keys.text("give letters, digits, and . _ - in between", r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
        ),
    )
    count: int = attrs.field(default=1, validator=keys.whole("devices", 1, 1024))
    memory: str | None = attrs.field(default=None, validator=keys.optional(keys.memory()))
    cores: int | None = attrs.field(default=None, validator=keys.optional(keys.whole("cores", 1, 4096)))
    sms: int | None = attrs.field(default=None, validator=keys.optional(keys.whole("SMs", 1, 4096)))
    cold_start_s: float | None = attrs.field(default=None, validator=keys.optional(keys.number("seconds", 0, 3600)))
    profile: Path | Mapping[str, object] | None = attrs.field(
        default=None, validator=keys.optional(Reader(_read_profile, is_text=True)), hash=False
    )
    gpu: str | int | None = attrs.field(default=None, validator=keys.optional(Reader(_read_gpu, is_text=True)))
    partitions: str | None = attrs.field(default=None, validator=keys.optional(keys.choice(*PARTITIONS)))
    protocol: int | None = attrs.field(default=None, validator=keys.optional(keys.whole("MPS's protocol", 2, 3)))
    lanes: tuple[float, ...] | None = attrs.field(default=None, validator=keys.optional(Reader(_read_lanes)))
    options: Mapping[str, object] | None = attrs.field(
        default=None, validator=keys.optional(Reader(_read_options)), hash=False
    )
    model: str | None = attrs.field(
        default=None,
        validator=keys.optional(keys.text('give a name, such as "v100"', r"[A-Za-z0-9]([A-Za-z0-9 ._-]*[A-Za-z0-9])?")),
    )
    price: float = attrs.field(
        default=1.0, validator=keys.number("what a device's hour costs beside others", 1e-6, 1e6)
    )
    node: str | None = attrs.field(
        default=None,
        validator=keys.optional(keys.text("give the name of a node", r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")),
    )

    def __attrs_post_init__(self) -> None:
        """A key of another kind of device would be ignored, so it is refused."""
        own = _OWN_KEYS.get(self.kind, () if self.kind == AUTO else ("options",))
        for name in sorted({key for known in _OWN_KEYS.values() for key in known} | {"options"}):
            if name not in own and getattr(self, name) is not None:
                owners = [kind for kind, known in _OWN_KEYS.items() if name in known] or ["one of your own"]
                cure = f"devices of kind {self.kind} have no {name}; take it out, or say kind = {' or '.join(owners)}"
                raise Place(path=(name,)).refuse(getattr(self, name), cure)
        if self.kind == AUTO and (self.count != 1 or self.memory is not None):
            raise Place(path=("kind",)).refuse(self.kind, "count and memory need a kind; give one, such as cuda")
        if self.id in (AUTO, *DEVICE_KINDS, self.kind):
            raise Place(path=("id",)).refuse(self.id, f'this word means any device of a kind; say "{self.id}0"')

    @property
    def given(self) -> Mapping[str, object]:
        """The options of this kind of device that were set."""
        own = _OWN_KEYS.get(self.kind)
        if own is None:
            return dict(self.options or {})
        return {name: value for name in own if (value := getattr(self, name)) is not None}

    @property
    def memory_bytes(self) -> int | None:
        """`memory` in bytes; None when it was left to the machine."""
        return None if self.memory is None else parse_memory(self.memory)


@attrs.frozen
class LocalSettings:
    """The `[local]` table: the backend of this machine.

    An embedded gateway ends after `linger_s` without a client. In each `window_ms` a replica may hold its
    lane for its quota of the window, in turns of `quantum_ms`. `max_queue` bounds a function's waiting calls.
    """

    linger_s: float = attrs.field(default=120.0, validator=keys.number("seconds", 0))
    window_ms: float = attrs.field(default=100.0, validator=keys.number("milliseconds", 20, 1000))
    quantum_ms: float = attrs.field(default=10.0, validator=keys.number("milliseconds", 1, 1000))
    max_queue: int = attrs.field(default=1024, validator=keys.whole("calls", 1))
    drain_timeout_s: float = attrs.field(default=30.0, validator=keys.number("seconds", 0))

    def __attrs_post_init__(self) -> None:
        if self.quantum_ms > self.window_ms:
            cure = f"give milliseconds from 1 to local.window_ms, which is {self.window_ms:g}"
            raise Place(path=("local", "quantum_ms")).refuse(self.quantum_ms, cure)


@attrs.frozen
class ScalingSettings:
    """The `[scaling]` table: the loop that sizes functions which have a profile and which nobody has sized by hand.

    It observes and decides every `tick_s`. The last replica goes after `keep_alive_s` without a call; a quota falls once less
    has sufficed for `quota_calm_s`, and a replica goes after `replica_calm_s`. Without `vertical` quotas stay as they are.
    With `pooling` functions share lanes and lend their idle time.
    The log keeps the last `log_segments` files of about `log_mb` megabytes each.
    """

    enabled: bool = attrs.field(default=True, validator=keys.boolean())
    tick_s: float = attrs.field(default=1.0, validator=keys.number("seconds", 0.1, 60))
    keep_alive_s: float = attrs.field(default=60.0, validator=keys.number("seconds", 0))
    quota_calm_s: float = attrs.field(default=4.0, validator=keys.number("seconds", 0))
    replica_calm_s: float = attrs.field(default=30.0, validator=keys.number("seconds", 0))
    vertical: bool = attrs.field(default=True, validator=keys.boolean())
    pooling: bool = attrs.field(default=True, validator=keys.boolean())
    log_mb: int = attrs.field(default=16, validator=keys.whole("megabytes", 1, 4096))
    log_segments: int = attrs.field(default=4, validator=keys.whole("files", 1, 1000))


def _read_address(place: Place, value: object) -> str:
    try:
        addresses.split(value if isinstance(value, str) else "")
    except ValueError as exc:
        raise place.refuse(value, 'give "host:port", such as "127.0.0.1:7070" or "[::1]:7070"') from exc
    return str(value)


def _read_addresses(place: Place, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise place.refuse(value, 'give a list of "host:port"')
    return tuple(_read_address(place, address) for address in value)


@attrs.frozen
class NetworkSettings:
    """The `[network]` table: where a gateway also listens, besides the unix socket of its user.

    Without `listen` it does not. `cert_file` and `key_file` are its certificate for TLS and the key of that (PEM; made by
    `hasfaas certs init`); `tokens_file` holds the tokens that it accepts (`hasfaas token create`).
    """

    listen: str | None = attrs.field(default=None, validator=keys.optional(Reader(_read_address, is_text=True)))
    cert_file: Path | None = attrs.field(default=None, validator=keys.optional(keys.path()))
    key_file: Path | None = attrs.field(default=None, validator=keys.optional(keys.path()))
    tokens_file: Path | None = attrs.field(default=None, validator=keys.optional(keys.path()))

    def __attrs_post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            missing, given = ("key_file", "cert_file") if self.key_file is None else ("cert_file", "key_file")
            cure = f"network.{given} is set, and one is of no use without the other; set both, or neither"
            raise Place(path=("network", missing)).refuse(None, cure)


@attrs.frozen
class ClusterSettings:
    """The `[cluster]` table: gateways on other machines, for `backend = "cluster"`, and what `hasfaas cluster up` starts.

    For clients: `addresses` are tried in their order. `ca_file` (PEM) is the authority that must have made their
    certificates, no other is believed; `server_name` is the name that these must carry, where that is not the address's own;
    `token_file` holds this user's token.

    For a cluster: `state_url` is the folder, as fsspec names it, where it keeps what is deployed; its gateway listens on
    `port` of whichever node it runs on, and node agents on `node_port` (0: any). Gateway and agents send each other a sign
    of life every `beat_s`, and take one another for lost after `lost_after_s` without any. Calls of a function for which
    there is no room wait up to `wait_for_room_s` for nodes, which Ray's autoscaler is asked for.
    """

    addresses: tuple[str, ...] = attrs.field(default=(), validator=Reader(_read_addresses))
    ca_file: Path | None = attrs.field(default=None, validator=keys.optional(keys.path()))
    server_name: str | None = attrs.field(
        default=None,
        validator=keys.optional(
            keys.text("give the name in the certificate", r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
        ),
    )
    token_file: Path | None = attrs.field(default=None, validator=keys.optional(keys.path()))
    state_url: str | None = attrs.field(
        default=None,
        validator=keys.optional(
            keys.text('give a URL, such as "s3://bucket/hasfaas" or "file:///shared/hasfaas"', r"\S+")
        ),
    )
    port: int = attrs.field(default=7070, validator=keys.whole("a port", 1, 65535))
    node_port: int = attrs.field(default=0, validator=keys.whole("a port", 0, 65535))
    beat_s: float = attrs.field(default=0.5, validator=keys.number("seconds", 0.05, 10))
    lost_after_s: float = attrs.field(default=3.0, validator=keys.number("seconds", 0.5, 60))
    wait_for_room_s: float = attrs.field(default=60.0, validator=keys.number("seconds", 0))

    def __attrs_post_init__(self) -> None:
        if self.lost_after_s < 3 * self.beat_s:
            cure = f"give at least three times cluster.beat_s, which is {self.beat_s:g}: one late beat is no death"
            raise Place(path=("cluster", "lost_after_s")).refuse(self.lost_after_s, cure)


def schema_of(cls: type[attrs.AttrsInstance]) -> Schema:
    """The keys of a settings class: its fields and their readers."""
    return {field.name: field.validator for field in attrs.fields(cls) if isinstance(field.validator, Reader)}


_DEVICE_SCHEMA = schema_of(DeviceSettings)


def _read_device(place: Place, value: object) -> DeviceSettings:
    if isinstance(value, DeviceSettings):
        return value
    leaves = keys.read_table(_DEVICE_SCHEMA, place, value)
    kwargs: dict[str, Any] = {path[-1]: leaf for path, leaf in leaves.items()}
    try:
        return DeviceSettings(**kwargs)
    except InvalidRequestError as exc:
        origin = f" (from {place.source.origin})" if place.source.origin else ""
        message = f"{keys.dotted(place.path)}{origin}: {exc.message}"
        raise InvalidRequestError(message, reason=exc.reason) from exc


def _read_devices(place: Place, value: object) -> tuple[DeviceSettings, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise place.refuse(value, 'give a list of at least one table, such as [[devices]] with kind = "cpu"')
    name = place.path[-1]
    found = tuple(
        _read_device(Place(place.source, (*place.path[:-1], f"{name}[{index}]")), entry)
        for index, entry in enumerate(value)
    )
    named = [device.id for device in found if device.id is not None]
    for twice in {name for name in named if named.count(name) > 1}:
        raise place.refuse(twice, "two devices have this id; give each its own")
    return found


def _option(reader: Reader, check: Callable[[Any], object]) -> Reader:
    """An option of `@function`: its type by `reader`, its range by building a spec, which alone knows it."""

    def read(place: Place, value: object) -> object:
        known = reader.read(place, value)
        try:
            check(known)
        except InvalidRequestError as exc:
            raise place.refuse(value, exc.message) from exc
        return known

    return Reader(read, is_text=reader.is_text)


def _spec(**options: Any) -> FunctionSpec:
    return FunctionSpec(**{"slo_ms": 1.0} | options)


def _read_replicas(place: Place, value: object) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, list | tuple) else ()
    if len(pair) != 2 or any(isinstance(item, bool) or not isinstance(item, int) for item in pair):
        raise place.refuse(value, "give [least, most], two whole numbers")
    return pair


def _unshown(read: Callable[[str, Any], object], *, is_text: bool = False) -> Reader:
    """An option whose value is in no message: it may be a secret in the wrong place. `read` gets the key's last part too."""

    def read_it(place: Place, value: object) -> object:
        try:
            return read(place.path[-1], value)
        except InvalidRequestError as exc:
            raise place.refuse_unshown(exc.message) from None

    return Reader(read_it, is_text=is_text)


FUNCTION_OPTIONS: Schema = {
    "slo_ms": _option(keys.number("milliseconds"), lambda value: _spec(slo_ms=value)),
    "slo_percentile": _option(keys.number("a percentile"), lambda value: _spec(slo_percentile=value)),
    "memory": _option(keys.memory(), lambda value: _spec(memory_bytes=parse_memory(value))),
    "device": _option(keys.text('give "auto", a device kind or a device id'), lambda value: _spec(device=value)),
    "replicas": _option(Reader(_read_replicas), lambda value: _spec(min_replicas=value[0], max_replicas=value[1])),
    "timeout_s": _option(keys.number("seconds"), lambda value: _spec(timeout_s=value)),
    "idempotent": _option(keys.boolean(), lambda value: _spec(idempotent=value)),
    "share_init": _option(keys.boolean(), lambda value: _spec(share_init=value)),
    "env": {ANY: _unshown(lambda name, value: _spec(env={name: value}).env[name], is_text=True)},
    "secrets": _unshown(lambda _, value: _spec(secrets=value).secrets),
    "batch": {
        "max_size": _option(keys.whole("calls"), lambda value: Batch(max_size=value)),
        "max_wait_ms": _option(keys.number("milliseconds"), lambda value: Batch(max_wait_ms=value)),
    },
}
"""What `[functions."app.fn"]` may override. The values keep the units of the decorator's options."""

_FUNCTIONS_SCHEMA: Schema = {ANY: FUNCTION_OPTIONS}


def _read_functions(place: Place, value: object) -> object:
    return keys.read_table(_FUNCTIONS_SCHEMA, place, value)


@attrs.frozen(kw_only=True)
class Settings:
    """All settings. `state_dir` outlives a gateway (deployed functions), `runtime_dir` holds its sockets, and `secrets_dir` a
    file for each secret that functions name.

    `functions` maps "app.fn" to the options of `@function` that it overrides, each already checked.
    """

    state_dir: Path = attrs.field(validator=keys.path())
    runtime_dir: Path = attrs.field(validator=keys.path())
    secrets_dir: Path = attrs.field(
        default=attrs.Factory(lambda own: own.state_dir / "secrets", takes_self=True), validator=keys.path()
    )
    backend: str = attrs.field(default="local", validator=keys.text('give a backend, such as "local"', r"[\w.-]+"))
    start_timeout_s: float = attrs.field(default=60.0, validator=keys.number("seconds", 0.1))
    log_level: str = attrs.field(default="info", validator=keys.choice(*LOG_LEVELS))
    local: LocalSettings = attrs.field(factory=LocalSettings, validator=attrs.validators.instance_of(LocalSettings))
    scaling: ScalingSettings = attrs.field(
        factory=ScalingSettings, validator=attrs.validators.instance_of(ScalingSettings)
    )
    network: NetworkSettings = attrs.field(
        factory=NetworkSettings, validator=attrs.validators.instance_of(NetworkSettings)
    )
    cluster: ClusterSettings = attrs.field(
        factory=ClusterSettings, validator=attrs.validators.instance_of(ClusterSettings)
    )
    devices: tuple[DeviceSettings, ...] = attrs.field(default=(DeviceSettings(),), validator=Reader(_read_devices))
    functions: Mapping[str, Mapping[str, object]] = attrs.field(
        factory=dict, validator=Reader(_read_functions), hash=False
    )

    def __attrs_post_init__(self) -> None:
        self.socket_path(GATEWAY_SOCKET)

    def socket_path(self, name: str) -> Path:
        """The path of the unix socket `name`, checked to be short enough for the kernel.

        Raises InvalidRequestError, naming runtime_dir and its length, when it is not.
        """
        full = self.runtime_dir / name
        length = len(os.fsencode(full))
        if length >= SOCKET_PATH_BYTES:
            raise Place(path=("runtime_dir",)).refuse(
                str(self.runtime_dir),
                f"the socket {name} in it would have a path of {length} bytes, and less than "
                f"{SOCKET_PATH_BYTES} are safe; give a folder with a shorter path (HASFAAS_RUNTIME_DIR)",
            )
        return full

    def to_json(self) -> str:
        """The settings as JSON text, to hand them to a process of ours. `from_json` gives an equal value."""
        return json.dumps(attrs.asdict(self, value_serializer=_plain), allow_nan=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """What `to_json` wrote, checked like any other source. Raises InvalidRequestError."""
        source = Source(origin="the settings handed over")
        try:
            table = json.loads(text)
        except ValueError as exc:
            raise InvalidRequestError(f"{source.origin} are not JSON: {exc}", reason="BAD_OPTION") from exc
        return build(keys.read_table(SCHEMA, Place(source), table))


_TABLES: Mapping[str, type[attrs.AttrsInstance]] = {
    "local": LocalSettings,
    "scaling": ScalingSettings,
    "network": NetworkSettings,
    "cluster": ClusterSettings,
}

SCHEMA: Schema = {
    **{name: entry for name, entry in schema_of(Settings).items() if name != "functions"},
    **{name: schema_of(table) for name, table in _TABLES.items()},
    "functions": _FUNCTIONS_SCHEMA,
}
"""Every key that a source may set."""


_handed_over: list[str] = []


def hand_over(text: str) -> None:
    """In a replica: the settings of its gateway, so that functions which call functions reach that one and no other."""
    _handed_over[:] = [text]


def handed_over() -> Settings | None:
    """What a replica was handed; None in every other process."""
    return Settings.from_json(_handed_over[0]) if _handed_over else None


def _plain(_instance: object, _field: object, value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def leaves_of(settings: Settings) -> Leaves:
    """Every key of `settings` with its value."""
    found: Leaves = {}
    for name in SCHEMA:
        value = getattr(settings, name)
        if name in _TABLES:
            found |= {(name, field.name): getattr(value, field.name) for field in attrs.fields(_TABLES[name])}
        elif name == "functions":
            found |= keys.read_table(_FUNCTIONS_SCHEMA, Place(path=(name,)), value)
        else:
            found[(name,)] = value
    return found


def build(leaves: Leaves) -> Settings:
    """The settings made of checked leaves; keys that are not there take their defaults.

    Raises InvalidRequestError when two keys do not go together, or when a folder is missing.
    """
    tables: dict[str, Any] = keys.nest(leaves)
    for name in ("state_dir", "runtime_dir"):
        if name not in tables:
            raise Place(path=(name,)).refuse(None, "give the path of a folder")
    return Settings(**tables | {name: table(**tables.get(name, {})) for name, table in _TABLES.items()})
