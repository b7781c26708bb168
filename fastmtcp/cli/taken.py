"""Whether the running servers use a list of clients as it is now."""

from __future__ import annotations

import os
import time

from fastmtcp.errors import FastmtcpError
from fastmtcp.security import clients
from fastmtcp.status.control_name import ControlName
from fastmtcp.status.document import InstanceStatus
from fastmtcp.status.query import NoAnswerError, NotRunningError, ask, running

_PATIENCE = 5.0
"""Seconds for all servers together. They look at the list more than twice in one."""

_PAUSE = 0.2


def wait_until_taken(clients_file: str) -> list[str]:
    """The names of the running servers that use this list: all their workers know it as it is now.
    Only those of this user in this network namespace are found; root finds those of all.

    Raises:
        FastmtcpError: one of them has not taken it or does not answer, or the system does not tell
            which there are.
    """
    wanted = clients.digest(clients.read(clients_file))
    place = os.path.realpath(clients_file)
    deadline = time.monotonic() + _PATIENCE
    taken: list[str] = []
    waiting = running()
    while True:
        late: dict[ControlName, str] = {}
        for name in waiting:
            try:
                one = ask(name)
            except NotRunningError:
                continue  # it has ended since it was listed
            except NoAnswerError as error:
                late[name] = str(error)
                continue
            if one.clients_file != place:
                continue
            if _has_taken(one, wanted):
                taken.append(name.name)
            else:
                late[name] = f"{name.name} has not taken it; see its log, or restart it"
        if not late:
            return sorted(taken)
        if time.monotonic() > deadline:
            raise FastmtcpError("; ".join(late.values()))
        waiting = list(late)
        time.sleep(_PAUSE)


def _has_taken(one: InstanceStatus, wanted: str) -> bool:
    """A worker that is not there yet reads the list when it starts."""
    working = [worker for worker in one.workers if worker.state in ("serving", "silent")]
    return all(worker.clients == wanted for worker in working)
