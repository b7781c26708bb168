"""Two network namespaces with several lines between them, one for each address of the client.

    10.77.0.11 --\
    10.77.0.12 ---- 10.77.0.2  server namespace
    10.77.0.13 --/

Kernel only: htb, netem and police on a veth pair, by address. Where the kernel lacks netem,
another program may play the lines (see perf.network).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from perf.network import (
    CLIENT_ADDRESS,
    SERVER_ADDRESS,
    Network,
    do,
    namespaces,
    veth,
)
from perf.processes import running

_NETWORK = CLIENT_ADDRESS.rpartition(".")[0]
_FIRST = 11
_POLICE_BURST = 0.02
# As much as a packet may weigh before it is cut into segments: tc's police drops what is larger.
_LEAST_BURST = 128 * 1024


class Uplink(NamedTuple):
    """How one line treats what travels on it: bytes a second each way, seconds, a chance."""

    rate: int
    rtt: float
    loss: float = 0.0
    policed: bool = False
    """Drops what is beyond the rate, instead of making it wait."""
    queue: float = 0.1
    """Seconds that a packet may wait for the rate."""

    @property
    def mbit(self) -> float:
        return self.rate * 8 / 1e6


class Uplinks:
    """The lines while they are there."""

    def __init__(self, names: Network, lines: Sequence[Uplink]) -> None:
        self.names = names
        self.lines = lines
        self.addresses = [address(index) for index in range(len(lines))]

    def silence(self, *indexes: int) -> None:
        """Lose all that travels on these lines, without a word to anybody."""
        elements = ", ".join(self.addresses[index] for index in indexes)
        self._in_both(f"add element inet silence lines {{ {elements} }}")

    def restore(self) -> None:
        """Let all lines work again."""
        self._in_both("flush set inet silence lines")

    def _in_both(self, rules: str) -> None:
        for name in self.names:
            do(*Network.inside(name), "nft", "-f", "-", text=rules)


def address(index: int) -> str:
    """The client's address on line `index`."""
    return f"{_NETWORK}.{_FIRST + index}"


@contextlib.contextmanager
def uplinks(lines: Sequence[Uplink], wan: str | None) -> Iterator[Uplinks]:
    """`lines` for the time of the `with` block. Raises BenchmarkError."""
    with namespaces() as names, contextlib.ExitStack() as stack:
        device = "line"
        if wan is not None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            profiles = Path(folder) / "profiles"
            profiles.write_text(wan_profiles(lines))
            ends = (names.client, f"{CLIENT_ADDRESS}/24", names.server, f"{SERVER_ADDRESS}/24")
            stack.enter_context(running(wan, [wan, *ends, str(profiles)]))
            device = "wan0"
        else:
            veth(names)
            for name in names:
                inside = Network.inside(name)
                do(*inside, "nft", "-f", "-", text=class_rules(lines))
                do(*inside, "tc", "-batch", "-", text=tc_rules(lines, name == names.client))
        for index in range(len(lines)):
            do("ip", "-n", names.client, "address", "add", f"{address(index)}/24", "dev", device)
        for name in names:
            do(*Network.inside(name), "nft", "-f", "-", text=_SILENCE)
        yield Uplinks(names, lines)


# At the receiving end: a sender whose own kernel drops is told, and that is no silent line.
_SILENCE = """\
table inet silence {
  set lines { type ipv4_addr; }
  chain incoming {
    type filter hook prerouting priority -300;
    ip saddr @lines drop
    ip daddr @lines drop
  }
}
"""


def wan_profiles(lines: Sequence[Uplink]) -> str:
    """What the program given by --wan reads."""
    # Honest loss wants packets of the size that real lines have.
    text = "gso=0\n" if any(line.loss or line.policed for line in lines) else ""
    for index, line in enumerate(lines):
        text += (
            f"up={line.rate * 8}bit down={line.rate * 8}bit delay={line.rtt / 2 * 1e3:g}ms "
            f"loss={line.loss * 100:g}% queue={line.queue * 1e3:g}ms "
            f"mode={'police' if line.policed else 'shape'} by={address(index)}\n"
        )
    return text


def class_rules(lines: Sequence[Uplink]) -> str:
    """nft rules that give what travels on a line the class of that line."""
    classes = ", ".join(f"{address(index)} : 1:{index + 16:x}" for index in range(len(lines)))
    return f"""\
table inet uplinks {{
  chain out {{
    type filter hook postrouting priority 0;
    meta priority set ip saddr map {{ {classes} }}
    meta priority set ip daddr map {{ {classes} }}
  }}
}}
"""


def tc_rules(lines: Sequence[Uplink], at_client: bool) -> str:
    """The commands for `tc -batch` that make one end of the lines, on device `line`."""
    rules = [
        "qdisc add dev line root handle 1: htb default 1",
        "class add dev line parent 1: classid 1:1 htb rate 10gbit quantum 60000",
        "qdisc add dev line clsact",
    ]
    for index, line in enumerate(lines):
        number = f"{index + 16:x}"
        rate = "10gbit" if line.policed else f"{line.rate * 8}bit"
        burst = "" if line.policed else "burst 32k cburst 32k "
        loss = f"loss {line.loss * 100:g}% " if line.loss else ""
        # netem holds what is on its way as well as what waits.
        limit = int((line.rtt + line.queue) * line.rate / 1000) + 100
        rules += [
            f"class add dev line parent 1: classid 1:{number} htb rate {rate} {burst}quantum 60000",
            f"qdisc add dev line parent 1:{number} handle {index + 32:x}: "
            f"netem delay {line.rtt / 2 * 1e3:g}ms {loss}limit {limit}",
        ]
        if line.policed:
            burst_bytes = max(_LEAST_BURST, int(line.rate * _POLICE_BURST))
            mine = "dst_ip" if at_client else "src_ip"
            rules.append(
                f"filter add dev line ingress protocol ip flower {mine} {address(index)} "
                f"action police rate {line.rate * 8}bit burst {burst_bytes} conform-exceed drop"
            )
    return "\n".join(rules) + "\n"
