"""The states of a subflow: each step of the table in its module."""

from __future__ import annotations

import re

import pytest
from fastmtcp.engine.limits import Limits
from fastmtcp.engine.scheduling.lanes import BULK, CONTROL
from fastmtcp.engine.session import Session
from fastmtcp.engine.subflows import subflow as module
from fastmtcp.engine.subflows.subflow import Cause, State, Subflow

NOW = 1_000_000.0

TO = {
    State.ACTIVE: (),
    State.SUSPECT: ("become_suspect",),
    State.RETIRING: ("retire",),
    State.STUCK: ("retire", "become_suspect"),
    State.GONE: ("end",),
}
"""How a new subflow gets into each state."""


def step(subflow: Subflow, name: str) -> None:
    if name == "become_suspect":
        subflow.become_suspect(Cause.KERNEL, NOW)
    else:
        getattr(subflow, name)()


def table() -> dict[tuple[State, str], State]:
    """What the docstring of the module says: a state and what happens, to the next state."""
    lines = (module.__doc__ or "").splitlines()
    (head,) = [number for number, line in enumerate(lines) if "become_suspect()" in line]
    columns = [(found.start(), found.group()[:-2]) for found in re.finditer(r"\S+", lines[head])]
    known = {}
    for line in lines[head + 1 : head + 1 + len(State)]:
        state = State[line.split()[0]]
        for start, name in columns:
            follows = line[start:].split(" ")[0]
            known[state, name] = State[follows] if follows else state
    return known


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("name", ["become_suspect", "clear", "retire", "end"])
def test_every_step_is_as_the_table_says(state: State, name: str) -> None:
    subflow = Subflow(0, NOW)
    for before in TO[state]:
        step(subflow, before)
    assert subflow.state is state
    step(subflow, name)
    assert subflow.state is table()[state, name]


@pytest.mark.parametrize("state", State)
def test_what_the_states_have_in_common(state: State) -> None:
    subflow = Subflow(0, NOW)
    subflow.state = state
    assert subflow.suspect == (state in (State.SUSPECT, State.STUCK))
    assert subflow.retiring == (state in (State.RETIRING, State.STUCK))


@pytest.mark.parametrize("state", [State.RETIRING, State.STUCK, State.GONE])
def test_new_data_goes_to_those_that_stay(state: State) -> None:
    session = Session(opener=True, limits=Limits(), now=NOW)
    leaving, staying = session.attach(0, NOW), session.attach(1, NOW)
    leaving.state = state
    session._lanes.refresh([leaving, staying])
    assert (leaving.lane, staying.lane) == (CONTROL, BULK)


def test_one_that_has_left_the_session_is_gone() -> None:
    session = Session(opener=True, limits=Limits(), now=NOW)
    subflow = session.attach(0, NOW)
    session.detach(subflow, NOW)
    assert subflow.state is State.GONE
