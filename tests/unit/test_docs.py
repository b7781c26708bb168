"""What README.md and docs/ name exists: files, functions, commands, options, settings."""

from __future__ import annotations

import ast
import functools
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest
from fastmtcp.cli import client, main, server
from fastmtcp.cli.options import SettingOption
from fastmtcp.config import client as client_config
from fastmtcp.config import settings
from fastmtcp.config.client import ClientConfig
from fastmtcp.config.common import Config
from fastmtcp.config.connections import MAX_CONNECTIONS
from fastmtcp.config.limits import ClientLimits, ServerLimits
from fastmtcp.config.path import KEYS, PathSpec
from fastmtcp.config.server import ServerConfig
from fastmtcp.engine import limits
from fastmtcp.engine.limits import KIB, MIB, Limits
from fastmtcp.errors import ConfigError
from fastmtcp.io import resolver
from fastmtcp.security import handshake, tls
from fastmtcp.server import admission
from fastmtcp.status import document

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
README = DOCUMENTS[0].read_text(encoding="utf-8")
SECURITY = (ROOT / "docs" / "SECURITY.md").read_text(encoding="utf-8")

PROGRAMS: dict[str, tuple[click.Command, type[Config]]] = {
    "fastmtcp-server": (server.command, ServerConfig),
    "fastmtcp-client": (client.command, ClientConfig),
}


@pytest.fixture(autouse=True)
def _no_key_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FASTMTCP_KEY_FILE", "FASTMTCP_LINK_FILE", "FASTMTCP_LINK"):
        monkeypatch.delenv(name, raising=False)


# --- files and functions ------------------------------------------------------------------------

_PATH = re.compile(
    r"(?<![\w/.~@-])(?:\./)?((?:fastmtcp|tests|docs|perf|scripts|\.ci)/(?:[\w./-]*[\w/])?)"
)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s#]+)[^)]*\)")
_TOP_FILE = re.compile(r"`([A-Z]+(?:\.md)?|setup\.cfg|pyproject\.toml)`")
_REFERENCE = re.compile(r"`([\w/]+\.py): ([\w.]+)`")


def paths_in(document: Path) -> set[Path]:
    """Every file and folder of the repository that `document` names."""
    text = document.read_text(encoding="utf-8")
    found = {ROOT / match[1] for match in _PATH.finditer(text)}
    found |= {ROOT / name for name in _TOP_FILE.findall(text) if name == "LICENSE" or "." in name}
    for target in _LINK.findall(text):
        if "://" not in target:
            found.add(document.parent / target)
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_path_exists(document: Path) -> None:
    assert [path for path in sorted(paths_in(document)) if not path.exists()] == []


def test_the_documents_name_files_at_all() -> None:
    named = {path for document in DOCUMENTS for path in paths_in(document)}
    expected = (
        "docs/SPEC.md",
        "scripts/demo",
        "fastmtcp/security/handshake.py",
        "LICENSE",
        "tests/sim",
    )
    assert {ROOT / name for name in expected} <= named


@functools.cache
def names_in(module: Path) -> frozenset[str]:
    """Functions, classes and methods of a module, as `name` or `Class.name`."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = set()
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, kinds):
            found.add(node.name)
            for inner in ast.walk(node):
                if inner is not node and isinstance(inner, kinds):
                    found.add(f"{node.name}.{inner.name}")
    return frozenset(found)


def references() -> list[tuple[str, str]]:
    return sorted(
        {
            (match[1], match[2])
            for document in DOCUMENTS
            for match in _REFERENCE.finditer(document.read_text(encoding="utf-8"))
        }
    )


@pytest.mark.parametrize(("module", "name"), references())
def test_every_function_that_is_named_exists(module: str, name: str) -> None:
    assert name in names_in(ROOT / module)


def test_the_way_through_the_code_names_functions() -> None:
    assert ("fastmtcp/engine/session.py", "Session.pull") in references()


def test_the_listing_has_every_folder_of_the_package_and_no_other() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(fastmtcp/[\w/]*)/?` \| .+ \|$", text, re.MULTILINE)
    folders = {
        path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "fastmtcp").rglob("*.py")
    }
    assert sorted(name.rstrip("/") for name in listed) == sorted(folders)


def test_nothing_but_the_common_ground_lies_flat_in_the_package() -> None:
    flat = {path.stem for path in (ROOT / "fastmtcp").glob("*.py")}
    assert flat == {"__init__", "_version", "endpoint", "errors", "logs", "units"}


def test_the_readme_says_how_much_a_stream_and_a_session_may_have() -> None:
    text = " ".join(README.split())
    assert f"at most {Limits().max_window // MIB} MiB on its way" in text
    assert f"at most {Limits().max_streams} streams at once" in text


# --- commands -----------------------------------------------------------------------------------


def fenced(text: str, language: str) -> list[str]:
    """The bodies of the fenced blocks in `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def command_lines(text: str) -> Iterator[str]:
    """Every command of ours that the document shows, in blocks and in running text."""
    for block in fenced(text, "sh"):
        yield from (line for line in block.replace("\\\n", " ").splitlines())
    yield from re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    yield from re.findall(r"`(fastmtcp(?:-\w+)? [^`\n]+)`", text)
    yield from re.findall(r"# .*for: (fastmtcp-.*)$", text, re.MULTILINE)


def our_commands(text: str) -> list[str]:
    return sorted(
        {
            line
            for line in command_lines(text)
            if re.match(r"fastmtcp(-server|-client)?($| )", line) and "--TCP--" not in line
        }
    )


def check_command(line: str) -> None:
    """Parse a command line as the program would, and check the values of its settings.

    Raises click.ClickException or ConfigError.
    """
    name, *args = shlex.split(line, comments=True)
    if name in PROGRAMS:
        command, config_type = PROGRAMS[name]
        if args == ["--help"]:
            return
        given = dict(command.make_context(name, args).params)
        if given.pop("config_file") and config_type is ServerConfig:
            given["clients_file"] = "clients"  # as fastmtcp init server makes it
        settings.load(config_type, None, given)
        return
    group = main.group
    assert isinstance(group, click.Group)
    context = click.Context(group, info_name=name)
    command_name, subcommand, rest = group.resolve_command(context, args)
    assert subcommand is not None
    if rest != ["--help"]:
        subcommand.make_context(command_name, rest, parent=context)


@pytest.mark.parametrize("line", our_commands(README))
def test_every_command_of_the_readme_parses(line: str) -> None:
    check_command(line)


def test_the_readme_shows_each_program() -> None:
    shown = {line.split()[0] for line in our_commands(README)}
    assert shown == {"fastmtcp", "fastmtcp-server", "fastmtcp-client"}


@pytest.mark.parametrize(
    "line",
    [
        "fastmtcp-server --lissten :7700",
        "fastmtcp-server --listen '*:7700'",  # without a key
        "fastmtcp-client --connections 65",
        "fastmtcp-client --server",
        "fastmtcp keygen",
        "fastmtcp throttle --speed 1",
        "fastmtcp demonstrate",
    ],
)
def test_a_wrong_command_would_be_found(line: str) -> None:
    with pytest.raises((click.ClickException, ConfigError)):
        check_command(line)


def all_options() -> set[str]:
    group = main.group
    assert isinstance(group, click.Group)
    context = click.Context(group)
    commands = [server.command, client.command, group]
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        commands.append(found)
    return {
        option
        for command in commands
        for parameter in command.get_params(click.Context(command))
        for option in (*parameter.opts, *parameter.secondary_opts)
    }


def test_every_option_that_the_readme_names_exists() -> None:
    named = set(re.findall(r"`(--[a-z-]+)", README))
    assert "--connections" in named
    assert named <= all_options()


def test_the_table_of_options_has_the_defaults_of_the_code() -> None:
    rows = re.findall(r"^\| `(--[a-z-]+)[^`]*` \| (\w+) \| (.*?) \|", README, re.MULTILINE)
    assert len(rows) >= 6
    for option, side, default in rows:
        for name, (command, _) in PROGRAMS.items():
            options = {o: p for p in command.params for o in p.opts}
            sides = {other for known, other, _ in rows if known == option}
            is_there = any(other == "both" or name.endswith(other) for other in sides)
            assert (option in options) == is_there, option
            setting = options.get(option)
            if isinstance(setting, SettingOption) and (side == "both" or name.endswith(side)):
                found = next(
                    field
                    for field in settings.fields(PROGRAMS[name][1])
                    if settings.option_name(field.name) == option
                )
                # Words and a second program's address are there for the reader.
                number = re.search(r"[\d.:]+", found.default_text)
                assert number is None or number[0].removeprefix("127.0.0.1") in default, option


# --- the configuration files shown --------------------------------------------------------------


@pytest.mark.parametrize("text", [*fenced(README, "toml"), *fenced(SECURITY, "toml")])
def test_a_configuration_file_of_the_readme_loads(text: str, tmp_path: Path) -> None:
    match = re.match(r"# (\w+)\.toml, for: (fastmtcp-\w+) --config (\w+)\.toml\n", text)
    assert match
    assert match[1] == match[3]
    path = tmp_path / f"{match[1]}.toml"
    path.write_text(text, encoding="utf-8")
    loaded = settings.load(PROGRAMS[match[2]][1], str(path), {})
    if isinstance(loaded, ClientConfig):
        assert loaded.link_file == str(tmp_path / "fastmtcp.link")
    else:
        assert isinstance(loaded, ServerConfig)
        assert loaded.clients_file == str(tmp_path / "clients")


def test_the_readme_shows_a_configuration_of_each_side() -> None:
    shown = {program for program in PROGRAMS for text in fenced(README, "toml") if program in text}
    assert shown == set(PROGRAMS)


# --- paths and the status -------------------------------------------------------------------------


def test_the_readme_has_every_option_of_a_path() -> None:
    documented = re.findall(r"^\| `(\w+)(?:=[^`]*)?`(?: or `\w+`)? \|", README, re.MULTILINE)
    assert sorted(documented) == sorted(KEYS)


def test_the_readme_says_how_many_connections_there_may_be() -> None:
    text = " ".join(README.split())
    assert f"{MAX_CONNECTIONS} is the most for a path, {client_config.MAX_SUBFLOWS} for all" in text


def test_the_readme_has_every_key_of_the_status() -> None:
    rows = re.findall(r"^\| (\w+) \| (`\w+`.*) \|$", README, re.MULTILINE)
    documented = {name: re.findall(r"`(\w+)`", keys) for name, keys in rows}
    kinds: dict[str, type[msgspec.Struct]] = {
        "instance": document.InstanceStatus,
        "worker": document.WorkerStatus,
        "session": document.SessionStatus,
        "path": document.PathStatus,
        "subflow": document.SubflowStatus,
        "stream": document.StreamStatus,
        "totals": document.TotalsStatus,
    }
    coded = {
        name: [field.encode_name for field in msgspec.structs.fields(kind)]
        for name, kind in kinds.items()
    }
    assert documented == coded


def test_the_readme_shows_a_guide_for_each_use_of_a_path() -> None:
    paths = [path for path in map(path_of, our_commands(README)) if path is not None]
    shown = {key for specs in paths for spec in specs for key in KEYS if is_set(spec, key)}
    assert shown == set(KEYS) - {"bind"}  # in the text: it alone seldom chooses a line


def path_of(line: str) -> tuple[PathSpec, ...] | None:
    """The paths of a client's command line."""
    name, *args = shlex.split(line, comments=True)
    if name != "fastmtcp-client" or "--help" in args:
        return None
    return tuple(
        PathSpec.parse(value) for option, value in itertools.pairwise(args) if option == "--server"
    )


def is_set(spec: PathSpec, key: str) -> bool:
    return bool(getattr(spec, key) != getattr(PathSpec(spec.endpoint), key))


# --- limits ---------------------------------------------------------------------------------------


def test_the_table_of_limits_has_every_limit_that_can_be_set_with_its_default() -> None:
    rows = re.findall(r"^\| (`\w+`[^|]*|[A-Z_]+) \| ([^|]*) \|", SECURITY, re.MULTILINE)
    documented = {name.strip("`"): default for names, default in rows for name in names.split(", ")}
    settable = {
        field.name: field.default
        for table in (ServerLimits, ClientLimits)
        for field in settings.table_fields(table)
    }
    assert {name for name in documented if name.islower()} == set(settable)
    of_names = {name: getattr(resolver, name) for name in ("MAX_THREADS", "MAX_QUESTIONS")}
    coded = vars(limits) | vars(handshake) | vars(admission) | of_names
    coded["MAX_EMPTY"] = tls.MAX_EMPTY
    fixed = {name: coded[name] for name in documented if name.isupper()}
    assert len(fixed) >= 8
    for name, value in {**settable, **fixed}.items():
        number, _, unit = documented[name].partition(" ")
        assert float(number) * {"": 1, "s": 1, "KiB": KIB, "MiB": MIB}[unit] == value, name
