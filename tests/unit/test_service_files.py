"""The systemd units in scripts/: they start the programs as they are, and close what they can."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastmtcp.cli import client, server

SCRIPTS = Path(__file__).parents[2] / "scripts"
COMMANDS = {"server": server.command, "client": client.command}

CLOSED = {
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "DynamicUser": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "MemoryDenyWriteExecute": "yes",
    "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "SystemCallArchitectures": "native",
}


def settings_of(side: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    text = (SCRIPTS / f"fastmtcp-{side}.service").read_text()
    for name, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("side", COMMANDS)
def test_the_command_line_parses_and_finds_its_files(side: str) -> None:
    unit = settings_of(side)
    (start,) = unit["ExecStart"]
    program, *args = start.split()
    assert program.endswith(f"/bin/fastmtcp-{side}")
    found = COMMANDS[side].make_context(f"fastmtcp-{side}", args).params["config_file"]
    if side == "client":
        loaded = {text.partition(":")[0] for text in unit["LoadCredential"]}
        assert loaded == {found.removeprefix("%d/"), "fastmtcp.link"}
    else:
        assert found.startswith(f"%S/{unit['StateDirectory'][0]}/")
        assert unit["StateDirectoryMode"] == ["0700"]


@pytest.mark.parametrize("side", COMMANDS)
def test_what_can_be_closed_is(side: str) -> None:
    unit = settings_of(side)
    assert {name: unit[name] for name in CLOSED} == {name: [v] for name, v in CLOSED.items()}
    assert unit["Type"] == ["notify"]
    # The supervisor's own watch over its workers takes 40 s.
    assert int(unit["WatchdogSec"][0]) > 45
    # What the program asks the kernel who the other one is for would be wrong.
    assert "PrivateUsers" not in unit
    assert "PrivateNetwork" not in unit


def test_both_are_the_same_but_for_the_names_and_files() -> None:
    own = ("ExecStart", "LoadCredential", "StateDirectory", "StateDirectoryMode", "Description")
    server_side, client_side = map(settings_of, COMMANDS)
    for name in own:
        server_side.pop(name, None)
        client_side.pop(name, None)
    assert server_side == client_side
