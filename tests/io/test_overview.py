"""Question and answer between supervisor and workers, over real channels on one loop."""

from __future__ import annotations

import os
from collections.abc import Iterator

import msgspec
import pytest
from fastmtcp.engine.limits import Limits
from fastmtcp.engine.session import Session
from fastmtcp.engine.snapshot import Totals
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.subflow import Subflow
from fastmtcp.io.loop import Loop
from fastmtcp.status import report
from fastmtcp.status.document import InstanceStatus, ObservedSocket, PathInfo
from fastmtcp.workers import overview, reporter
from fastmtcp.workers.channel import Channel, Message, StatusPart, StatusRequest, pair
from fastmtcp.workers.overview import Overview
from fastmtcp.workers.reporter import Reporter

from tests.io.net import run_until, turn


class Shown:
    def __init__(self, session: Session) -> None:
        self.session = session
        self.session_id = bytes(16)
        self.peer = "somewhere"

    def paths(self) -> list[PathInfo]:
        return []

    def socket_of(self, subflow: Subflow) -> ObservedSocket:
        raise AssertionError("it has no subflows")

    def application_of(self, stream: Stream) -> str:
        return ""

    def path_of(self, subflow: Subflow) -> str:
        return "a"


class Role:
    is_client = True
    target = ""
    clients = ""

    def __init__(self, sessions: int, streams: int) -> None:
        self.past = Totals(streams_opened=1)
        self.sessions = [Shown(many(streams)) for _ in range(sessions)]


def many(streams: int) -> Session:
    session = Session(
        opener=True, limits=Limits(), now=0.0, peer_floor=1 << 16, peer_streams=1 << 16
    )
    for index in range(streams):
        session.open(0.0, f"host-{index}.example.com:{index}")
    return session


class Place:
    """A worker on the same loop."""

    def __init__(self, loop: Loop, index: int, role: Role | None) -> None:
        self.index = index
        self.pid = os.getpid()
        self.serving = True
        self.started_at = loop.now
        self.restarts = 0
        self.parts: list[StatusPart] = []
        self.overview: Overview | None = None
        ours, theirs = pair()
        self.channel: Channel | None = Channel(loop, ours, self._on_part, lambda: None)
        self.worker = Channel(loop, theirs, self._on_request, lambda: None)
        self.requests: list[StatusRequest] = []
        self.reporter = Reporter(loop, self.worker, role) if role is not None else None

    def _on_request(self, message: Message) -> None:
        assert isinstance(message, StatusRequest)
        self.requests.append(message)
        if self.reporter is not None:
            self.reporter.on_request(message)

    def _on_part(self, message: Message) -> None:
        assert isinstance(message, StatusPart)
        assert self.overview is not None
        self.parts.append(message)
        self.overview.on_part(self, message)

    def close(self) -> None:
        if self.channel is not None:
            self.channel.close()
        self.worker.close()


class Scene:
    def __init__(self) -> None:
        self.loop = Loop()
        self.places: list[Place] = []
        self.answers: list[InstanceStatus] = []

    def start(self, *roles: Role | None) -> Overview:
        """Workers with these roles; None is one that never answers."""
        self.places += [Place(self.loop, index, role) for index, role in enumerate(roles)]
        made = Overview(self.loop, "fastmtcp-client", ["here:1"], self.places, lambda: "ready")
        for place in self.places:
            place.overview = made
        self.overview = made
        return made

    def ask(self) -> None:
        self.overview.ask(
            lambda answer: self.answers.append(msgspec.json.decode(answer, type=InstanceStatus))
        )

    def answer(self) -> InstanceStatus:
        before = len(self.answers)
        self.ask()
        run_until(self.loop, lambda: len(self.answers) > before, "the answer comes")
        return self.answers[-1]


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    for place in scene.places:
        place.close()
    scene.loop.close()


def test_the_answers_of_all_workers_are_put_together(scene: Scene) -> None:
    scene.start(Role(1, 3), Role(2, 5))
    answer = scene.answer()
    assert (answer.program, answer.state, answer.listening) == (
        "fastmtcp-client",
        "ready",
        ["here:1"],
    )
    assert answer.pid == os.getpid()
    assert [worker.state for worker in answer.workers] == ["serving", "serving"]
    assert [len(worker.sessions) for worker in answer.workers] == [1, 2]
    assert (answer.totals.sessions, answer.totals.streams) == (3, 13)
    assert answer.totals.streams_opened == 15
    assert all(worker.memory and worker.memory > 1 << 20 for worker in answer.workers)


def test_an_answer_larger_than_the_channel_comes_whole(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "MAX_STREAMS", 1 << 20)
    monkeypatch.setattr(report, "MAX_SESSION_STREAMS", 1 << 20)
    scene.start(Role(4, 4096))
    answer = scene.answer()
    sessions = answer.workers[0].sessions
    assert [len(session.streams) for session in sessions] == [4096] * 4
    assert sessions[3].streams[4095].target == "host-4095.example.com:4095"
    (place,) = scene.places
    assert place.parts[0].total > 1 << 20
    assert [part.offset for part in place.parts] == list(
        range(0, place.parts[0].total, reporter.PIECE)
    )


def test_it_is_not_kept_once_it_is_fetched(scene: Scene) -> None:
    scene.start(Role(1, 100))
    scene.answer()
    (place,) = scene.places
    assert place.reporter is not None
    assert place.reporter._answer == b""


def test_a_worker_that_does_not_answer_is_silent(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "WAIT", 0.05)
    scene.start(Role(1, 1), None)
    answer = scene.answer()
    assert [worker.state for worker in answer.workers] == ["serving", "silent"]
    assert answer.totals.streams == 1


def test_a_worker_that_is_not_there_is_not_waited_for(scene: Scene) -> None:
    scene.start(Role(1, 1), None, None)
    scene.places[1].serving = False
    scene.places[2].pid = 0
    scene.places[2].serving = False
    answer = scene.answer()
    assert [worker.state for worker in answer.workers] == ["serving", "starting", "down"]
    assert answer.workers[2].pid is None


def test_without_any_worker_there_is_an_answer(scene: Scene) -> None:
    scene.start(None)
    scene.places[0].serving = False
    assert scene.answer().totals.sessions == 0


def test_a_worker_that_ends_meanwhile_is_not_waited_for(scene: Scene) -> None:
    made = scene.start(Role(1, 1), None)
    scene.ask()
    run_until(scene.loop, lambda: scene.places[0].parts, "one has answered")
    assert not scene.answers
    scene.places[1].pid = 0
    made.on_gone(scene.places[1])
    assert [worker.state for worker in scene.answers[0].workers] == ["serving", "down"]


def test_questions_at_the_same_time_get_the_same_answer(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "FRESH", 60.0)  # however slow the machine is
    scene.start(Role(1, 1))
    for _ in range(100):
        scene.ask()
    run_until(scene.loop, lambda: len(scene.answers) == 100, "all have an answer")
    assert len(scene.places[0].requests) == 1
    assert len({id(answer) for answer in scene.answers}) == 100
    scene.ask()
    assert len(scene.answers) == 101, "a fresh answer is given again at once"
    assert len(scene.places[0].requests) == 1


def test_an_answer_that_is_not_fresh_is_not_given_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "FRESH", 0.0)
    role = Role(1, 1)
    scene.start(role)
    assert scene.answer().totals.streams == 1
    role.sessions[0].session.open(0.0)
    assert scene.answer().totals.streams == 2
    assert [request.token for request in scene.places[0].requests] == [1, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        StatusPart(1, 0, 3, b"\xc1\xc1\xc1"),
        StatusPart(1, 0, 10, b""),
        StatusPart(1, 5, 10, b"x"),
        StatusPart(1, 0, overview.MAX_REPORT + 1, b"x"),
    ],
)
def test_a_wrong_piece_ends_the_question(scene: Scene, wrong: StatusPart) -> None:
    made = scene.start(None)
    scene.ask()
    made.on_part(scene.places[0], wrong)
    assert [worker.state for worker in scene.answers[0].workers] == ["silent"]


def test_pieces_of_an_old_answer_are_ignored(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "FRESH", 0.0)
    made = scene.start(Role(1, 1))
    scene.answer()
    (old,) = scene.places[0].parts
    scene.ask()
    made.on_part(scene.places[0], old)
    assert len(scene.answers) == 1
    run_until(scene.loop, lambda: len(scene.answers) == 2, "the right one comes")
    assert scene.answers[1].workers[0].state == "serving"


def test_a_new_question_replaces_the_one_under_way(scene: Scene) -> None:
    scene.start(Role(3, 1))
    (place,) = scene.places
    assert place.reporter is not None
    place.reporter.on_request(StatusRequest(7, 0))
    place.reporter.on_request(StatusRequest(8, 0))
    place.reporter.on_request(StatusRequest(7, 10))
    run_until(scene.loop, lambda: place.parts, "the answer comes")
    turn(scene.loop)
    assert [part.token for part in place.parts] == [8]


def test_the_loop_goes_on_between_sessions(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped clock would let it work for ever; one that leaps lets it do one step a turn."""
    role = Role(5, 1)
    scene.start(role)
    (place,) = scene.places
    assert place.reporter is not None
    real = scene.loop.clock
    steps = iter(range(10**9))
    monkeypatch.setattr(scene.loop, "clock", lambda: real() + next(steps))
    turns = 0

    def count() -> None:
        nonlocal turns
        turns += 1
        if not place.parts:
            scene.loop.call_soon(count)

    place.reporter.on_request(StatusRequest(1, 0))
    scene.loop.call_soon(count)
    run_until(scene.loop, lambda: place.parts, "the answer comes")
    assert turns >= 5


def test_memory_of_no_process() -> None:
    assert overview.proportional_set_size(2**22 + 1) is None
