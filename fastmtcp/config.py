"""Every setting: its default, unit and check, in one place.

The command-line options and their `--help`, the keys of the TOML file and the values that the
processes get are all made from the two Structs below. A key in the file is the option's name with
`_` for `-`. Options win over the file.
"""

from __future__ import annotations

import difflib
import functools
import os
import types
from collections.abc import Mapping
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
from msgspec import Meta

from fastmtcp import control, keys
from fastmtcp.endpoint import Endpoint
from fastmtcp.errors import ConfigError
from fastmtcp.path import MAX_CONNECTIONS, PathSpec

LISTENING = "Listening"
TARGET = "Target"
SERVER_PATH = "Path to the server"
SESSIONS = "Sessions"
SECURITY = "Security"
PROCESSES = "Processes"
LOGGING = "Logging"
GROUPS = (LISTENING, TARGET, SERVER_PATH, SESSIONS, SECURITY, PROCESSES, LOGGING)

MAX_WORKERS = 256
MAX_SUBFLOWS = 120
"""Subflows that one worker may have: a server lets a session have 128, and some of those are the
express subflow and the ones that are being replaced."""

CONTROL_OFF = "off"
_MAX_FILE = 1 << 20


class Setting(msgspec.Struct, frozen=True):
    """What `--help` says of a setting, beside its type, limits and default."""

    group: str
    help: str
    metavar: str = ""
    unit: str = ""
    default_text: str = ""
    envvar: str | None = None


class SettingError(ConfigError):
    """A value that its type allows, but that is wrong beside the others or for its use."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{option_name(key)}: {problem}")
        self.key = key
        self.problem = problem


Workers = Annotated[int, Meta(ge=1, le=MAX_WORKERS)]
Timeout = Annotated[float, Meta(ge=0.1, le=600)]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
EgressMode = Literal["auto", "off"]


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What client and server have in common."""

    program: ClassVar[str]

    key_file: Annotated[
        str | None,
        Setting(
            SECURITY,
            "File with the key that client and server prove to each other that they hold. In a "
            "configuration file the name is relative to that file.",
            metavar="FILE",
            default_text="none",
            envvar="FASTMTCP_KEY_FILE",
        ),
    ] = None
    workers: Annotated[
        Workers | None,
        Setting(PROCESSES, "Worker processes.", metavar="N", default_text="one per usable CPU"),
    ] = None
    drain_timeout: Annotated[
        float,
        Meta(ge=0, le=86400),
        Setting(
            PROCESSES,
            "How long open streams may go on after SIGTERM or Ctrl-C before they are reset.",
            metavar="SECONDS",
            unit="seconds",
        ),
    ] = 30.0
    session_timeout: Annotated[
        float,
        Meta(ge=1, le=86400),
        Setting(
            SESSIONS,
            "How long streams wait while no connection between client and server is left, before "
            "they are reset. The shorter time of the two sides counts.",
            metavar="SECONDS",
            unit="seconds",
        ),
    ] = 120.0
    control: Annotated[
        str | None,
        Setting(
            PROCESSES,
            "Name under which `fastmtcp status` finds this program; off hides it.",
            metavar="NAME|off",
            default_text="the side and its first port, as in client-7701",
        ),
    ] = None
    log_level: Annotated[LogLevel, Setting(LOGGING, "The least important messages to log.")] = (
        "info"
    )
    log_format: Annotated[
        LogFormat, Setting(LOGGING, "How a log line looks; json has one object in each line.")
    ] = "text"

    def check(self) -> None:
        """Raise SettingError if the values do not fit together."""
        if self.key_file is not None:
            _check_key_file(self.key_file)
        if self.control is not None and not control.is_name(self.control):
            raise SettingError(
                "control",
                f"{self.control!r} is no name; write up to {control.MAX_NAME} letters, digits, "
                "dots, underscores and hyphens",
            )

    def worker_count(self) -> int:
        """The number of workers to start: as set, or one for each CPU this process may use."""
        if self.workers is not None:
            return self.workers
        import psutil

        try:
            usable = len(psutil.Process().cpu_affinity() or ())
        except AttributeError:  # macOS has no affinity
            usable = psutil.cpu_count() or 0
        return min(max(usable, 1), MAX_WORKERS)


class ServerConfig(Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of `fastmtcp-server`."""

    program: ClassVar[str] = "fastmtcp-server"

    listen: Annotated[
        tuple[Endpoint, ...],
        Setting(
            LISTENING,
            "Where to accept connections of fastmtcp-client. *:7700 means all addresses, port 0 "
            "any free port. Anything but loopback needs a key.",
            metavar="HOST:PORT",
        ),
    ] = (Endpoint("127.0.0.1", 7700),)
    target: Annotated[
        Endpoint,
        Setting(TARGET, "Where to forward every stream to.", metavar="HOST:PORT"),
    ] = Endpoint("127.0.0.1", 5201)
    connect_timeout: Annotated[
        Timeout,
        Setting(
            TARGET,
            "How long the target may take to accept a connection.",
            metavar="SECONDS",
            unit="seconds",
        ),
    ] = 10.0

    def check(self) -> None:
        Config.check(self)
        _check_listen(self.listen)
        _check_destination("target", self.target)
        if self.key_file is None:
            for endpoint in self.listen:
                if not endpoint.is_loopback:
                    raise SettingError(
                        "listen",
                        f"{endpoint} is not loopback, and a server without a key listens on "
                        "loopback only; make a key with `fastmtcp keygen fastmtcp.key` and add "
                        "`--key-file fastmtcp.key`",
                    )


class ClientConfig(Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of `fastmtcp-client`."""

    program: ClassVar[str] = "fastmtcp-client"

    listen: Annotated[
        tuple[Endpoint, ...],
        Setting(
            LISTENING,
            "Where to accept applications. *:7701 means all addresses, port 0 any free port.",
            metavar="HOST:PORT",
        ),
    ] = (Endpoint("127.0.0.1", 7701),)
    server: Annotated[
        tuple[PathSpec, ...],
        Setting(
            SERVER_PATH,
            "A path to fastmtcp-server, with its options behind it: bind=ADDRESS and dev=INTERFACE "
            "choose the way out, connections=N its connections, direction=both, up or down what "
            "it carries; backup means only while nothing else works; "
            "via=socks5://HOST:PORT or via=http://HOST:PORT a proxy, with USER:PASSWORD@ before "
            "its HOST if it wants that.",
            metavar="HOST:PORT[,OPTION...]",
        ),
    ] = (PathSpec(Endpoint("127.0.0.1", 7700)),)
    connections: Annotated[
        int,
        Meta(ge=1, le=MAX_CONNECTIONS),
        Setting(
            SERVER_PATH,
            "TCP connections on each path that does not say how many, for each worker.",
            metavar="N",
        ),
    ] = 4
    egress: Annotated[
        EgressMode,
        Setting(
            SERVER_PATH,
            "auto makes one path of each local address to each server that has no bind or dev, "
            "and follows interfaces that come and go.",
        ),
    ] = "off"
    express: Annotated[
        bool,
        Setting(
            SERVER_PATH,
            "One more connection for each worker, on the first path, where small streams do not "
            "wait behind bulk data.",
        ),
    ] = True
    connect_timeout: Annotated[
        Timeout,
        Setting(
            SERVER_PATH,
            "How long the server may take to accept a connection.",
            metavar="SECONDS",
            unit="seconds",
        ),
    ] = 10.0

    def check(self) -> None:
        Config.check(self)
        _check_listen(self.listen)
        _check_paths(self.server)
        if self.subflows > MAX_SUBFLOWS:
            raise SettingError(
                "server",
                f"the paths have {self.subflows} connections, the limit is {MAX_SUBFLOWS}; lower "
                "--connections or the connections= of a path",
            )

    @property
    def subflows(self) -> int:
        """Connections of one worker on all paths, the express one not counted."""
        return sum(path.connections or self.connections for path in self.server)


def _check_key_file(name: str) -> None:
    if not name:
        raise SettingError("key_file", "names no file; write the name of a key file")
    if keys.redact(name) != name:
        raise SettingError(
            "key_file", "takes the name of a file, never the key itself; write it to a file"
        )


def _check_listen(endpoints: tuple[Endpoint, ...]) -> None:
    if not endpoints:
        raise SettingError("listen", "names no address; write at least one HOST:PORT")
    for index, endpoint in enumerate(endpoints):
        # Twice the same would work by SO_REUSEPORT and hide the mistake.
        if endpoint.port != 0 and endpoint in endpoints[:index]:
            raise SettingError("listen", f"{endpoint} is there twice; remove one of them")


def _check_destination(key: str, endpoint: Endpoint) -> None:
    if endpoint.port == 0:
        raise SettingError(key, f"{endpoint} has port 0, which is for listening only; write a port")
    if endpoint.is_wildcard:
        remedy = f"write the host, as in 127.0.0.1:{endpoint.port}"
        raise SettingError(key, f"{endpoint} is for listening only; {remedy}")


def _check_paths(paths: tuple[PathSpec, ...]) -> None:
    if not paths:
        raise SettingError("server", "names no server; write at least one HOST:PORT")
    for index, path in enumerate(paths):
        _check_destination("server", path.endpoint)
        if path in paths[:index]:
            raise SettingError(
                "server", f"{path} is there twice; for more connections write connections=N"
            )
        hop = path.first_hop
        if path.bind is None or not hop.is_numeric:
            continue
        if (":" in path.bind) != (":" in hop.host):
            kinds = "an IPv6 and an IPv4" if ":" in path.bind else "an IPv4 and an IPv6"
            raise SettingError(
                "server",
                f"bind={path.bind} and {hop} are {kinds} address; write two of one kind",
            )
    for direction, words in (("up", "to the server"), ("down", "from the server")):
        if not any(path.direction in ("both", direction) for path in paths):
            raise SettingError(
                "server",
                f"no path carries data {words}; add one with direction={direction} or without",
            )


C = TypeVar("C", bound=Config)


def load(config_type: type[C], path: str | None, overrides: Mapping[str, object]) -> C:
    """Merge the TOML file at `path` with the options in `overrides`, check, and return all of it.

    `overrides` maps setting names to option texts, lists of them, or ready values; `None` and an
    empty list mean that the option was not given. Raises ConfigError: one line that names the
    file or the option, the key and the remedy.
    """
    try:
        return _load(config_type, path, overrides)
    except ConfigError as error:
        raise ConfigError(one_line(str(error))) from None


def _load(config_type: type[C], path: str | None, overrides: Mapping[str, object]) -> C:
    fields = {field.name: field for field in settings(config_type)}
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    try:
        if path is not None:
            for key, value in _read(path).items():
                if key not in fields:
                    raise ConfigError(f"{path}: {_unknown(config_type, key, value)}")
                sources[key] = f"{path}: {key}"
                values[key] = fields[key].convert(value, sources[key], lax=False)
                if key == "key_file":
                    # Before it becomes part of a path, where a key could not be told any more.
                    _check_key_file(values[key])
                    values[key] = str(Path(path).parent / os.path.expanduser(values[key]))
        for key, value in overrides.items():
            if value is None or value in ((), []):
                continue
            if key not in fields:
                raise ConfigError(_unknown(config_type, key, value))
            sources[key] = option_name(key)
            values[key] = fields[key].convert(value, sources[key], lax=True)
        config = config_type(**values)
        config.check()
    except SettingError as error:
        source = sources.get(error.key, option_name(error.key))
        raise ConfigError(f"{source}: {error.problem}") from None
    return config


def one_line(text: str) -> str:
    """`text` for one line of a terminal: control characters escaped, anything like a key hidden."""
    plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    return keys.redact(plain)


def option_name(key: str) -> str:
    """The command-line option for a setting."""
    return "--" + key.replace("_", "-")


_PARSED = (Endpoint, PathSpec)
"""Types that read themselves from a text."""


class Field(msgspec.Struct, frozen=True):
    """One setting as read from a Struct: `type` without None, `many` if it takes a list."""

    name: str
    type: Any
    many: bool
    default: Any
    setting: Setting

    @property
    def choices(self) -> tuple[str, ...]:
        """The possible texts, if the setting allows only a few."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    @property
    def default_text(self) -> str:
        if self.setting.default_text:
            return self.setting.default_text
        if self.type is bool:
            return str(self.default).lower()
        if self.many:
            return ", ".join(map(str, self.default))
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)

    @property
    def limits(self) -> str:
        """The smallest and the largest value of a number, as `1 to 64`; empty for other types."""
        if get_origin(self.type) is not Annotated:
            return ""
        for meta in self.type.__metadata__:
            if isinstance(meta, Meta) and meta.ge is not None and meta.le is not None:
                return f"{meta.ge:g} to {meta.le:g}"
        return ""

    @property
    def expected(self) -> str:
        """What a right value is, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        base = get_args(self.type)[0] if get_origin(self.type) is Annotated else self.type
        if base is bool:
            return "true or false"
        if base in _PARSED:
            return "HOST:PORT" + (", or a list of such" if self.many else "")
        if base is str:
            return "a text"
        number = "a whole number" if base is int else "a number"
        unit = f" of {self.setting.unit}" if self.setting.unit else ""
        return f"{number}{unit} from {self.limits}"

    def convert(self, value: object, source: str, *, lax: bool) -> object:
        """Turn a value from `source` into the setting's type; `lax` reads numbers from text."""
        if not self.many:
            return self._convert_one(value, source, lax=lax)
        parts = list(value) if isinstance(value, list | tuple) else [value]
        return tuple(self._convert_one(part, source, lax=lax) for part in parts)

    def _convert_one(self, value: object, source: str, *, lax: bool) -> object:
        if self.type in _PARSED and not isinstance(value, self.type):
            try:
                if isinstance(value, dict) and self.type is PathSpec:
                    return PathSpec.from_table(value)
                if isinstance(value, str):
                    return self.type.parse(value)
                raise ConfigError(f"{_show(value)} must be {self.expected}, in quotes")
            except ConfigError as error:
                raise ConfigError(f"{source}: {error}") from None
        try:
            return msgspec.convert(value, self.type, strict=not lax)
        except msgspec.ValidationError:
            remedy = f"must be {self.expected}"
            if isinstance(value, str) and self.choices:
                remedy += _did_you_mean(value, self.choices)
            elif isinstance(value, str) and not lax:
                remedy += ", without quotes"
            raise ConfigError(f"{source}: {_show(value)} {remedy}") from None


@functools.cache
def settings(config_type: type[Config]) -> tuple[Field, ...]:
    """All settings of a Struct, in the order of GROUPS."""
    hints = get_type_hints(config_type, include_extras=True)
    found = []
    for info in msgspec.structs.fields(config_type):
        kind, *extras = get_args(hints[info.name])
        setting = next(extra for extra in extras if isinstance(extra, Setting))
        many = get_origin(kind) is tuple
        if many:
            kind = get_args(kind)[0]
        elif get_origin(kind) in (types.UnionType, Union):
            kind = next(arm for arm in get_args(kind) if arm is not types.NoneType)
        limits = tuple(extra for extra in extras if isinstance(extra, Meta))
        if limits:
            kind = Annotated[(kind, *limits)]
        found.append(Field(info.name, kind, many, info.default, setting))
    return tuple(sorted(found, key=lambda field: GROUPS.index(field.setting.group)))


def _read(path: str) -> dict[str, Any]:
    import tomllib

    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "impossible name"
        raise ConfigError(f"--config {path!r} cannot be read: {reason}") from None
    if len(content) > _MAX_FILE:
        raise ConfigError(f"{path}: is larger than 1 MiB; name a configuration file")
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    # A number of 5,000 digits is a plain ValueError, a thousand brackets are a RecursionError.
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}; correct it") from None


def _unknown(config_type: type[Config], key: str, value: object) -> str:
    names = config_type.__struct_fields__
    others = {
        name: other.program
        for other in (ServerConfig, ClientConfig)
        for name in other.__struct_fields__
        if name not in names
    }
    plain = key.replace("-", "_").lower()
    if plain in others:
        return f"{key}: is a setting of {others[plain]}, not of {config_type.program}; remove it"
    if isinstance(value, dict):
        return f"{key}: is a table; write the keys at the top of the file, without [tables]"
    hint = _did_you_mean(plain, names) or f"; the keys are {', '.join(sorted(names))}"
    return f"{key}: unknown key{hint}"


def _did_you_mean(word: str, possible: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(word.lower(), possible, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _show(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case dict():
            return "a table"
        case list() | tuple():
            return "a list"
        case str():
            # Hidden before it is cut short, or half a key would be shown.
            shown = keys.redact(value)
            return repr(shown if len(shown) <= 80 else shown[:77] + "...")
        case _:
            return str(value)
