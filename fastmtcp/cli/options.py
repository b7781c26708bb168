"""What the commands share: options made from the settings, grouped help, errors as one line."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from fastmtcp._version import __version__
from fastmtcp.config import settings
from fastmtcp.config.common import Config
from fastmtcp.errors import FastmtcpError, in_a_sentence

C = TypeVar("C", bound=Config)

GENERAL = "Configuration and help"
EXIT_CODES = "Exit codes: 0 clean, 1 failed while running, 2 wrong usage or configuration."


class SettingOption(click.Option):
    """An option for one setting. Its value stays text: `settings.load` converts and checks it."""

    def __init__(self, field: settings.Field) -> None:
        setting = field.setting
        name = settings.option_name(field.name)
        self._shown = f"{name} {setting.metavar or '[' + '|'.join(field.choices) + ']'}"
        if field.type is bool:
            opposite = f"--no-{name.removeprefix('--')}"
            self._shown = f"{name}, {opposite}"
            super().__init__([f"{name}/{opposite}", field.name], help=setting.help)
        else:
            super().__init__(
                [name, field.name],
                type=str,
                multiple=field.many,
                envvar=setting.envvar,
                help=setting.help,
            )
        self.group = setting.group
        notes = [f"default: {field.default_text}"]
        if field.many:
            notes.append("may be repeated")
        if setting.envvar:
            notes.append(f"environment: {setting.envvar}")
        if field.limits:
            notes.insert(0, field.limits)
        self._notes = "; ".join(notes)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        return self._shown, f"{self.help}  [{self._notes}]"


class GroupedCommand(click.Command):
    """A command whose `--help` shows the options by group."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Argument):
                continue
            record = param.get_help_record(ctx)
            if record is not None:
                group = param.group if isinstance(param, SettingOption) else GENERAL
                sections.setdefault(group, []).append(record)
        for group in (*settings.GROUPS, GENERAL):
            if group in sections:
                with formatter.section(group):
                    formatter.write_dl(sections[group])


def settings_command(
    config_type: type[C],
    serve: Callable[..., int],
    *,
    help: str,
    epilog: str,
    name: str = "",
    without: Sequence[str] = (),
    arguments: Sequence[click.Argument] = (),
) -> click.Command:
    """The command of a program whose options are the settings of `config_type`, those in
    `without` excepted.

    It loads the configuration and returns what `serve(config, **arguments)` returns as the exit
    code. `name` is for a command that is not `config_type.program`.
    """

    def callback(config_file: str | None, **options: Any) -> int:
        context = click.get_current_context()
        more = {one.name: options.pop(one.name) for one in arguments if one.name is not None}
        given = {
            name: value
            for name, value in options.items()
            if context.get_parameter_source(name) is not ParameterSource.DEFAULT
        }
        return serve(settings.load(config_type, config_file, given), **more)

    parameters: list[click.Parameter] = [
        SettingOption(field)
        for field in settings.fields(config_type)
        if not field.is_table and field.name not in without
    ]
    parameters += arguments
    parameters.append(
        click.Option(
            ["--config", "config_file"],
            metavar="FILE",
            help="TOML file with any of these settings: a key is an option's name with _ for -, "
            "for example drain_timeout = 10. Options and the environment win over the file. Its "
            "table [limits] is described in docs/SECURITY.md.",
        )
    )
    command = GroupedCommand(
        name or config_type.program,
        params=parameters,
        callback=callback,
        help=help,
        epilog=f"{epilog}\n\n{EXIT_CODES}",
        context_settings={"max_content_width": 100},
    )
    return version_option(command)


def version_option(command: click.Command) -> click.Command:
    """Give `command` a `--version`."""
    return click.version_option(__version__, message=f"{command.name} %(version)s")(command)


def run(command: click.Command, args: Sequence[str] | None = None) -> int:
    """Run `command` with `args` (default: those of the process) and return the exit code.

    Whatever goes wrong is one line on standard error, `PROGRAM: error: ...`. A command may return
    its exit code; anything but an int counts as 0.
    """
    program = command.name or "fastmtcp"
    try:
        result = command.main(
            None if args is None else list(args), prog_name=program, standalone_mode=False
        )
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else program
        report(where, f"{_plain(error.format_message())}; see `{where} --help`")
        return 2
    except click.ClickException as error:
        report(program, _plain(error.format_message()))
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        report(program, "interrupted")
        return 1
    except FastmtcpError as error:
        report(program, str(error))
        return error.exit_code
    except OSError as error:
        subject = f"{error.filename}: " if error.filename else ""
        report(program, f"{subject}{error.strerror or error}")
        return 1
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
        report(program, f"internal error, please report it: {what}")
        return 1
    return result if isinstance(result, int) else 0


def _plain(message: str) -> str:
    """A message of click in the form of ours: no capital, no full stop."""
    return in_a_sentence(" ".join(message.split()).rstrip("."))


def report(program: str, message: str) -> None:
    """Print an error as one line on standard error."""
    line = settings.one_line(f"{program}: error: {message}")
    # Standard error may be closed or gone; the exit code still tells.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
