"""What the commands of the benchmarks share: options, one-line errors, exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
from fastmtcp.cli.options import run

from perf.processes import stop_on_signals
from perf.setups import PLAIN, SETUPS

F = TypeVar("F", bound=Callable[..., Any])


def repeat_option(function: F) -> F:
    return click.option(
        "--repeat",
        default=3,
        show_default=True,
        type=click.IntRange(1, 99),
        help="Runs of each measurement, in turns; the table has their medians.",
    )(function)


def seconds_option(default: int) -> Callable[[F], F]:
    return click.option(
        "--seconds",
        default=default,
        show_default=True,
        type=click.IntRange(1, 600),
        help="Length of each measurement.",
    )


def setup_option(function: F) -> F:
    return click.option(
        "--setup",
        default=PLAIN,
        show_default=True,
        type=click.Choice(SETUPS),
        help="How fastmtcp is set up; see perf/README.md.",
    )(function)


def skip_option(*names: str) -> Callable[[F], F]:
    return click.option(
        "--skip",
        multiple=True,
        type=click.Choice(names),
        help="Leave something out; may be repeated.",
    )


def start(command: click.Command) -> None:
    """Run as a program: errors are one line, and signals clean up."""
    stop_on_signals()
    sys.exit(run(command))
