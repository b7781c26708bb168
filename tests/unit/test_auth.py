"""The handshake of a subflow: who gets in, who does not, and what either of them learns."""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections.abc import Callable

import msgspec
import pytest
from fastmtcp import auth
from fastmtcp.auth import (
    MAX_MESSAGE,
    NO_KEY,
    NONCE_SIZE,
    SESSION_ID_SIZE,
    Challenge,
    ClientHandshake,
    Grant,
    Hello,
    Membership,
    Proof,
    Refuse,
    RefuseCode,
    RefusedError,
    ServerHandshake,
    Welcome,
    pack,
    refusal,
)
from fastmtcp.engine.frames import VERSION
from fastmtcp.errors import PeerError
from hypothesis import given
from hypothesis import strategies as st

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
CLIENT_NONCE = b"c" * NONCE_SIZE
SERVER_NONCE = b"s" * NONCE_SIZE
SESSION = b"\0\1" + b"session-id-xyz"
GRANT = Grant(SESSION, 65536, 4096)


def new_client(key: bytes = KEY, join: Membership | None = None) -> ClientHandshake:
    return ClientHandshake(key, CLIENT_NONCE, 7, join)


def new_server(key: bytes = KEY, nonce: bytes = SERVER_NONCE) -> ServerHandshake:
    return ServerHandshake(key, nonce)


def bodies(data: bytes) -> list[bytes]:
    """The messages in `data`, without their lengths."""
    found = []
    while data:
        (size,) = struct.unpack_from("!H", data)
        found.append(data[2 : 2 + size])
        data = data[2 + size :]
    return found


def shake(client: ClientHandshake, server: ServerHandshake, grant: Grant = GRANT) -> None:
    """A whole handshake without trouble."""
    proof = client.feed(server.feed(client.hello))
    assert server.feed(proof) == b""
    assert server.request is not None
    assert client.feed(server.welcome(grant)) == b""
    assert client.grant == grant


def create_session() -> tuple[Membership, bytes]:
    """What both sides keep of a new session: the client's membership, the server's secret."""
    client, server = new_client(), new_server()
    shake(client, server)
    assert client.membership is not None
    return client.membership, server.session_secret()


class TestWhole:
    def test_both_sides_agree(self) -> None:
        client, server = new_client(), new_server()
        shake(client, server)
        assert server.request is not None
        assert server.request.subflow == client.subflow_id == 7
        assert server.joins == b""
        assert client.membership == Membership(SESSION, server.session_secret())

    def test_without_a_key_the_same_handshake_runs(self) -> None:
        shake(new_client(NO_KEY), new_server(NO_KEY))

    def test_byte_by_byte(self) -> None:
        client, server = new_client(), new_server()
        to_server, to_client = client.hello, b""
        for _ in range(3):
            for byte in to_server:
                to_client += server.feed(bytes([byte]))
            to_server = b""
            if server.request is not None and client.grant is None:
                to_client += server.welcome(GRANT)
            for byte in to_client:
                to_server += client.feed(bytes([byte]))
            to_client = b""
        assert client.grant == GRANT
        assert client.membership == Membership(SESSION, server.session_secret())

    @given(st.data())
    def test_cut_anywhere(self, data: st.DataObject) -> None:
        client, server = new_client(), new_server()

        def through(feed: Callable[[bytes], bytes], content: bytes) -> bytes:
            cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=5)))
            edges = [0, *cuts, len(content)]
            return b"".join(feed(content[a:b]) for a, b in itertools.pairwise(edges))

        proof = through(client.feed, through(server.feed, client.hello))
        through(server.feed, proof)
        through(client.feed, server.welcome(GRANT))
        assert client.grant == GRANT

    def test_bytes_behind_the_handshake_are_kept(self) -> None:
        client, server = new_client(), new_server()
        proof = client.feed(server.feed(client.hello))
        server.feed(proof + b"first frames up")
        assert server.early == b"first frames up"
        client.feed(server.welcome(GRANT) + b"first frames down")
        assert client.early == b"first frames down"

    def test_early_bytes_that_look_like_a_message_are_not_one(self) -> None:
        client, server = new_client(), new_server()
        proof = client.feed(server.feed(client.hello))
        server.feed(proof + client.hello)
        assert server.early == client.hello


class TestKeys:
    def test_a_client_with_another_key_is_told_so_and_learns_nothing_else(self) -> None:
        client, server = new_client(OTHER_KEY), new_server()
        challenge = server.feed(client.hello)
        assert [msgspec.msgpack.decode(body)[0] for body in bodies(challenge)] == [2]
        with pytest.raises(RefusedError, match="keys differ") as caught:
            server.feed(client.feed(challenge))
        assert caught.value.code is RefuseCode.KEY
        assert server.request is None
        with pytest.raises(RefusedError, match="keys differ") as told:
            client.feed(refusal(caught.value))
        assert told.value.code is RefuseCode.KEY
        assert client.grant is None

    @pytest.mark.parametrize(("ours", "theirs"), [(KEY, NO_KEY), (NO_KEY, KEY)])
    def test_a_key_on_one_side_only_is_a_wrong_key(self, ours: bytes, theirs: bytes) -> None:
        client, server = new_client(ours), new_server(theirs)
        with pytest.raises(RefusedError, match="key"):
            server.feed(client.feed(server.feed(client.hello)))

    def test_a_server_that_lets_everybody_in_must_hold_the_key_too(self) -> None:
        client = new_client()
        transcript = client.hello + pack(Challenge(VERSION, SERVER_NONCE))
        client.feed(transcript[len(client.hello) :])
        impostor = ServerHandshake.restore(
            OTHER_KEY, msgspec.msgpack.encode((transcript, pack(Proof(b"", b"")), b""))
        )
        with pytest.raises(PeerError, match="does not hold the key"):
            client.feed(impostor.welcome(GRANT))
        assert client.grant is None
        assert client.membership is None

    def test_a_mirror_does_not_pass(self) -> None:
        """An attacker without the key sends back what it is sent: roles are part of the MAC."""
        client = new_client()
        challenge = pack(Challenge(VERSION, CLIENT_NONCE))
        (body,) = bodies(client.feed(challenge))
        proof = msgspec.msgpack.decode(body, type=Proof)
        with pytest.raises(PeerError, match="does not hold the key"):
            client.feed(pack(Welcome(msgspec.msgpack.encode(GRANT), proof.key)))

    def test_a_recorded_proof_is_no_use_to_anybody_later(self) -> None:
        client, server = new_client(), new_server()
        proof = client.feed(server.feed(client.hello))
        later = new_server(nonce=b"t" * NONCE_SIZE)
        later.feed(client.hello)
        with pytest.raises(RefusedError) as caught:
            later.feed(proof)
        assert caught.value.code is RefuseCode.KEY

    def test_a_recorded_welcome_is_no_use_to_a_false_server(self) -> None:
        server = new_server()
        client = new_client()
        challenge = server.feed(client.hello)
        server.feed(client.feed(challenge))
        welcome = server.welcome(GRANT)
        victim = ClientHandshake(KEY, b"d" * NONCE_SIZE, 7)
        victim.feed(challenge)
        with pytest.raises(PeerError, match="does not hold the key"):
            victim.feed(welcome)

    def test_no_key_and_no_secret_in_what_may_be_logged(self) -> None:
        client, server = new_client(), new_server()
        shake(client, server)
        assert client.membership is not None
        texts = [repr(x) for x in (client, server, client.membership, server.request)]
        texts += [repr(vars(client)["membership"]), repr([client.membership])]
        with pytest.raises(RefusedError) as caught:
            new_server(OTHER_KEY).feed(client.hello + pack(Proof(b"x" * 32, b"")))
        texts += [repr(caught.value), str(caught.value)]
        with pytest.raises(PeerError) as lost:
            new_client().feed(pack(Challenge(VERSION, SERVER_NONCE)) + pack(Welcome(b"", b"")))
        texts += [repr(lost.value), str(lost.value)]
        for secret in (KEY, OTHER_KEY, server.session_secret()):
            for text in texts:
                assert secret.hex() not in text.lower()
                assert repr(secret)[2:-1] not in text


class TestTranscript:
    """Whatever is changed on the way, one of the two notices."""

    @staticmethod
    def change(data: bytes, field: int, value: object) -> bytes:
        (body,) = bodies(data)
        content = msgspec.msgpack.decode(body)
        assert content[field] != value
        content[field] = value
        encoded = msgspec.msgpack.encode(content)
        return struct.pack("!H", len(encoded)) + encoded

    @pytest.mark.parametrize(
        ("field", "value"),
        [(2, [VERSION, 77]), (3, b"x" * NONCE_SIZE), (4, SESSION), (5, 8)],
        ids=["versions", "nonce", "session", "subflow"],
    )
    def test_a_changed_hello(self, field: int, value: object) -> None:
        client, server = new_client(), new_server()
        proof = client.feed(server.feed(self.change(client.hello, field, value)))
        with pytest.raises(RefusedError) as caught:
            server.feed(proof)
        assert caught.value.code is RefuseCode.KEY

    def test_a_changed_challenge(self) -> None:
        client, server = new_client(), new_server()
        challenge = self.change(server.feed(client.hello), 2, b"y" * NONCE_SIZE)
        with pytest.raises(RefusedError) as caught:
            server.feed(client.feed(challenge))
        assert caught.value.code is RefuseCode.KEY

    @pytest.mark.parametrize(
        "grant",
        [
            Grant(b"\0" * SESSION_ID_SIZE, 65536, 4096),
            Grant(SESSION, 65537, 4096),
            Grant(SESSION, 65536, 4095),
        ],
        ids=["session", "window", "streams"],
    )
    def test_a_changed_grant(self, grant: Grant) -> None:
        client, server = new_client(), new_server()
        server.feed(client.feed(server.feed(client.hello)))
        welcome = self.change(server.welcome(GRANT), 1, msgspec.msgpack.encode(grant))
        with pytest.raises(PeerError, match="does not hold the key"):
            client.feed(welcome)
        assert client.grant is None

    def test_a_changed_join_proof_changes_the_welcome(self) -> None:
        membership, secret = create_session()
        client, server = new_client(join=membership), new_server()
        proof = client.feed(server.feed(client.hello))
        server.feed(self.change(proof, 2, b"z" * 32))
        assert not server.may_join(secret)
        with pytest.raises(PeerError, match="does not hold the key"):
            client.feed(server.welcome(GRANT))

    @given(st.integers(0, 10_000), st.integers(1, 255), st.sampled_from(["hello", "challenge"]))
    def test_any_flipped_byte(self, position: int, flip: int, which: str) -> None:
        """Not even the parts of the encoding that mean nothing may be changed."""
        client, server = new_client(), new_server()
        hello = client.hello
        if which == "hello":
            hello = flip_byte(hello, position, flip)
        with pytest.raises(PeerError):  # noqa: PT012 - either side may notice
            challenge = server.feed(hello)
            if which == "challenge":
                challenge = flip_byte(challenge, position, flip)
            proof = client.feed(challenge)
            server.feed(proof)
            # A flipped length leaves one of them waiting, which the handshake's time-out ends.
            if server.request is None:
                raise PeerError("still waiting")
        assert server.request is None


def flip_byte(data: bytes, position: int, flip: int) -> bytes:
    changed = bytearray(data)
    changed[position % len(data)] ^= flip
    return bytes(changed)


class TestJoining:
    def test_a_member_joins(self) -> None:
        membership, secret = create_session()
        client, server = new_client(join=membership), new_server(nonce=b"u" * NONCE_SIZE)
        server.feed(client.feed(server.feed(client.hello)))
        assert server.joins == SESSION
        assert server.may_join(secret)
        client.feed(server.welcome(GRANT))
        assert client.membership is membership

    def test_the_key_alone_is_not_enough(self) -> None:
        _, secret = create_session()
        guess = Membership(SESSION, b"g" * 32)
        client, server = new_client(join=guess), new_server()
        server.feed(client.feed(server.feed(client.hello)))
        assert server.joins == SESSION
        assert not server.may_join(secret)

    def test_no_join_proof_at_all_is_not_enough(self) -> None:
        _, secret = create_session()
        server = new_server()
        hello = pack(Hello("fastmtcp", [VERSION], CLIENT_NONCE, SESSION, 7))
        challenge = server.feed(hello)
        key_mac = auth._mac(KEY, "client", hello + challenge)
        server.feed(pack(Proof(key_mac, b"")))
        assert server.joins == SESSION
        assert not server.may_join(secret)

    def test_a_recorded_join_proof_is_no_use_later(self) -> None:
        membership, secret = create_session()
        client, server = new_client(join=membership), new_server()
        recorded = client.feed(server.feed(client.hello))
        later = new_server(nonce=b"v" * NONCE_SIZE)
        challenge = later.feed(client.hello)
        # Even from somebody who has the key: only the secret makes a join proof.
        (body,) = bodies(recorded)
        join = msgspec.msgpack.decode(body, type=Proof).join
        key_mac = auth._mac(KEY, "client", client.hello + challenge)
        later.feed(pack(Proof(key_mac, join)))
        assert not later.may_join(secret)

    def test_every_session_has_a_secret_of_its_own(self) -> None:
        first, second = new_server(), new_server(nonce=b"w" * NONCE_SIZE)
        for server in (first, second):
            shake(new_client(), server)
        assert first.session_secret() != second.session_secret()
        assert first.session_secret() != KEY


class TestHandingOver:
    """A worker accepts and authenticates, the session's owner goes on."""

    def test_the_owner_goes_on_where_the_other_stopped(self) -> None:
        membership, secret = create_session()
        client, accepting = new_client(join=membership), new_server(nonce=b"u" * NONCE_SIZE)
        accepting.feed(client.feed(accepting.feed(client.hello)) + b"early frames")
        owner = ServerHandshake.restore(KEY, accepting.export())
        assert owner.request == accepting.request
        assert owner.joins == SESSION
        assert owner.early == b"early frames"
        assert owner.may_join(secret)
        assert not owner.may_join(b"?" * 32)
        assert owner.session_secret() == accepting.session_secret()
        client.feed(owner.welcome(GRANT))
        assert client.grant == GRANT

    def test_what_is_handed_over_holds_no_key(self) -> None:
        membership, secret = create_session()
        client, server = new_client(join=membership), new_server()
        server.feed(client.feed(server.feed(client.hello)))
        state = server.export()
        assert KEY not in state
        assert secret not in state

    def test_it_fits_into_one_datagram_with_room_to_spare(self) -> None:
        membership, _ = create_session()
        client, server = new_client(join=membership), new_server()
        server.feed(client.feed(server.feed(client.hello)) + bytes(2048))
        assert len(server.export()) < 4096


class TestVersions:
    def test_an_unknown_version_is_answered_with_what_is_known(self) -> None:
        server = new_server()
        hello = pack(Hello("fastmtcp", [VERSION + 1, VERSION + 2], CLIENT_NONCE, b"", 0))
        with pytest.raises(RefusedError, match=f"speaks protocol version {VERSION}") as caught:
            server.feed(hello)
        assert caught.value.code is RefuseCode.VERSION
        with pytest.raises(RefusedError, match=f"speaks protocol version {VERSION}"):
            new_client().feed(refusal(caught.value))

    def test_a_client_that_can_do_more_gets_the_common_version(self) -> None:
        server = new_server()
        hello = pack(Hello("fastmtcp", [VERSION + 1, VERSION], CLIENT_NONCE, b"", 0))
        (body,) = bodies(server.feed(hello))
        assert msgspec.msgpack.decode(body, type=Challenge).version == VERSION

    def test_a_later_hello_with_more_fields_is_understood(self) -> None:
        fields = [1, "fastmtcp", [VERSION + 1], CLIENT_NONCE, b"", 0, 3, {"new": True}]
        body = msgspec.msgpack.encode(fields)
        with pytest.raises(RefusedError) as caught:
            new_server().feed(struct.pack("!H", len(body)) + body)
        assert caught.value.code is RefuseCode.VERSION

    def test_a_version_that_was_not_offered_is_not_accepted(self) -> None:
        with pytest.raises(PeerError, match=f"version {VERSION + 1}, not offered"):
            new_client().feed(pack(Challenge(VERSION + 1, SERVER_NONCE)))

    def test_a_reason_from_the_future_is_still_a_refusal(self) -> None:
        with pytest.raises(RefusedError, match="a new reason") as caught:
            new_client().feed(pack(Refuse(99, "a new reason")))
        assert caught.value.code is RefuseCode.PROTOCOL

    def test_a_reason_cannot_forge_log_lines_or_fill_the_log(self) -> None:
        message = "bad\nready: all is well\x1b[2J" + "x" * 900
        with pytest.raises(RefusedError) as caught:
            new_client().feed(pack(Refuse(0, message)))
        text = str(caught.value)
        assert text.isprintable()
        assert len(text) <= 200


class TestGarbage:
    @given(st.binary(max_size=3000))
    def test_any_bytes_at_the_server(self, data: bytes) -> None:
        self.check_harmless(new_server(), data)

    @given(st.binary(max_size=3000))
    def test_any_bytes_at_the_client(self, data: bytes) -> None:
        self.check_harmless(new_client(), data)

    @given(st.binary(min_size=1, max_size=MAX_MESSAGE))
    def test_any_message_instead_of_the_proof(self, body: bytes) -> None:
        server = new_server()
        server.feed(new_client().hello)
        with pytest.raises(PeerError):
            server.feed(struct.pack("!H", len(body)) + body)
        assert server.request is None

    @staticmethod
    def check_harmless(side: ServerHandshake | ClientHandshake, data: bytes) -> None:
        """It raises PeerError, or waits for the rest of a message with little in its hands."""
        try:
            side.feed(data)
        except PeerError:
            pass
        else:
            held = side._messages.rest
            assert len(held) < 2 or len(held) < 2 + int.from_bytes(held[:2]) <= 2 + MAX_MESSAGE
        if isinstance(side, ServerHandshake):
            assert side.request is None
        else:
            assert side.grant is None

    @pytest.mark.parametrize("size", [0, MAX_MESSAGE + 1, 0xFFFF])
    def test_an_impossible_length_is_noticed_at_once(self, size: int) -> None:
        for side in (new_server(), new_client()):
            with pytest.raises(PeerError, match="does not speak fastmtcp"):
                side.feed(struct.pack("!H", size))

    @pytest.mark.parametrize(
        "hello",
        [
            Hello("slowmtcp", [VERSION], CLIENT_NONCE, b"", 0),
            Hello("fastmtcp", [VERSION], b"", b"", 0),
            Hello("fastmtcp", [VERSION], CLIENT_NONCE + b"x", b"", 0),
            Hello("fastmtcp", [VERSION], CLIENT_NONCE, b"short", 0),
            Hello("fastmtcp", [VERSION], CLIENT_NONCE, SESSION + b"x", 0),
        ],
        ids=["magic", "no nonce", "long nonce", "short session", "long session"],
    )
    def test_a_hello_that_makes_no_sense_gets_no_answer(self, hello: Hello) -> None:
        with pytest.raises(PeerError) as caught:
            new_server().feed(pack(hello))
        assert not isinstance(caught.value, RefusedError)

    @pytest.mark.parametrize("depth", [1, 500, 960])
    def test_nesting_cannot_break_the_worker(self, depth: int) -> None:
        """msgspec raises RecursionError when the caller's stack is deep already."""
        plain = msgspec.msgpack.encode([1, "fastmtcp", [VERSION], CLIENT_NONCE, b"", 0])
        body = bytes([plain[0] + 1]) + plain[1:] + b"\x91" * depth + b"\xc0"
        assert len(body) <= MAX_MESSAGE

        def feed(frames: int) -> None:
            if frames:
                feed(frames - 1)
            else:
                new_server().feed(struct.pack("!H", len(body)) + body)

        with contextlib.suppress(PeerError):
            feed(200)

    def test_text_that_is_not_utf8(self) -> None:
        body = msgspec.msgpack.encode([1, "fastmtcp", [VERSION], CLIENT_NONCE, b"", 0])
        body = body.replace(b"fastmtcp", b"fast\xff\xfe\xe6p")
        with pytest.raises(PeerError, match="does not speak fastmtcp"):
            new_server().feed(struct.pack("!H", len(body)) + body)

    def test_other_protocols_get_no_answer(self) -> None:
        for data in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"\x16\x03"):
            with pytest.raises(PeerError, match="does not speak fastmtcp") as caught:
                new_server().feed(data + bytes(600))
            assert not isinstance(caught.value, RefusedError)

    def test_messages_out_of_turn(self) -> None:
        challenge = pack(Challenge(VERSION, SERVER_NONCE))
        grant = msgspec.msgpack.encode(GRANT)
        for early in (challenge + challenge, pack(Welcome(grant, b"m" * 32))):
            client = new_client()
            with pytest.raises(PeerError, match="does not speak fastmtcp"):
                client.feed(early)
            assert client.grant is None
        server = new_server()
        with pytest.raises(PeerError, match="does not speak fastmtcp"):
            server.feed(pack(Proof(b"m" * 32, b"")))
        server = new_server()
        with pytest.raises(PeerError):
            server.feed(new_client().hello + new_client().hello)

    @pytest.mark.parametrize(
        "grant",
        [
            Grant(b"", 65536, 1),
            Grant(SESSION, 0, 1),
            Grant(SESSION, 65536, 0),
            Grant(SESSION, -5, 1),
        ],
        ids=["session", "no window", "no streams", "negative"],
    )
    def test_an_impossible_grant(self, grant: Grant) -> None:
        client, server = new_client(), new_server()
        server.feed(client.feed(server.feed(client.hello)))
        with pytest.raises(PeerError, match="impossible grant"):
            client.feed(server.welcome(grant))
        assert client.grant is None

    def test_a_challenge_with_a_wrong_nonce(self) -> None:
        with pytest.raises(PeerError, match="does not speak fastmtcp"):
            new_client().feed(pack(Challenge(VERSION, b"short")))
