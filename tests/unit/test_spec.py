"""docs/SPEC.md says what the code does: its tables and its test vectors are read and compared."""

from __future__ import annotations

import copy
import enum
import hashlib
import hmac
import json
import re
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fastmtcp.config.limits import ServerLimits
from fastmtcp.engine import limits
from fastmtcp.engine.scheduling import watch
from fastmtcp.engine.subflows.role import Role
from fastmtcp.engine.wire.codec import FrameReader, encode
from fastmtcp.engine.wire.errors import RemoteError, ResetCode, SessionCode
from fastmtcp.engine.wire.frames import VERSION, Data, Frame, Open
from fastmtcp.errors import PeerError
from fastmtcp.security import handshake, handshake_socket, tls
from fastmtcp.security.handshake import (
    ClientHandshake,
    Grant,
    Membership,
    Preamble,
    RefuseCode,
    RefusedError,
    ServerHandshake,
)
from fastmtcp.security.identity import Identity, unnamed
from fastmtcp.server import admission

from tests.unit.wire import is_between_frames

SPEC = Path(__file__).parents[2] / "docs" / "SPEC.md"
TEXT = SPEC.read_text(encoding="utf-8")

FRAMES: tuple[type[msgspec.Struct], ...] = Frame.__args__
MESSAGES = (
    handshake.Hello,
    handshake.Challenge,
    handshake.Proof,
    handshake.Welcome,
    handshake.Refuse,
)

# What a sender chooses for itself and nobody else can see: no part of the wire.
OWN_TUNING = {"MAX_BATCH", "MAX_CHUNK", "MAX_LOWAT"}


# --- reading the document ---------------------------------------------------------------------


def wire_name(kind: type) -> str:
    """ResetAck is RESET_ACK in the document."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).upper()


def tables(*head: str) -> list[list[list[str]]]:
    """The rows of every table whose first columns are `head`."""
    found = []
    lines = TEXT.splitlines()
    for number, line in enumerate(lines):
        if cells(line)[: len(head)] == list(head) and lines[number + 1].startswith("| ---"):
            rows = []
            for row in lines[number + 2 :]:
                if not row.startswith("|"):
                    break
                rows.append(cells(row))
                assert len(rows[-1]) == len(cells(line)), row
            found.append(rows)
    return found


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def table(*head: str) -> list[list[str]]:
    (only,) = tables(*head)
    return only


def block(name: str) -> list[str]:
    """The entries of the fenced block `name`; an indented line continues the one before."""
    (body,) = re.findall(rf"^```{name}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    entries: list[str] = []
    for line in body.splitlines():
        if line.startswith(" "):
            entries[-1] += line
        elif line:
            entries.append(line)
    assert entries
    return entries


def number(text: str) -> float:
    """`64 KiB`, `20 ms`, `4096`."""
    value, _, unit = text.partition(" ")
    scale = {"": 1, "KiB": 1024, "MiB": 1024**2, "ms": 1e-3, "s": 1}[unit]
    return float(value) * scale


def declared_fields(kind: type[msgspec.Struct]) -> str:
    """A struct's fields as the document writes them: `stream int, reason str?`."""
    names = {int: "int", bool: "bool", str: "str", bytes: "bin", list[int]: "list of int"}
    return ", ".join(
        f"{field.name} {names[field.type]}{'' if field.required else '?'}"
        for field in msgspec.structs.fields(kind)
    )


# --- tables -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("column", "kinds"), [("Frame", FRAMES), ("Message", MESSAGES)])
def test_the_table_of_arrays_is_what_the_code_encodes(
    column: str, kinds: tuple[type[msgspec.Struct], ...]
) -> None:
    by_head = {
        "Frame": ("No.", "Frame", "Fields"),
        "Message": ("No.", "Message", "From", "Fields"),
    }[column]
    at = by_head.index("Fields")
    documented = [(int(row[0]), row[1], row[at]) for row in table(*by_head)]
    coded = [(kind.__struct_config__.tag, wire_name(kind), declared_fields(kind)) for kind in kinds]
    assert documented == coded


def test_only_the_client_sends_open() -> None:
    senders = {row[1]: row[3] for row in table("No.", "Frame", "Fields")}
    assert senders.pop("OPEN") == "client"
    assert senders.pop("BUSY") == "server"
    assert set(senders.values()) == {"both"}


def test_every_frame_of_a_stream_has_its_row_in_the_table_of_states() -> None:
    rows = [row[0] for row in table("frame", "open", "never seen")]
    assert rows == [wire_name(kind) for kind in FRAMES if "stream" in kind.__struct_fields__]


@pytest.mark.parametrize(
    ("column", "codes"),
    [("Refusal", RefuseCode), ("Reset", ResetCode), ("End", SessionCode)],
)
def test_the_tables_of_codes_are_the_enums(column: str, codes: type[enum.IntEnum]) -> None:
    documented = [(int(row[0]), row[1]) for row in table("Code", column)]
    assert documented == [(int(code), code.name) for code in codes]


def test_the_table_of_roles_is_the_flags_of_the_code() -> None:
    documented = [(int(row[0]), row[1]) for row in table("Flag", "Role")]
    assert documented == [(role.value, role.name) for role in Role]


def test_violations_have_codes_that_exist() -> None:
    used = {row[1] for row in table("violation", "code")}
    assert used == {"PROTOCOL", "FLOW_CONTROL", "LIMIT"}
    assert used <= set(SessionCode.__members__)


def coded_limits() -> dict[str, float]:
    """All limits of the code that a peer can notice, and those of one side, by name."""
    found: dict[str, float] = {
        name: value
        for module in (limits, handshake, admission)
        for name, value in vars(module).items()
        if name
        in ("NONCE_SIZE", "SESSION_ID_SIZE", "HANDSHAKE_TIMEOUT", "FREE_FAILURES", "SLOW_EVERY")
        or (name.startswith("MAX_") and name not in OWN_TUNING)
    }
    found |= {"STALL": watch.STALL, "REPLACE_AFTER": watch.REPLACE_AFTER}
    found |= {"ACCEPT_RATE": admission.ACCEPT_RATE, "MAX_EMPTY": tls.MAX_EMPTY}
    return found | msgspec.structs.asdict(ServerLimits())


def test_the_tables_of_limits_are_the_limits_of_the_code() -> None:
    rows = [row for rows in tables("Limit", "Value") for row in rows]
    documented = {name: number(row[1]) for row in rows for name in row[0].split(", ")}
    assert len(documented) == sum(len(row[0].split(", ")) for row in rows)
    assert documented == pytest.approx(coded_limits())


def test_the_text_names_the_version_of_the_code() -> None:
    assert TEXT.startswith(f"# The fastmtcp wire, version {VERSION}\n")


# --- frames -----------------------------------------------------------------------------------

_CALL = re.compile(r'([A-Z_]+)\((.*)\)(?: \+ (".*"))? = ([0-9a-f ]+)')


def frame_vectors(name: str) -> list[tuple[Frame, bytes, bytes]]:
    """Frame, payload and the bytes of both."""
    kinds = {wire_name(kind): kind for kind in FRAMES}
    found = []
    for entry in block(name):
        match = _CALL.fullmatch(entry)
        assert match, entry
        fields = json.loads(f"[{match[2]}]")
        payload = json.loads(match[3]).encode() if match[3] else b""
        frame: Any = kinds[match[1]](*fields)
        found.append((frame, payload, bytes.fromhex(match[4])))
    return found


class Log:
    """Puts together again what a FrameReader says."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.data: list[tuple[int, int, bytes, bool]] = []
        self.reader = FrameReader(self.frames.append, self._on_data)

    def _on_data(self, stream: int, offset: int, piece: memoryview, fin: bool) -> None:
        if self.data and offset:
            last = self.data[-1]
            if last[0] == stream and last[1] + len(last[2]) == offset:
                self.data[-1] = (stream, last[1], last[2] + bytes(piece), fin)
                return
        self.data.append((stream, offset, bytes(piece), fin))


def feed(reader: FrameReader, wire: memoryview, step: int) -> None:
    for start in range(0, len(wire), step):
        reader.feed(wire[start : start + step])


def check_decodes(frame: Frame, payload: bytes, wire: bytes, step: int) -> None:
    log = Log()
    feed(log.reader, memoryview(wire), step)
    assert is_between_frames(log.reader)
    if isinstance(frame, Data):
        assert log.frames == []
        assert log.data == [(frame.stream, frame.offset, payload, frame.fin)]
    elif isinstance(frame, Open):
        assert log.frames == [frame]
        assert log.data == [(frame.stream, 0, payload, frame.fin)]
    else:
        assert log.frames == [frame]
        assert log.data == []


@pytest.mark.parametrize(("frame", "payload", "wire"), frame_vectors("frames"))
def test_a_frame_vector_holds_both_ways(frame: Frame, payload: bytes, wire: bytes) -> None:
    assert encode(frame, len(payload)) + payload == wire
    check_decodes(frame, payload, wire, len(wire))
    check_decodes(frame, payload, wire, 1)


def test_every_frame_has_a_vector() -> None:
    assert {type(frame) for frame, _, _ in frame_vectors("frames")} == set(FRAMES)


@pytest.mark.parametrize(("frame", "payload", "wire"), frame_vectors("accepted"))
def test_another_form_is_accepted(frame: Frame, payload: bytes, wire: bytes) -> None:
    assert encode(frame, len(payload)) + payload != wire
    check_decodes(frame, payload, wire, len(wire))
    check_decodes(frame, payload, wire, 1)


@pytest.mark.parametrize("entry", block("refused"))
@pytest.mark.parametrize("whole", [True, False])
def test_a_broken_frame_is_refused(entry: str, whole: bool) -> None:
    code, _, data = entry.partition(" = ")
    wire = memoryview(bytes.fromhex(data))
    with pytest.raises(RemoteError) as caught:
        feed(Log().reader, wire, len(wire) if whole else 1)
    assert caught.value.code is SessionCode[code]


# --- handshake --------------------------------------------------------------------------------


def handshake_vectors() -> dict[str, bytes]:
    return {
        name: bytes.fromhex(value)
        for name, value in (entry.split(":", 1) for entry in block("handshake"))
    }


VECTORS = handshake_vectors()
IDENTITY = Identity.from_key(VECTORS["client"].decode(), VECTORS["key"])
CLIENTS = {IDENTITY.name: IDENTITY.verifier}
CHANNEL = VECTORS["certificate"] + hashlib.sha256(VECTORS["finished"]).digest()


def new_server(name: str = "create") -> ServerHandshake:
    preamble = Preamble.decode(VECTORS[f"{name}.preamble"])
    assert preamble is not None
    return ServerHandshake(CLIENTS, VECTORS[f"{name}.server_nonce"], preamble, CHANNEL)


def documented_grant() -> Grant:
    return Grant(
        VECTORS["session"],
        int.from_bytes(VECTORS["floor_window"], "big"),
        int.from_bytes(VECTORS["max_streams"], "big"),
        float(int.from_bytes(VECTORS["opens_per_second"], "big")),
    )


@pytest.mark.parametrize("name", ["create", "join"])
@pytest.mark.parametrize("step", [1, 4096])
def test_a_handshake_has_the_documented_bytes(name: str, step: int) -> None:
    def vector(key: str) -> bytes:
        return VECTORS[f"{name}.{key}"]

    creates = name == "create"
    secret = VECTORS["secret"]
    join = None if creates else Membership(VECTORS["session"], secret)
    role = Role.from_wire(vector("role")[0])
    client = ClientHandshake(
        IDENTITY, vector("client_nonce"), vector("subflow")[0], join, role, CHANNEL
    )
    server_side = new_server(name)

    def say(side: ClientHandshake | ServerHandshake, data: bytes) -> bytes:
        return b"".join(side.feed(data[at : at + step]) for at in range(0, len(data), step))

    session = b"" if creates else VECTORS["session"]
    assert Preamble.of(session, tls=True).encode() == vector("preamble")
    assert client.hello == vector("HELLO")
    assert say(server_side, client.hello) == vector("CHALLENGE")
    assert server_side.request is None
    assert say(client, vector("CHALLENGE")) == vector("PROOF")
    assert say(server_side, vector("PROOF")) == b""
    assert server_side.request is not None
    assert server_side.request.session == (b"" if creates else VECTORS["session"])
    assert server_side.request.role == role == (Role.BOTH if creates else Role.BOTH | Role.EXPRESS)
    if creates:
        assert server_side.session_secret() == secret
    assert server_side.may_join(secret) is not creates
    if not creates:
        unknown = RefusedError(RefuseCode.UNKNOWN_SESSION, "unknown session")
        assert server_side.refusal(unknown) == vector("REFUSE")
        with pytest.raises(RefusedError, match="unknown session"):
            say(copy.deepcopy(client), vector("REFUSE"))
    welcome = server_side.welcome(documented_grant())
    assert welcome == vector("WELCOME")
    assert vector("grant") in welcome
    assert say(client, welcome) == b""
    assert client.grant == documented_grant()
    assert client.membership == Membership(VECTORS["session"], secret)


@pytest.mark.parametrize("name", ["create", "join"])
def test_the_documented_formulas_give_the_documented_macs(name: str) -> None:
    """The formulas of section 3.1 in other words than the code's."""

    def mac(key: bytes, label: bytes, *text: bytes) -> bytes:
        message = b"fastmtcp 1 " + label + b"\x00" + hashlib.sha256(b"".join(text)).digest()
        return hmac.new(key, message, hashlib.sha256).digest()

    key, client_key, stored_key, server_key = (
        VECTORS[part] for part in ("key", "client_key", "stored_key", "server_key")
    )
    assert client_key == hmac.new(key, b"Client Key", hashlib.sha256).digest()
    assert stored_key == hashlib.sha256(client_key).digest()
    assert server_key == hmac.new(key, b"Server Key", hashlib.sha256).digest()
    preamble, hello, challenge, proof, grant, welcome = (
        VECTORS[f"{name}.{part}"]
        for part in ("preamble", "HELLO", "CHALLENGE", "PROOF", "grant", "WELCOME")
    )
    opening = preamble + CHANNEL + hello + challenge
    if name == "create":
        join = b""
        assert VECTORS["secret"] == mac(client_key, b"session", opening)
    else:
        join = mac(VECTORS["secret"], b"join", opening)
        refused = mac(server_key, b"refuse", opening, proof, b"\x03unknown session")
        assert fields_of(VECTORS["join.REFUSE"]) == [5, 3, "unknown session", refused]
    signature = mac(stored_key, b"client", opening)
    masked = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
    assert fields_of(proof) == [3, masked, join]
    assert fields_of(welcome) == [4, grant, mac(server_key, b"server", opening, proof, grant)]


def fields_of(message: bytes) -> list[Any]:
    (size,) = struct.unpack_from("!H", message)
    assert len(message) == 2 + size
    fields = msgspec.msgpack.decode(message[2:])
    assert isinstance(fields, list)
    return fields


@pytest.mark.parametrize("entry", block("refusals"))
def test_a_refusal_has_the_documented_bytes(entry: str) -> None:
    match = re.fullmatch(r'([A-Z_]+) (".*") = ([0-9a-f ]+)', entry)
    assert match
    code, text, wire = RefuseCode[match[1]], json.loads(match[2]), bytes.fromhex(match[3])
    assert handshake.clear_refusal(RefusedError(code, text)) == wire
    client = ClientHandshake(IDENTITY, VECTORS["create.client_nonce"], 0)
    if code is RefuseCode.UNKNOWN_SESSION:
        # Without a proof it is not heard.
        with pytest.raises(PeerError, match="may be a false server"):
            client.feed(wire)
        return
    with pytest.raises(RefusedError, match=re.escape(text)) as caught:
        client.feed(wire)
    assert caught.value.code is code


def refusal_of(side: ServerHandshake, data: bytes) -> bytes:
    with pytest.raises(RefusedError) as caught:
        side.feed(data)
    return handshake.clear_refusal(caught.value)


def test_the_server_refuses_with_the_documented_words() -> None:
    documented = {entry.split(" ", 1)[0]: entry.split(" = ")[1] for entry in block("refusals")}
    hello = VECTORS["create.HELLO"]
    at = hello.index(b"\x91\x01")
    newer = hello[:at] + b"\x91\x02" + hello[at + 2 :]
    side = new_server()
    assert refusal_of(side, newer) == bytes.fromhex(documented["VERSION"])
    nonce = VECTORS["create.server_nonce"]
    side = ServerHandshake(unnamed(VECTORS["key"]), nonce, Preamble(True, 0xFFFF), CHANNEL)
    assert side.feed(hello) == VECTORS["create.CHALLENGE"]
    assert refusal_of(side, VECTORS["create.PROOF"]) == bytes.fromhex(documented["KEY"])
    tls = RefusedError(RefuseCode.TLS, handshake_socket.TLS_DIFFERS[False])
    assert handshake.clear_refusal(tls) == bytes.fromhex(documented["TLS"])


def hello_of(*fields: Any) -> bytes:
    """A HELLO with these elements behind its number."""
    body = msgspec.msgpack.encode([1, *fields])
    return struct.pack("!H", len(body)) + body


def test_a_hello_may_offer_more_versions_and_have_more_elements() -> None:
    nonce = VECTORS["create.client_nonce"]
    side = new_server()
    later = hello_of([2, 1], IDENTITY.name, nonce, b"", 0, 3, "of a later version")
    assert side.feed(later) == VECTORS["create.CHALLENGE"]


@pytest.mark.parametrize(
    ("roles", "meant"),
    [
        ((), Role.BOTH),
        ((0,), Role.BOTH),
        ((1,), Role.UP),
        ((6,), Role.DOWN | Role.BACKUP),
        ((8,), Role.BOTH | Role.EXPRESS),
        ((16 + 2,), Role.DOWN),
    ],
)
def test_a_role_may_be_left_out_and_may_have_flags_that_are_not_known(
    roles: tuple[int, ...], meant: Role
) -> None:
    nonce = VECTORS["create.client_nonce"]
    first = hello_of([1], IDENTITY.name, nonce, b"", 0, *roles)
    side = new_server()
    challenge = side.feed(first)
    opening = VECTORS["create.preamble"] + CHANNEL + first + challenge
    message = b"fastmtcp 1 client\x00" + hashlib.sha256(opening).digest()
    signature = hmac.digest(VECTORS["stored_key"], message, "sha256")
    masked = bytes(a ^ b for a, b in zip(VECTORS["client_key"], signature, strict=True))
    side.feed(handshake.pack(handshake.Proof(masked, b"")))
    assert side.request is not None
    assert Role.from_wire(side.request.role) == meant


def test_an_unknown_refusal_counts_as_protocol() -> None:
    client = ClientHandshake(IDENTITY, VECTORS["create.client_nonce"], 0)
    body = msgspec.msgpack.encode([5, 99, "of a later version"])
    with pytest.raises(RefusedError) as caught:
        client.feed(struct.pack("!H", len(body)) + body)
    assert caught.value.code is RefuseCode.PROTOCOL


@pytest.mark.parametrize("part", ["HELLO", "CHALLENGE", "PROOF", "WELCOME"])
def test_any_changed_byte_breaks_the_handshake(part: str) -> None:
    """Nothing that travels can be changed by somebody in the middle."""
    original = VECTORS[f"join.{part}"]
    for at in range(len(original)):
        changed = bytearray(original)
        changed[at] ^= 1
        assert not completes({part: bytes(changed)}), f"byte {at} of {part}"
    assert completes({})


def completes(changes: dict[str, bytes]) -> bool:
    """Whether a join ends well with some of the messages replaced on their way."""
    secret = VECTORS["secret"]
    membership = Membership(VECTORS["session"], secret)
    role = Role.from_wire(VECTORS["join.role"][0])
    client = ClientHandshake(IDENTITY, VECTORS["join.client_nonce"], 1, membership, role, CHANNEL)
    side = new_server("join")
    try:
        challenge = side.feed(changes.get("HELLO", client.hello))
        proof = client.feed(changes.get("CHALLENGE", challenge))
        side.feed(changes.get("PROOF", proof))
        if side.request is None or not side.may_join(secret):
            return False
        client.feed(changes.get("WELCOME", side.welcome(documented_grant())))
    except PeerError:
        return False
    return client.grant is not None
