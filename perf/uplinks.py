"""Two network namespaces with several lines between them, one for each address of the client.

    10.77.0.11 --\
    10.77.0.12 ---- 10.77.0.2  server namespace
    10.77.0.13 --/

Kernel only: htb, netem and police on a veth pair, by address. Where the kernel lacks netem,
another program may play the lines (see perf.network); htb can then limit on its device what one
line carries, as that program limits each connection by itself.
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
_FIRST_CLASS = 16


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

    def __init__(self, names: Network, lines: Sequence[Uplink], device: str) -> None:
        self.names = names
        self.lines = lines
        self._device = device
        self.addresses = [address(index) for index in range(len(lines))]

    def silence(self, *indexes: int) -> None:
        """Lose all that travels on these lines and no others, without a word to anybody."""
        rules = "flush set inet silence lines\n"
        if indexes:
            elements = ", ".join(self.addresses[index] for index in indexes)
            rules += f"add element inet silence lines {{ {elements} }}\n"
        for name in self.names:
            do(*Network.inside(name), "nft", "-f", "-", text=rules)

    def restore(self) -> None:
        """Let all lines work again."""
        self.silence()

    def slow(self, index: int, part: float) -> None:
        """Give a line that the kernel limits this part of its rate, each way."""
        change = f"class change dev {self._device} {_class(index, self.lines[index].rate * part)}\n"
        for name in self.names:
            do(*Network.inside(name), "tc", "-batch", "-", text=change)


def address(index: int) -> str:
    """The client's address on line `index`."""
    return f"{_NETWORK}.{_FIRST + index}"


@contextlib.contextmanager
def uplinks(
    lines: Sequence[Uplink], wan: str | None, *, by_kernel: bool = False
) -> Iterator[Uplinks]:
    """`lines` for the time of the `with` block. Raises BenchmarkError.

    `by_kernel`: the kernel limits each line even if `wan` plays the rest, so that slow() works.
    """
    with namespaces() as names, contextlib.ExitStack() as stack:
        device = "line"
        if wan is not None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            profiles = Path(folder) / "profiles"
            theirs = [line._replace(rate=0) for line in lines] if by_kernel else lines
            profiles.write_text(wan_profiles(theirs))
            ends = (names.client, f"{CLIENT_ADDRESS}/24", names.server, f"{SERVER_ADDRESS}/24")
            stack.enter_context(running(wan, [wan, *ends, str(profiles)]))
            device = "wan0"
            ours = [line._replace(rtt=0.0, loss=0.0) for line in lines]
        else:
            veth(names)
            ours = list(lines)
        if wan is None or by_kernel:
            for name in names:
                inside = Network.inside(name)
                do(*inside, "nft", "-f", "-", text=class_rules(lines))
                do(*inside, "tc", "-batch", "-", text=tc_rules(ours, name == names.client, device))
        for index in range(len(lines)):
            do("ip", "-n", names.client, "address", "add", f"{address(index)}/24", "dev", device)
        for name in names:
            do(*Network.inside(name), "nft", "-f", "-", text=_SILENCE)
        yield Uplinks(names, lines, device)


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
        rates = f"up={line.rate * 8}bit down={line.rate * 8}bit " if line.rate else ""
        text += (
            f"{rates}delay={line.rtt / 2 * 1e3:g}ms "
            f"loss={line.loss * 100:g}% queue={line.queue * 1e3:g}ms "
            f"mode={'police' if line.policed else 'shape'} by={address(index)}\n"
        )
    return text


def class_rules(lines: Sequence[Uplink]) -> str:
    """nft rules that give what travels on a line the class of that line."""
    classes = ", ".join(
        f"{address(index)} : 1:{index + _FIRST_CLASS:x}" for index in range(len(lines))
    )
    return f"""\
table inet uplinks {{
  chain out {{
    type filter hook postrouting priority 0;
    meta priority set ip saddr map {{ {classes} }}
    meta priority set ip daddr map {{ {classes} }}
  }}
}}
"""


def tc_rules(lines: Sequence[Uplink], at_client: bool, device: str = "line") -> str:
    """The commands for `tc -batch` that make one end of the lines, on this device."""
    rules = [
        f"qdisc add dev {device} root handle 1: htb default 1",
        f"class add dev {device} parent 1: classid 1:1 htb rate 10gbit quantum 60000",
        f"qdisc add dev {device} clsact",
    ]
    for index, line in enumerate(lines):
        rules += [
            f"class add dev {device} {_class(index, 0 if line.policed else line.rate)}",
            f"qdisc add dev {device} parent 1:{index + _FIRST_CLASS:x} handle {index + 32:x}: "
            + _queue(line),
        ]
        if line.policed:
            burst_bytes = max(_LEAST_BURST, int(line.rate * _POLICE_BURST))
            mine = "dst_ip" if at_client else "src_ip"
            rules.append(
                f"filter add dev {device} ingress protocol ip flower {mine} {address(index)} "
                f"action police rate {line.rate * 8}bit burst {burst_bytes} conform-exceed drop"
            )
    return "\n".join(rules) + "\n"


def _class(index: int, rate: float) -> str:
    """A line's class of htb, with so many bytes a second (0: no limit)."""
    limit = f"{rate * 8:.0f}bit burst 32k cburst 32k" if rate else "10gbit"
    return f"parent 1: classid 1:{index + _FIRST_CLASS:x} htb rate {limit} quantum 60000"


def _queue(line: Uplink) -> str:
    """What holds the packets of a line until they may leave."""
    if not line.rtt and not line.loss:
        return f"bfifo limit {max(_LEAST_BURST, int(line.queue * line.rate))}"
    loss = f"loss {line.loss * 100:g}% " if line.loss else ""
    # netem holds what is on its way as well as what waits.
    limit = int((line.rtt + line.queue) * line.rate / 1000) + 100
    return f"netem delay {line.rtt / 2 * 1e3:g}ms {loss}limit {limit}"
