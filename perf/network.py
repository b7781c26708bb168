"""Two network namespaces, and between them a line that treats each TCP connection by itself.

    client namespace  10.77.0.1 ---- 10.77.0.2  server namespace

Kernel only: a veth pair, nft to give each connection a number, tc-htb to give each number a rate,
tc-netem for the round-trip time. Where the kernel lacks netem, another program may play the line.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click
from fastmtcp.endpoint import Endpoint

from perf.processes import BenchmarkError, need, running

CLIENT_ADDRESS = "10.77.0.1"
SERVER_ADDRESS = "10.77.0.2"
CLASSES = 256
"""Connections that are told apart; the next one shares the class of the first."""

_FIRST_CLASS = 16
_NAMED = Path("/run/netns")
_INSIDE = "FASTMTCP_PERF_USER_NAMESPACE"
_NAME = re.compile(r"fastmtcp-[cs]-(\d+)")


class Line(NamedTuple):
    """How each connection is treated: bytes per second each way (0: no limit), RTT in seconds.

    `wan` names a program that plays the line instead of the kernel. It is called as
    `PROGRAM NS_A ADDR_A NS_B ADDR_B PROFILES`, prints a line with `ready` on standard error, and
    runs until SIGTERM. PROFILES is a file with one line, for every connection from A to B:
    `up=160000000bit down=160000000bit delay=20ms queue=100ms`; `delay` is one way, in ms, and a
    rate that is left out is no limit.
    """

    rate: int = 0
    rtt: float = 0.0
    wan: str | None = None


class Network(NamedTuple):
    """The names of the two namespaces."""

    client: str
    server: str

    @staticmethod
    def inside(namespace: str) -> list[str]:
        """The start of a command that runs in a namespace."""
        # Not `ip netns exec`, which mounts /sys anew: a user namespace may not.
        return ["nsenter", f"--net={_NAMED / namespace}", "--"]


def become_root(module: str, arguments: Sequence[str]) -> None:
    """Without root, start again in a user namespace. Raises BenchmarkError where that is barred."""
    need("ip", "tc", "ss", "nft", "nsenter", "unshare")
    if os.environ.get(_INSIDE):
        # Nobody may write to the system's /run here; this one is ours and goes with us.
        do("mount", "-t", "tmpfs", "fastmtcp", "/run")
        del os.environ[_INSIDE]
    if os.geteuid() == 0:
        return
    # --net as well: `ip netns add` goes back to the namespace it came from.
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "--net"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        raise BenchmarkError(
            "network namespaces need root, and user namespaces are not allowed here; run it with "
            "sudo, or allow them: sudo sysctl kernel.unprivileged_userns_clone=1"
        )
    os.environ[_INSIDE] = "1"
    os.execvp(unshare[0], [*unshare, "--", sys.executable, "-m", module, *arguments])


@contextlib.contextmanager
def namespaces() -> Iterator[Network]:
    """Two namespaces with nothing between them, for the time of the `with` block."""
    _remove_leftovers()
    names = Network(f"fastmtcp-c-{os.getpid()}", f"fastmtcp-s-{os.getpid()}")
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.callback(_remove, name)
            do("ip", "netns", "add", name)
            do("ip", "-n", name, "link", "set", "lo", "up")
        yield names


@contextlib.contextmanager
def network(line: Line) -> Iterator[Network]:
    """Two namespaces joined by `line`, for the time of the `with` block. Raises BenchmarkError."""
    with namespaces() as names, contextlib.ExitStack() as stack:
        if line.wan is not None:
            stack.enter_context(_wan(names, line, line.wan))
        else:
            veth(names)
            for name in names:
                _shape(name, line)
        yield names


def veth(names: Network) -> None:
    """Join two namespaces by devices called `line`, with an address at each end."""
    peer = ["peer", "name", "line", "netns", names.server]
    do("ip", "-n", names.client, "link", "add", "line", "type", "veth", *peer)
    for name, address in zip(names, (CLIENT_ADDRESS, SERVER_ADDRESS), strict=True):
        do("ip", "-n", name, "address", "add", f"{address}/24", "dev", "line")
        do("ip", "-n", name, "link", "set", "line", "up")


def _shape(name: str, line: Line) -> None:
    if line.rate:
        do(*Network.inside(name), "nft", "-f", "-", text=nft_rules())
    do(*Network.inside(name), "tc", "-batch", "-", text=tc_rules(line))


def nft_rules() -> str:
    """Give each TCP connection a class of its own, in turn."""
    # By mark 0 and not `ct state new`: to the server's end the first packet out, a SYN-ACK, is
    # an answer already. Class 0 is therefore never given.
    classes = ", ".join(f"{n} : 1:{n + _FIRST_CLASS:x}" for n in range(1, CLASSES + 1))
    return f"""\
table inet fastmtcp {{
  chain out {{
    type filter hook postrouting priority 0;
    meta l4proto tcp ct mark 0 ct mark set numgen inc mod {CLASSES} offset 1
    meta l4proto tcp meta priority set ct mark map {{ {classes} }}
  }}
}}
"""


def tc_rules(line: Line) -> str:
    """The commands for `tc -batch` that make one end of the line, on device `line`."""
    netem = f"netem delay {line.rtt / 2 * 1e3:g}ms limit 50000"
    if not line.rate:
        return f"qdisc add dev line root {netem}\n" if line.rtt else ""
    lines = [
        "qdisc add dev line root handle 1: htb default 1",
        "class add dev line parent 1: classid 1:1 htb rate 10gbit quantum 60000",
    ]
    for number in range(_FIRST_CLASS + 1, _FIRST_CLASS + CLASSES + 1):
        lines.append(
            f"class add dev line parent 1: classid 1:{number:x} "
            f"htb rate {line.rate * 8}bit burst 128k cburst 128k quantum 60000"
        )
        if line.rtt:
            lines.append(f"qdisc add dev line parent 1:{number:x} handle {number + 1:x}: {netem}")
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def _wan(names: Network, line: Line, program: str) -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        profiles = Path(folder) / "profiles"
        profiles.write_text(wan_profile(line))
        ends = (names.client, f"{CLIENT_ADDRESS}/24", names.server, f"{SERVER_ADDRESS}/24")
        with running(program, [program, *ends, str(profiles)]):
            yield


def wan_profile(line: Line) -> str:
    """What the program given by --wan reads."""
    rates = f"up={line.rate * 8}bit down={line.rate * 8}bit " if line.rate else ""
    return f"{rates}delay={line.rtt / 2 * 1e3:g}ms queue=100ms\n"


def has_netem() -> bool:
    """If this kernel can make a round-trip time."""
    test = ["unshare", "--net", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
    return subprocess.run(test, capture_output=True, check=False).returncode == 0


def check_netem(rtt: float, wan: str | None) -> None:
    """Raise BenchmarkError if there is a round-trip time that this kernel cannot make."""
    if wan is None and rtt and not has_netem():
        raise BenchmarkError(
            "this kernel has no netem (sch_netem), which makes the round-trip time; use another "
            "kernel, or name a program that emulates the line by --wan (see perf/README.md)"
        )


def server_endpoint() -> Endpoint:
    """Where fastmtcp-server listens in the server namespace."""
    return Endpoint(SERVER_ADDRESS, 7700)


def _remove_leftovers() -> None:
    """Namespaces of a benchmark that was killed (it had no chance to clean up)."""
    for path in _NAMED.glob("fastmtcp-*"):
        found = _NAME.fullmatch(path.name)
        if found and not Path(f"/proc/{found.group(1)}").exists():
            _remove(path.name)


def _remove(name: str) -> None:
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def do(*command: str, text: str | None = None) -> None:
    """Run a command of the system. Raises BenchmarkError with what it said."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        name = next(word for word in command if word in ("ip", "tc", "nft", "mount"))
        raise BenchmarkError(f"{name} failed: {said[0] if said else done.returncode}")


wan_option = click.option(
    "--wan",
    metavar="PROGRAM",
    envvar="FASTMTCP_PERF_WAN",
    help="Program that plays the line instead of the kernel; see perf/README.md. "
    "[environment: FASTMTCP_PERF_WAN]",
)
