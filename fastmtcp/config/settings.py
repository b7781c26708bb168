"""Settings in general: what one is, and how a Struct of them is read from options and a TOML file.

A key in the file is the option's name with `_` for `-`. Options win over the file. The Structs
themselves are in fastmtcp.config.common, fastmtcp.config.client and fastmtcp.config.server.
"""

from __future__ import annotations

import difflib
import functools
import os
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    Protocol,
    Self,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
from msgspec import Meta

from fastmtcp.errors import ConfigError, FormError
from fastmtcp.security.redaction import redact

LISTENING = "Listening"
TARGET = "Target"
SERVER_PATH = "Path to the server"
SESSIONS = "Sessions"
LIMITS = "Limits"
SECURITY = "Security"
PROCESSES = "Processes"
LOGGING = "Logging"
GROUPS = (LISTENING, TARGET, SERVER_PATH, SESSIONS, LIMITS, SECURITY, PROCESSES, LOGGING)

_MAX_FILE = 1 << 20


class Setting(msgspec.Struct, frozen=True):
    """What `--help` says of a setting, beside its type, limits and default."""

    group: str
    help: str
    metavar: str = ""
    unit: str = ""
    default_text: str = ""
    envvar: str | None = None
    is_file: bool = False
    """A file's name: in a configuration file it is relative to that file."""


class SettingError(ConfigError):
    """A value that its type allows, but that is wrong beside the others or for its use."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{option_name(key)}: {problem}")
        self.key = key
        self.problem = problem


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of a program: each field is `Annotated[type, Setting(...)]`."""

    program: ClassVar[str]

    def check(self) -> None:
        """Raise SettingError if the values do not fit together."""


def check_file_name(key: str, name: str) -> None:
    """Raise SettingError if `name` cannot be that of a file, or looks like a secret itself."""
    if not name:
        raise SettingError(key, "names no file; write the name of one")
    if redact(name) != name:
        raise SettingError(
            key, "takes the name of a file, never the key itself; write it to a file"
        )


S = TypeVar("S", bound=Settings)


def option_name(key: str) -> str:
    """The command-line option for a setting."""
    return "--" + key.replace("_", "-")


def load(
    config_type: type[S],
    path: str | None,
    overrides: Mapping[str, object],
    named: Callable[[str], str] = option_name,
) -> S:
    """Merge the TOML file at `path` with the options in `overrides`, check, and return all of it.

    `overrides` maps setting names to option texts, lists of them, or ready values; `None` and an
    empty list mean that the option was not given; `named` is what a setting is called there.
    Raises ConfigError: one line that names the file or the option, the key and the remedy.
    """
    try:
        return _load(config_type, path, overrides, named)
    except ConfigError as error:
        raise ConfigError(one_line(str(error))) from None


def _load(
    config_type: type[S],
    path: str | None,
    overrides: Mapping[str, object],
    named: Callable[[str], str],
) -> S:
    known = {field.name: field for field in fields(config_type)}
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    try:
        if path is not None:
            for key, value in _read(path).items():
                if key not in known:
                    raise ConfigError(f"{path}: {_unknown(config_type, key, value)}")
                sources[key] = f"{path}: {key}"
                values[key] = known[key].convert(value, sources[key], lax=False)
                if known[key].setting.is_file:
                    # Before it becomes part of a path, where a key could not be told any more.
                    check_file_name(key, values[key])
                    values[key] = str(Path(path).parent / os.path.expanduser(values[key]))
        for key, value in overrides.items():
            if value is None or value in ((), []):
                continue
            if key not in known:
                raise ConfigError(_unknown(config_type, key, value))
            sources[key] = named(key)
            values[key] = known[key].convert(value, sources[key], lax=True)
        config = config_type(**values)
        config.check()
    except SettingError as error:
        source = sources.get(error.key, named(error.key))
        raise ConfigError(f"{source}: {error.problem}") from None
    return config


def one_line(text: str) -> str:
    """`text` for one line of a terminal: control characters escaped, anything like a key hidden."""
    plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    return redact(plain)


class Value(Protocol):
    """A type of settings that reads itself, from options as from a file."""

    FORM: ClassVar[str]
    """What a right value is, in words."""

    @classmethod
    def read(cls, value: object) -> Self:
        """Raises FormError, or another ConfigError that shows the value itself."""


def _reader(kind: Any) -> type[Value] | None:
    return kind if hasattr(kind, "FORM") else None


class Field(msgspec.Struct, frozen=True):
    """One setting as read from a Struct: `type` without None, `many` if it takes a list."""

    name: str
    type: Any
    many: bool
    default: Any
    setting: Setting

    @property
    def is_table(self) -> bool:
        """It is a table of the file and has no option: a Struct whose fields with a Meta are the
        keys."""
        return _reader(self.type) is None and hasattr(self.type, "__struct_fields__")

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
                return f"{_number(meta.ge)} to {_number(meta.le)}"
        return ""

    @property
    def expected(self) -> str:
        """What a right value is, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        base = get_args(self.type)[0] if get_origin(self.type) is Annotated else self.type
        if base is bool:
            return "true or false"
        reader = _reader(base)
        if reader is not None:
            return reader.FORM + (", or a list of such" if self.many else "")
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
        if self.is_table:
            return self._convert_table(value, source)
        reader = _reader(self.type)
        if reader is not None and not isinstance(value, reader):
            try:
                return reader.read(value)
            except FormError as error:
                shown = f"{_show(value)} must be {self.expected}{error.hint}"
                raise ConfigError(f"{source}: {shown}") from None
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

    def _convert_table(self, value: object, source: str) -> object:
        if isinstance(value, self.type):
            return value
        if not isinstance(value, dict):
            raise ConfigError(f"{source}: {_show(value)} must be a table; write [{self.name}]")
        known = {inner.name: inner for inner in table_fields(self.type)}
        for key in value:
            if key not in known:
                raise ConfigError(f"{source}.{key}: {_unknown_in_table(self.type, key)}")
        return self.type(
            **{
                key: known[key].convert(one, f"{source}.{key}", lax=False)
                for key, one in value.items()
            }
        )


@functools.cache
def table_fields(table: type[msgspec.Struct]) -> tuple[Field, ...]:
    """The keys of a table."""
    hints = get_type_hints(table, include_extras=True)
    return tuple(
        Field(info.name, hints[info.name], False, info.default, _IN_TABLE)
        for info in msgspec.structs.fields(table)
        if get_origin(hints[info.name]) is Annotated
    )


_IN_TABLE = Setting(LIMITS, "")


@functools.cache
def fields(config_type: type[Settings]) -> tuple[Field, ...]:
    """All settings of a Struct, in the order of GROUPS."""
    hints = get_type_hints(config_type, include_extras=True)
    found = []
    for info in msgspec.structs.fields(config_type):
        kind, *extras = get_args(hints[info.name])
        setting = next(extra for extra in extras if isinstance(extra, Setting))
        if get_origin(kind) in (types.UnionType, Union):
            kind = next(arm for arm in get_args(kind) if arm is not types.NoneType)
        many = get_origin(kind) is tuple
        if many:
            kind = get_args(kind)[0]
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


def _unknown(config_type: type[Settings], key: str, value: object) -> str:
    names = config_type.__struct_fields__
    others = {
        name: other.program
        for other in _programs(Settings)
        for name in other.__struct_fields__
        if name not in names
    }
    plain = key.replace("-", "_").lower()
    if plain in others:
        return f"{key}: is a setting of {others[plain]}, not of {config_type.program}; remove it"
    if isinstance(value, dict):
        return (
            f"{key}: is a table; write the keys at the top of the file, without [tables], or in "
            "[limits]"
        )
    hint = _did_you_mean(plain, names) or f"; the keys are {', '.join(sorted(names))}"
    return f"{key}: unknown key{hint}"


def _unknown_in_table(table: type[msgspec.Struct], key: str) -> str:
    names = tuple(field.name for field in table_fields(table))
    for other in _programs(Settings):
        for field in fields(other):
            if field.is_table and key in {inner.name for inner in table_fields(field.type)}:
                return f"is a limit of {other.program}, not of this program; remove it"
    hint = _did_you_mean(key, names) or f"; the keys are {', '.join(sorted(names))}"
    return f"unknown key{hint}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _programs(parent: type[Settings]) -> list[type[Settings]]:
    children = parent.__subclasses__()
    return [found for child in children for found in _programs(child)] if children else [parent]


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
            shown = redact(value)
            return repr(shown if len(shown) <= 80 else shown[:77] + "...")
        case _:
            return str(value)
