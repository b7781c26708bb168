"""The status of running programs as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastmtcp.status.document import (
    InstanceStatus,
    PathStatus,
    SessionStatus,
    StreamStatus,
    SubflowStatus,
    TotalsStatus,
    WorkerStatus,
)
from fastmtcp.units import format_age, format_bytes, format_delay, format_rate

_LONGEST = 60
_GAP = "  "

Row = Sequence[str]


def format_instances(instances: Iterable[InstanceStatus]) -> str:
    """All of it, each instance with a paragraph of its own. Ends without a line end."""
    return "\n\n".join("\n".join(map(_plain, _instance(one))) for one in instances)


def table(header: Row, rows: Iterable[Row], *, left: int, indent: str) -> list[str]:
    """Aligned columns. The first `left` and those named `trouble` begin at the left; the others,
    numbers, end at the right. Long cells are cut."""
    lines = [header, *([_cell(text) for text in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    result = []
    for line in lines:
        cells = [
            text.ljust(width) if index < left or header[index] == "trouble" else text.rjust(width)
            for index, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        result.append((indent + _GAP.join(cells)).rstrip())
    return result


def _instance(one: InstanceStatus) -> list[str]:
    where = f"listening on {', '.join(one.listening)}" if one.listening else "listening nowhere"
    lines = [
        f"{one.program} {one.version}  pid {one.pid}  {one.state}  up {format_age(one.uptime)}",
        f"{_GAP}{where}; control socket {one.control}",
        *(_GAP + line for line in _totals(one.totals)),
        *table(_WORKER, map(_worker, one.workers), left=3, indent=_GAP),
    ]
    for worker in one.workers:
        for session in worker.sessions:
            lines += ["", *_session(session, worker.index)]
        hidden = worker.totals.sessions - len(worker.sessions)
        if hidden > 0:
            lines += ["", f"{_GAP}worker {worker.index} has {_count(hidden, 'more session')}"]
    return lines


def _totals(totals: TotalsStatus) -> list[str]:
    return [
        f"{_count(totals.sessions, 'session')}, {_count(totals.subflows, 'subflow')}, "
        f"{_count(totals.streams, 'stream')} ({totals.streams_opened} since the start)"
        + (f", {totals.streams_waiting} waiting" if totals.streams_waiting else ""),
        *(
            f"{way:<4} {format_rate(rate)} now, {format_bytes(count)} on subflows, "
            f"{format_bytes(payload)} of applications"
            for way, rate, count, payload in (
                ("up", totals.rate_up, totals.bytes_up, totals.payload_up),
                ("down", totals.rate_down, totals.bytes_down, totals.payload_down),
            )
        ),
        f"un-ACKed {format_bytes(totals.unacked)}, reinjected {format_bytes(totals.reinjected)}, "
        f"{_count(totals.stalls, 'stall')}, {_count(totals.reconnects, 'reconnect')}",
    ]


_WORKER = ("worker", "pid", "state", "up", "restarts", "memory", "sessions", "subflows", "streams")


def _worker(one: WorkerStatus) -> Row:
    return (
        str(one.index),
        "-" if one.pid is None else str(one.pid),
        one.state,
        format_age(one.uptime),
        str(one.restarts),
        "-" if one.memory is None else format_bytes(one.memory),
        str(one.totals.sessions),
        str(one.totals.subflows),
        str(one.totals.streams),
    )


def _session(one: SessionStatus, worker: int) -> list[str]:
    indent = 2 * _GAP
    lines = [
        f"{_GAP}session {one.id or '(new)'} of worker {worker}  {one.state}  "
        f"age {format_age(one.age)}  with {one.peer}"
    ]
    if one.paths:
        lines += table(_PATH, map(_path, one.paths), left=2, indent=indent)
    if one.subflows:
        lines += table(_SUBFLOW, map(_subflow, one.subflows), left=4, indent=indent)
    hidden = one.totals.subflows - len(one.subflows)
    if hidden > 0:
        lines.append(f"{indent}and {_count(hidden, 'more subflow')}")
    if one.streams:
        lines += table(_STREAM, map(_stream, one.streams), left=4, indent=indent)
    hidden = one.totals.streams - len(one.streams)
    if hidden > 0:
        lines.append(f"{indent}and {_count(hidden, 'more stream')}")
    return lines


_PATH = (
    *("path", "state", "subflows", "up", "down"),
    *("reinjected", "stalls", "reconnects", "trouble"),
)


def _path(one: PathStatus) -> Row:
    return (
        one.name,
        one.state,
        str(one.subflows) if one.wanted is None else f"{one.subflows} of {one.wanted}",
        format_rate(one.rate_up),
        format_rate(one.rate_down),
        format_bytes(one.reinjected),
        str(one.stalls),
        "-" if one.wanted is None else str(one.reconnects),
        one.trouble,
    )


_SUBFLOW = (
    *("subflow", "local", "remote", "state"),
    *("up", "down", "srtt", "sent up", "sent down", "un-ACKed", "reinjected", "stalls", "age"),
)


def _subflow(one: SubflowStatus) -> Row:
    return (
        str(one.id),
        one.local,
        one.remote,
        " ".join([one.state, *_roles(one.role)]),
        format_rate(one.rate_up),
        format_rate(one.rate_down),
        "-" if one.srtt is None else format_delay(one.srtt),
        format_bytes(one.bytes_up),
        format_bytes(one.bytes_down),
        format_bytes(one.unacked),
        format_bytes(one.reinjected),
        str(one.stalls),
        format_age(one.age),
    )


def _roles(role: list[str]) -> list[str]:
    """What is worth a word: a subflow for both directions is the usual one."""
    directions = [word for word in role if word in ("up", "down")]
    return [
        *(f"{word} only" for word in directions if len(directions) == 1),
        *(word for word in role if word not in ("up", "down")),
    ]


_STREAM = (
    *("stream", "application", "target", "state"),
    *("up", "down", "unsent", "un-ACKed", "undelivered", "window", "gaps", "age"),
)


def _stream(one: StreamStatus) -> Row:
    return (
        str(one.id),
        one.application or "-",
        one.target or "-",
        one.state,
        format_bytes(one.payload_up),
        format_bytes(one.payload_down),
        format_bytes(one.unsent),
        format_bytes(one.unacked),
        format_bytes(one.undelivered),
        format_bytes(one.window),
        str(one.gaps),
        format_age(one.age),
    )


def _cell(text: str) -> str:
    text = _plain(text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _plain(text: str) -> str:
    """A peer chooses targets and reasons, and root may ask a program of anybody's: nothing of it
    may move the cursor."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
