"""The settings of the server: default, unit and check of each."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

from fastmtcp.config.checks import check_destination, check_limits, check_listen
from fastmtcp.config.common import Config, Timeout, check_file
from fastmtcp.config.limits import ServerLimits
from fastmtcp.config.settings import LIMITS, LISTENING, SECURITY, TARGET, Setting, SettingError
from fastmtcp.config.targets import Rule
from fastmtcp.endpoint import Endpoint

ProxyHeaders = Literal["off", "v1", "v2"]


class ServerConfig(Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of `fastmtcp-server`."""

    program: ClassVar[str] = "fastmtcp-server"

    listen: Annotated[
        tuple[Endpoint, ...],
        Setting(
            LISTENING,
            "Where to accept connections of fastmtcp-client. *:7700 means all addresses, port 0 "
            "any free port. Anything but loopback needs a key file or a list of clients.",
            metavar="HOST:PORT",
        ),
    ] = (Endpoint("127.0.0.1", 7700),)
    target: Annotated[
        Endpoint,
        Setting(
            TARGET, "Where to forward the streams that name no target to.", metavar="HOST:PORT"
        ),
    ] = Endpoint("127.0.0.1", 5201)
    allow: Annotated[
        tuple[Rule, ...],
        Setting(
            TARGET,
            "Targets that clients may choose: a name, *.NAME for all names below it, an address, a "
            "network as in 10.1.0.0/16, or * for everything public; behind it a port, several as "
            "in 80,443, a range as in 8000-8099, or *. Addresses that are not public (loopback, "
            "private, link-local, metadata, ...) must be listed by number. CLIENT@ before it makes "
            "it one for the client of this name only.",
            metavar="[CLIENT@]HOST:PORTS",
            default_text="none",
        ),
    ] = ()
    send_proxy: Annotated[
        ProxyHeaders,
        Setting(
            TARGET,
            "Begin each connection to the server's own target with a PROXY protocol header of this "
            "version, so that the target sees the application's address.",
        ),
    ] = "off"
    connect_timeout: Annotated[
        Timeout,
        Setting(
            TARGET,
            "How long the target may take to accept a connection.",
            metavar="SECONDS",
            unit="seconds",
        ),
    ] = 10.0

    clients_file: Annotated[
        str | None,
        Setting(
            SECURITY,
            "List of clients, which `fastmtcp client add|list|revoke` changes; it is read again "
            "then.",
            metavar="FILE",
            default_text="none",
            is_file=True,
        ),
    ] = None
    tls: Annotated[
        bool,
        Setting(
            SECURITY,
            "Encrypt all connections with TLS 1.3. Without it the bytes travel as the applications "
            "send them.",
        ),
    ] = False
    client_ca_file: Annotated[
        str | None,
        Setting(
            SECURITY,
            "Let in only clients that also have a certificate of this authority, in PEM.",
            metavar="FILE",
            default_text="none",
            is_file=True,
        ),
    ] = None
    public_address: Annotated[
        Endpoint | None,
        Setting(
            SECURITY,
            "Where clients reach this server; `fastmtcp client add` writes it into its links.",
            metavar="HOST:PORT",
            default_text="none",
        ),
    ] = None
    limits: Annotated[
        ServerLimits,
        Setting(LIMITS, "What clients may make this server hold and do."),
    ] = ServerLimits()

    def session_limits(self) -> ServerLimits:
        return msgspec.structs.replace(self.limits, session_timeout=self.session_timeout)

    def check(self) -> None:
        Config.check(self)
        check_listen(self.listen)
        check_limits(self.limits)
        check_destination("target", self.target)
        if self.public_address is not None:
            check_destination("public_address", self.public_address)
        for key in ("clients_file", "client_ca_file"):
            check_file(self, key)
        if self.tls and self.certificate is None:
            raise SettingError(
                "tls",
                "needs a certificate; set one, or let `fastmtcp init server` make all that is "
                "needed",
            )
        if self.client_ca_file is not None and not self.tls:
            raise SettingError("client_ca_file", "needs TLS; set tls = true as well")
        if self.key_file is None and self.clients_file is None:
            for endpoint in self.listen:
                if not endpoint.is_loopback:
                    raise SettingError(
                        "listen",
                        f"{endpoint} is not loopback, and a server without a key listens on "
                        "loopback only; let `fastmtcp init server` set up all that is needed, or "
                        "make a key with `fastmtcp keygen fastmtcp.key` and add "
                        "`--key-file fastmtcp.key`",
                    )
