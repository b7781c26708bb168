"""How applications reach the target they want: the ways in at the client, and what is allowed."""

from __future__ import annotations

from tests.process.programs import Programs
from tests.process.targets import Target, ask_for_exchange, round_trip


class TestTargets:
    def test_a_client_chooses_what_is_allowed(
        self, programs: Programs, echo_target: Target[int], exchange_target: Target[str]
    ) -> None:
        other = f"127.0.0.1:{exchange_target.port}"
        server = programs.server(echo_target.port, "--allow", other, "--workers", 1)
        plain = programs.client(server, "--workers", 1)
        chosen = programs.client(server, "--workers", 1, "--target", other)
        up = ask_for_exchange(chosen.address, 300_000, 200_000)
        assert exchange_target.works[0].result() == up
        assert round_trip(plain.address)

    def test_a_refusal_is_logged_at_both_ends_and_resets_the_application(
        self, programs: Programs, echo_target: Target[int]
    ) -> None:
        server = programs.server(echo_target.port, "--allow", "*:*", "--workers", 1)
        client = programs.client(
            server, "--workers", 1, "--target", f"localhost:{echo_target.port}"
        )
        client.check_resets()
        server.wait_for(
            rf"client 127\.0\.0\.1: target localhost:{echo_target.port} is not allowed: "
            r"its address is (127\.0\.0\.1|::1)"
        )
        client.wait_for("reset: the server does not allow this target")
        assert echo_target.connections == []
