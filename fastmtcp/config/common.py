"""What the settings of client and server have in common: default, unit and check of each.

The command-line options and their `--help`, the keys of the TOML file and the values that the
processes get are all made from fastmtcp.config.client and fastmtcp.config.server, by
fastmtcp.config.settings.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Literal

from msgspec import Meta

from fastmtcp.config.settings import (
    LOGGING,
    PROCESSES,
    SECURITY,
    SESSIONS,
    Setting,
    SettingError,
    Settings,
    check_file_name,
)
from fastmtcp.status import control_name

MAX_WORKERS = 256
USUAL_WORKERS = 8
"""No more are started unless the user says so: each has connections of its own."""

WORKER_SPACE = 64 << 20
"""Bytes that a worker needs to be of use. Where the memory is limited, that limits their number."""

CONTROL_OFF = "off"
MAX_KEEPALIVE = 32767
"""Seconds, the most that Linux takes."""

# As useradd(8) and groupadd(8) allow them.
_NAME = r"[A-Za-z_][A-Za-z0-9_.-]{0,30}\$?"
_USER = re.compile(rf"{_NAME}(?::{_NAME})?")

Workers = Annotated[int, Meta(ge=1, le=MAX_WORKERS)]
Timeout = Annotated[float, Meta(ge=0.1, le=600)]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]


class Config(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What client and server have in common."""

    key_file: Annotated[
        str | None,
        Setting(
            SECURITY,
            "File with the key that client and server prove to each other that they hold. In a "
            "configuration file the name is relative to that file.",
            metavar="FILE",
            default_text="none",
            envvar="FASTMTCP_KEY_FILE",
            is_file=True,
        ),
    ] = None
    certificate: Annotated[
        str | None,
        Setting(
            SECURITY,
            "This side's certificate, in PEM. It is read again when the file changes.",
            metavar="FILE",
            default_text="none",
            is_file=True,
        ),
    ] = None
    certificate_key: Annotated[
        str | None,
        Setting(
            SECURITY,
            "The private key of the certificate, in PEM.",
            metavar="FILE",
            default_text="in the certificate's file",
            is_file=True,
        ),
    ] = None
    user: Annotated[
        str | None,
        Setting(
            SECURITY,
            "User, and group, to become once the ports are bound and the key is read; needs root.",
            metavar="NAME[:GROUP]",
            default_text="the one who starts it",
        ),
    ] = None
    workers: Annotated[
        Workers | None,
        Setting(
            PROCESSES,
            "Worker processes. By default there is one for each CPU that this process may use, by "
            "its affinity and by the CPU quota of its control group, but not more than "
            f"{USUAL_WORKERS}, nor than one for each {WORKER_SPACE >> 20} MiB that the group may "
            "use.",
            metavar="N",
            default_text=f"one per usable CPU, up to {USUAL_WORKERS}",
        ),
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
    keepalive: Annotated[
        int,
        Meta(ge=0, le=MAX_KEEPALIVE),
        Setting(
            SESSIONS,
            "TCP keep-alive to applications and targets: how long nothing may come from one before "
            "its system is asked whether it is still there. If it is not, the stream is reset "
            "after as long again. 0 is off.",
            metavar="SECONDS",
            unit="seconds",
        ),
    ] = 60
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
        for key in ("key_file", "certificate", "certificate_key"):
            check_file(self, key)
        if self.certificate_key is not None and self.certificate is None:
            raise SettingError("certificate_key", "belongs to a certificate; set that as well")
        if self.user is not None and not _USER.fullmatch(self.user):
            raise SettingError("user", f"{self.user!r} is no user; write NAME or NAME:GROUP")
        if self.control is not None and not control_name.is_name(self.control):
            raise SettingError(
                "control",
                f"{self.control!r} is no name; write up to {control_name.MAX_NAME} letters, "
                "digits, dots, underscores and hyphens",
            )

    def worker_count(self) -> int:
        """The number of workers to start: as set, or what this process may use. It is another one
        when the limits of the control group have changed."""
        if self.workers is not None:
            return self.workers
        from fastmtcp.io import cgroup

        limits = [USUAL_WORKERS, _usable_cpus()]
        quota, memory = cgroup.cpu_quota(), cgroup.memory_limit()
        if quota is not None:
            limits.append(int(quota))
        if memory is not None:
            limits.append(memory // WORKER_SPACE)
        return max(min(limits), 1)


def _usable_cpus() -> int:
    import psutil

    try:
        return len(psutil.Process().cpu_affinity() or ())
    except AttributeError:  # macOS has no affinity
        return psutil.cpu_count() or 1
    except (psutil.Error, OSError):  # no /proc
        return len(os.sched_getaffinity(0))


def check_file(config: Config, key: str) -> None:
    name = getattr(config, key)
    if name is not None:
        check_file_name(key, name)
