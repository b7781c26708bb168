from __future__ import annotations

import errno
import os
import re
import signal
import stat
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from fastmtcp import __version__
from fastmtcp.cli import client, options, server
from fastmtcp.cli import main as group
from fastmtcp.client import program as client_program
from fastmtcp.config import common, settings
from fastmtcp.config.client import ClientConfig
from fastmtcp.config.connections import Connections
from fastmtcp.config.path import PathSpec
from fastmtcp.config.server import ServerConfig
from fastmtcp.endpoint import Endpoint
from fastmtcp.errors import ConfigError, PeerError, StartError
from fastmtcp.security import keys
from fastmtcp.server import program as server_program

from tests import unmeasured

HEX = "0123456789abcdef" * 4
PROGRAMS = [(server, ServerConfig), (client, ClientConfig)]
Capture = pytest.CaptureFixture[str]


class Supervisor:
    """Stands in for the ports and the processes: keeps the configurations it was started with."""

    def __init__(self) -> None:
        self.started: list[common.Config] = []
        self.outcome: Callable[[], int] = lambda: 0

    def prepare(self, given: common.Config, *_: object) -> None:
        self.started.append(given)

    def make(self, *_: object, **__: object) -> Supervisor:
        return self

    def run(self) -> int:
        return self.outcome()


@pytest.fixture(autouse=True)
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    made = Supervisor()
    for program in (server_program, client_program):
        monkeypatch.setattr(program, "prepare", made.prepare)
        monkeypatch.setattr(program, "Supervisor", made.make)
    monkeypatch.delenv("FASTMTCP_KEY_FILE", raising=False)
    return made


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = tmp_path / "fastmtcp.key"
    keys.generate(path)
    return str(path)


def one_error(capsys: Capture) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err.removesuffix("\n")


@pytest.mark.parametrize(("program", "config_type"), PROGRAMS)
def test_with_nothing_else_the_defaults_run(
    supervisor: Supervisor, capsys: Capture, program: Any, config_type: type[common.Config]
) -> None:
    assert program.main([]) == 0
    assert supervisor.started == [config_type()]
    assert capsys.readouterr() == ("", "")


def test_every_server_option(supervisor: Supervisor, key_file: str) -> None:
    line = (
        "--listen *:7700 --listen [::1]:7 --target example.com:80 --workers 4 --drain-timeout 1.5 "
        "--connect-timeout 3 --session-timeout 7 --log-level debug --log-format json "
        "--control mine --user nobody:nogroup --key-file"
    )
    assert server.main([*line.split(), key_file]) == 0
    assert supervisor.started == [
        ServerConfig(
            listen=(Endpoint("*", 7700), Endpoint("::1", 7)),
            target=Endpoint("example.com", 80),
            workers=4,
            drain_timeout=1.5,
            connect_timeout=3,
            session_timeout=7,
            log_level="debug",
            log_format="json",
            control="mine",
            user="nobody:nogroup",
            key_file=key_file,
        )
    ]


def test_every_client_option(supervisor: Supervisor, key_file: str) -> None:
    line = (
        "--listen localhost:1 --server a:1 --server [::1]:2,bind=::1,backup --connections 8 "
        "--workers 2 --egress auto --no-express --session-timeout 60 --drain-timeout 0 "
        "--connect-timeout 3 --log-level error --log-format text --control off "
        "--user nobody --key-file"
    )
    assert client.main([*line.split(), key_file]) == 0
    assert supervisor.started == [
        ClientConfig(
            listen=(Endpoint("localhost", 1),),
            server=(
                PathSpec(Endpoint("a", 1)),
                PathSpec(Endpoint("::1", 2), bind="::1", backup=True),
            ),
            connections=Connections(8, 8),
            egress="auto",
            express=False,
            session_timeout=60,
            workers=2,
            drain_timeout=0,
            connect_timeout=3,
            log_level="error",
            control="off",
            user="nobody",
            key_file=key_file,
        )
    ]


@pytest.mark.parametrize(("program", "config_type"), PROGRAMS)
def test_every_setting_has_an_option(program: Any, config_type: type[common.Config]) -> None:
    names = {param.name for param in program.command.params}
    tables = {field.name for field in settings.fields(config_type) if field.is_table}
    assert tables == {"limits"}
    assert names == {*config_type.__struct_fields__, "config_file", "version"} - tables


def test_options_win_over_the_environment_over_the_file(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {}
    for place in ("file", "environment", "option"):
        names[place] = str(tmp_path / place)
        keys.generate(names[place])
    path = tmp_path / "c.toml"
    path.write_text("key_file = 'file'\nworkers = 3\nconnections = 2\n")
    assert client.main(["--config", str(path), "--workers", "5"]) == 0
    monkeypatch.setenv("FASTMTCP_KEY_FILE", names["environment"])
    assert client.main(["--config", str(path)]) == 0
    assert client.main(["--config", str(path), "--key-file", names["option"]]) == 0
    first, second, third = supervisor.started
    assert isinstance(first, ClientConfig)
    assert (first.key_file, first.workers, first.connections) == (
        names["file"],
        5,
        Connections(2, 2),
    )
    assert (second.key_file, second.workers) == (names["environment"], 3)
    assert third.key_file == names["option"]


def test_an_empty_environment_variable_is_none(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTMTCP_KEY_FILE", "")
    assert server.main([]) == 0
    assert supervisor.started == [ServerConfig()]


@pytest.mark.parametrize(
    ("program", "args", "message"),
    [
        (server, ["--lisen", "a:1"], "no such option"),
        (server, ["extra"], "got unexpected extra argument (extra)"),
        (server, ["--target"], "option '--target' requires an argument"),
        (server, ["--target", "a:1", "--connections", "4"], "no such option"),
        (server, ["--target", "x"], "--target: 'x' has no port; write HOST:PORT, for example x:77"),
        (server, ["--workers", "0"], "--workers: '0' must be a whole number from 1 to 256"),
        (server, ["--workers", "two"], "--workers: 'two' must be a whole number from 1 to 256"),
        (server, ["--log-level", "warn"], "--log-level: 'warn' must be one of debug, info, warn"),
        (server, ["--config", "/none.toml"], "--config '/none.toml' cannot be read: No such file"),
        (server, ["--config", ""], "--config '' cannot be read: No such file"),
        (server, ["--key-file", "/none.key"], "key file /none.key does not exist; make one with"),
        (server, ["--key-file", ""], "--key-file: names no file"),
        (server, ["--key-file", HEX], "--key-file: takes the name of a file, never the key itself"),
        (server, [HEX], "got unexpected extra argument ((hidden))"),
        (server, ["--listen", ":7700"], "--listen: *:7700 is not loopback"),
        (
            client,
            ["--connections", "65"],
            "--connections: '65' must be a whole number from 1 to 64, or a range such as 2-16",
        ),
        (client, ["--server", ":7700"], "--server: *:7700 is for listening only"),
        (
            server,
            ["--control", "a b"],
            "--control: 'a b' is no name; write up to 40 letters, digits",
        ),
        (client, ["--control", ""], "--control: '' is no name"),
        (client, ["--drain-timeout", "1h"], "--drain-timeout: '1h' must be a number of seconds"),
        (client, ["--server", "a\nb:1"], "--server: 'a\\nb:1' has no valid host name"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(
    supervisor: Supervisor, capsys: Capture, program: Any, args: list[str], message: str
) -> None:
    assert program.main(args) == 2
    error = one_error(capsys)
    assert error.startswith(f"{program.command.name}: error: {message}")
    assert HEX not in error
    assert supervisor.started == []


def test_usage_errors_point_to_help(capsys: Capture) -> None:
    assert server.main(["--lisen", "a:1"]) == 2
    error = one_error(capsys)
    assert "--listen" in error
    assert error.endswith("see `fastmtcp-server --help`")


def test_a_wrong_file_names_file_and_key(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "c.toml"
    path.write_text("conections = 3\n")
    assert client.main(["--config", str(path)]) == 2
    expected = f"{path}: conections: unknown key; did you mean connections?"
    assert one_error(capsys) == f"fastmtcp-client: error: {expected}"


@pytest.mark.parametrize("by", ["option", "environment", "file"])
@pytest.mark.parametrize("program", [server, client])
def test_a_bad_key_file_is_wrong_usage(
    supervisor: Supervisor,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    key_file: str,
    program: Any,
    by: str,
) -> None:
    os.chmod(key_file, 0o644)
    (tmp_path / "c.toml").write_text("key_file = 'fastmtcp.key'")
    args = {
        "option": ["--key-file", key_file],
        "environment": [],
        "file": ["--config", str(tmp_path / "c.toml")],
    }
    if by == "environment":
        monkeypatch.setenv("FASTMTCP_KEY_FILE", key_file)
    assert program.main(args[by]) == 2
    error = one_error(capsys)
    assert f"`chmod 600 {key_file}`" in error
    assert Path(key_file).read_text().strip() not in error
    assert supervisor.started == []


def raising(error: BaseException) -> Callable[[], int]:
    def outcome() -> int:
        raise error

    return outcome


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (StartError("127.0.0.1:7700 is in use"), 1, "127.0.0.1:7700 is in use"),
        (PeerError("wrong key"), 1, "wrong key"),
        (ConfigError("bad"), 2, "bad"),
        (StartError("two\nlines"), 1, "two lines"),
        (StartError(f"key {HEX}"), 1, "key (hidden)"),
        (OSError(errno.EMFILE, "Too many open files"), 1, "Too many open files"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "/x: Permission denied"),
        (OSError("no number"), 1, "no number"),
        (KeyboardInterrupt(), 1, "interrupted"),
        (click.ClickException("From Click."), 1, "from Click"),
        (click.FileError("f", "Gone."), 1, "could not open file 'f': Gone"),
    ],
)
def test_failures_are_one_line_with_their_exit_code(
    supervisor: Supervisor, capsys: Capture, error: BaseException, code: int, message: str
) -> None:
    supervisor.outcome = raising(error)
    assert server.main([]) == code
    # click ends the line that shows ^C on a terminal.
    stderr = capsys.readouterr().err.removeprefix("\n")
    assert stderr == f"fastmtcp-server: error: {message}\n"


def test_a_fault_of_ours_is_one_line_with_its_place(
    supervisor: Supervisor, capsys: Capture
) -> None:
    supervisor.outcome = raising(ZeroDivisionError("by zero"))
    assert client.main([]) == 1
    error = one_error(capsys)
    assert error.startswith("fastmtcp-client: error: internal error, please report it: ")
    assert "ZeroDivisionError: by zero" in error
    assert re.search(r"test_cli\.py:\d+\)$", error)


@pytest.mark.parametrize("code", [0, 1, 2, 7])
@pytest.mark.parametrize("program", [server, client])
def test_the_supervisors_exit_code_is_ours(supervisor: Supervisor, program: Any, code: int) -> None:
    supervisor.outcome = lambda: code
    assert program.main([]) == code


@pytest.mark.parametrize(("program", "config_type"), PROGRAMS)
@pytest.mark.parametrize("width", [60, 80, 200])
def test_help_has_every_setting_by_group_with_default_and_environment(
    program: Any, config_type: type[common.Config], width: int
) -> None:
    result = CliRunner().invoke(program.command, ["--help"], terminal_width=width)
    assert result.exit_code == 0
    sections = dict(
        re.findall(r"^([A-Z][A-Za-z ]+):\n((?:  .*\n|\n(?=  +-))+)", result.output, re.M)
    )
    fields = [field for field in settings.fields(config_type) if not field.is_table]
    wanted = [name for name in settings.GROUPS if any(f.setting.group == name for f in fields)]
    assert list(sections) == [*wanted, options.GENERAL]
    for field in fields:
        section = " ".join(sections[field.setting.group].split())
        option = settings.option_name(field.name)
        shown = f"{option} {field.setting.metavar or '[' + '|'.join(field.choices) + ']'}"
        if field.type is bool:
            shown = f"{option}, --no-{option.removeprefix('--')}"
        assert f"{shown} " in section
        text = section.partition(f"{shown} ")[2].partition(" --")[0]
        for part in (
            field.setting.help,
            f"default: {field.default_text}",
            field.limits,
            "may be repeated" if field.many else "",
            f"environment: {field.setting.envvar}" if field.setting.envvar else "",
        ):
            assert part in text
    for name in ("--config FILE", "--version", "--help"):
        assert name in sections[options.GENERAL]
    assert "Exit codes: 0 clean" in result.output


@pytest.mark.parametrize("program", [server, client, group])
def test_version_option(program: Any, capsys: Capture) -> None:
    assert program.main(["--version"]) == 0
    name = {server: "fastmtcp-server", client: "fastmtcp-client", group: "fastmtcp"}[program]
    assert capsys.readouterr().out == f"{name} {__version__}\n"


def test_version_command(capsys: Capture) -> None:
    assert group.main(["version"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"fastmtcp {__version__} (Python 3.")
    assert out.count("\n") == 1


def test_the_groups_help_names_every_command_and_imports_none(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    # None in sys.modules makes an import of that module fail.
    monkeypatch.setitem(sys.modules, "fastmtcp.cli.connect", None)
    monkeypatch.setitem(sys.modules, "fastmtcp.cli.demo", None)
    monkeypatch.setitem(sys.modules, "fastmtcp.cli.status", None)
    monkeypatch.setitem(sys.modules, "fastmtcp.cli.throttle", None)
    assert group.main(["--help"]) == 0
    commands = capsys.readouterr().out.partition("Commands:\n")[2]
    names = re.findall(r"^  ([a-z]+)  ", commands, re.M)
    assert names == ["client", "connect", "demo", "init", "keygen", "status", "throttle", "version"]


@pytest.mark.parametrize("name", ["demo", "status", "throttle"])
def test_lazy_commands(monkeypatch: pytest.MonkeyPatch, capsys: Capture, name: str) -> None:
    @click.command(name)
    @click.option("--fail", is_flag=True)
    def command(fail: bool) -> int:
        if fail:
            raise StartError("no port")
        click.echo(f"ran {name}")
        return 3

    module = types.ModuleType(f"fastmtcp.cli.{name}")
    setattr(module, name, command)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert group.main([name]) == 3
    assert capsys.readouterr().out == f"ran {name}\n"
    assert group.main([name, "--fail"]) == 1
    assert one_error(capsys) == "fastmtcp: error: no port"
    assert group.main([name, "--nope"]) == 2
    assert one_error(capsys).endswith(f"see `fastmtcp {name} --help`")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            [],
            "a command is missing: client, connect, demo, init, keygen, status, throttle, version",
        ),
        (["nope"], "no such command 'nope'"),
        (["--nope"], "no such option"),
    ],
)
def test_wrong_usage_of_the_group(capsys: Capture, args: list[str], message: str) -> None:
    assert group.main(args) == 2
    error = one_error(capsys)
    assert error.startswith(f"fastmtcp: error: {message}")
    assert error.endswith("see `fastmtcp --help`")


def test_keygen(tmp_path: Path, capsys: Capture, supervisor: Supervisor) -> None:
    path = tmp_path / "my key"
    assert group.main(["keygen", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"--key-file '{path}'" in out
    assert path.read_text().strip() not in out
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_text()
    assert group.main(["keygen", str(path)]) == 2
    assert "already exists and is not overwritten" in one_error(capsys)
    assert path.read_text() == before
    # The two commands that the refusal of a keyless server names do what it says.
    assert server.main(["--listen", "*:7700", "--key-file", str(path)]) == 0
    assert len(supervisor.started) == 1


def test_keygen_without_a_file(capsys: Capture) -> None:
    assert group.main(["keygen"]) == 2
    error = one_error(capsys)
    assert error == "fastmtcp keygen: error: missing argument 'FILE'; see `fastmtcp keygen --help`"


# Real processes, each through the function that the console script calls.
START = "import sys; from fastmtcp.cli.{module} import main; sys.exit(main())"


def process(module: str, *args: str, before: str = "", **kwargs: Any) -> Any:
    code = before + START.format(module=module)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=60,
        **kwargs,
    )


def test_processes_have_the_exit_codes(tmp_path: Path) -> None:
    wrong = process("server", "--listen", "0.0.0.0:7700")
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)
    assert "fastmtcp keygen fastmtcp.key" in wrong.stderr
    assert process("client", "--version").stdout == f"fastmtcp-client {__version__}\n"
    made = process("main", "keygen", "k", cwd=tmp_path)
    assert made.returncode == 0
    assert process("main", "keygen", "k", cwd=tmp_path).returncode == 2


def test_importing_a_program_is_light() -> None:
    heavy = ["psutil", "asyncio", "ssl", "multiprocessing", "logging.handlers"]
    heavy += ["fastmtcp.engine.session", "fastmtcp.io"]
    alone = unmeasured.environment()
    for module in ("server", "client", "main"):
        code = f"import sys, fastmtcp.cli.{module}; print(*sys.modules)"
        out = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=alone
        )
        loaded = out.stdout.split()
        assert f"fastmtcp.cli.{module}" in loaded
        for name in heavy:
            stem = name.removesuffix(".*")
            found = [one for one in loaded if one == stem or one.startswith(stem + ".")]
            assert found == []


def test_ctrl_c_shows_no_traceback() -> None:
    before = (
        "import sys, types, time\n"
        "def run(config):\n"
        "    print('running', flush=True)\n"
        "    while True: time.sleep(60)\n"
        "fake = types.ModuleType('fastmtcp.server.program')\n"
        "fake.run_server = run\n"
        "sys.modules[fake.__name__] = fake\n"
    )
    code = before + START.format(module="server")
    running = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background may have SIGINT ignored, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert running.stdout is not None
        assert running.stdout.readline() == "running\n"
        running.send_signal(signal.SIGINT)
        _, stderr = running.communicate(timeout=60)
    finally:
        running.kill()
        running.wait()
    assert stderr.strip() == "fastmtcp-server: error: interrupted"
    assert running.returncode == 1


@pytest.mark.parametrize(
    ("args", "stream", "code"), [(["--target", "x"], "stderr", 2), (["--help"], "stdout", 1)]
)
@pytest.mark.parametrize("fault", ["full", "broken"])
def test_output_that_cannot_be_written(args: list[str], stream: str, code: int, fault: str) -> None:
    if fault == "full":
        fd = os.open("/dev/full", os.O_WRONLY)
    else:
        read_fd, fd = os.pipe()
        os.close(read_fd)
    outputs: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: fd}
    try:
        result = subprocess.run(
            [sys.executable, "-c", START.format(module="server"), *args],
            text=True,
            timeout=60,
            **outputs,
        )
    finally:
        os.close(fd)
    assert result.returncode == code
    said = (result.stdout or "") + (result.stderr or "")
    assert "Traceback" not in said
    assert "Exception ignored" not in said


def test_standard_error_may_be_closed() -> None:
    script = '"$0" -c "$1" --target x 2>&-'
    command = ["/bin/sh", "-c", script, sys.executable, START.format(module="server")]
    assert subprocess.run(command, timeout=60).returncode == 2
