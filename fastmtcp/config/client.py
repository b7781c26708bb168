"""The settings of the client: default, unit and check of each."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

from fastmtcp.config.checks import (
    check_destination,
    check_limits,
    check_listen,
    check_paths,
    check_places,
)
from fastmtcp.config.common import Config, Timeout, check_file
from fastmtcp.config.connections import Connections
from fastmtcp.config.ingress import Forward, WayIn
from fastmtcp.config.limits import ClientLimits
from fastmtcp.config.path import PathSpec
from fastmtcp.config.settings import (
    LIMITS,
    LISTENING,
    SECURITY,
    SERVER_PATH,
    TARGET,
    Setting,
    SettingError,
    check_file_name,
)
from fastmtcp.endpoint import Endpoint
from fastmtcp.engine.limits import Limits
from fastmtcp.errors import ConfigError
from fastmtcp.security.identity import NAME_FORM, is_name
from fastmtcp.security.link import parse_fingerprint

SPARE_SUBFLOWS = 8
MAX_SUBFLOWS = Limits().max_subflows - SPARE_SUBFLOWS
"""Subflows that one worker may have: a server lets a session have 128, and some of those are the
express subflow and the ones that are being replaced."""

EgressMode = Literal["auto", "off"]

_USUAL_PATHS = (PathSpec(Endpoint("127.0.0.1", 7700)),)


class ClientConfig(Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of `fastmtcp-client`."""

    program: ClassVar[str] = "fastmtcp-client"

    listen: Annotated[
        tuple[Endpoint, ...] | None,
        Setting(
            LISTENING,
            "Where to accept applications. *:7701 means all addresses, port 0 any free port.",
            metavar="HOST:PORT",
            default_text="127.0.0.1:7701, if there is no other way in",
        ),
    ] = None
    forward: Annotated[
        tuple[Forward, ...],
        Setting(
            LISTENING,
            "A port of this machine, by default of 127.0.0.1, and the target of all who connect "
            "to it, as with ssh -L. unix:/PATH:HOST:PORT listens on a unix socket. The server must "
            "allow the target.",
            metavar="[BIND:]PORT:HOST:PORT",
            default_text="none",
        ),
    ] = ()
    proxy: Annotated[
        tuple[Endpoint, ...],
        Setting(
            LISTENING,
            "Where to accept applications that say themselves where to go, as they say it to a "
            "SOCKS5 or an HTTP proxy: both on one port. The server must allow the target. "
            "Anything but loopback needs a login.",
            metavar="HOST:PORT",
            default_text="none",
        ),
    ] = ()
    accept_proxy: Annotated[
        bool,
        Setting(
            LISTENING,
            "Every connection begins with a PROXY protocol header (version 1 or 2) that says whose "
            "it is, as a load balancer sends it; those without are reset.",
        ),
    ] = False
    proxy_login_file: Annotated[
        str | None,
        Setting(
            SECURITY,
            "File with USER:PASSWORD that applications must give to the proxy, in one line; only "
            "its owner may have access to it.",
            metavar="FILE",
            default_text="none",
            is_file=True,
        ),
    ] = None
    target: Annotated[
        Endpoint | None,
        Setting(
            TARGET,
            "Where the server shall forward what arrives where no target is named. The server must "
            "allow it.",
            metavar="HOST:PORT",
            default_text="the server's own target",
        ),
    ] = None
    server: Annotated[
        tuple[PathSpec, ...] | None,
        Setting(
            SERVER_PATH,
            "A path to fastmtcp-server, with its options behind it: bind=ADDRESS and dev=INTERFACE "
            "choose the way out, connections=N or MIN-MAX its connections, direction=both, up or "
            "down what it carries; backup means only while nothing else works; "
            "via=socks5://HOST:PORT or via=http://HOST:PORT a proxy, with USER:PASSWORD@ before "
            "its HOST if it wants that.",
            metavar="HOST:PORT[,OPTION...]",
            default_text="the address in the link, else 127.0.0.1:7700",
        ),
    ] = None
    connections: Annotated[
        Connections,
        Setting(
            SERVER_PATH,
            "TCP connections on each path that does not say how many, for each worker: "
            f"{Connections.FORM}, within which it finds the number that is worth it.",
            metavar="N|MIN-MAX",
        ),
    ] = Connections(2, 16)
    egress: Annotated[
        EgressMode,
        Setting(
            SERVER_PATH,
            "auto makes one path of each local address to each server that has no bind or dev, "
            "and follows interfaces that come and go.",
        ),
    ] = "off"
    express: Annotated[
        bool,
        Setting(
            SERVER_PATH,
            "One more connection for each worker, on the first path, where small streams do not "
            "wait behind bulk data.",
        ),
    ] = True
    connect_timeout: Annotated[
        Timeout,
        Setting(
            SERVER_PATH,
            "How long the server may take to accept a connection.",
            metavar="SECONDS",
            unit="seconds",
        ),
    ] = 10.0

    link_file: Annotated[
        str | None,
        Setting(
            SECURITY,
            "File with the link that the server gave this client: address, name, key and "
            "fingerprint. The link itself may be in FASTMTCP_LINK of the environment instead.",
            metavar="FILE",
            default_text="none",
            envvar="FASTMTCP_LINK_FILE",
            is_file=True,
        ),
    ] = None
    name: Annotated[
        str | None,
        Setting(
            SECURITY,
            "Name of this client in the server's list, if its key is in a key file.",
            metavar="NAME",
            default_text="none",
        ),
    ] = None
    tls: Annotated[
        bool | None,
        Setting(
            SECURITY,
            "Encrypt all connections with TLS 1.3. The server must do so too.",
            default_text="if the link or another setting names the server's certificate",
        ),
    ] = None
    fingerprint: Annotated[
        tuple[str, ...],
        Setting(
            SECURITY,
            "SHA-256 of the server's certificate, as A1:B2:...",
            metavar="SHA-256",
            default_text="in the link",
        ),
    ] = ()
    ca_file: Annotated[
        str | None,
        Setting(
            SECURITY,
            "Accept a server certificate of this authority, in PEM, if it has the server's name.",
            metavar="FILE",
            default_text="those of the system, if there is no fingerprint",
            is_file=True,
        ),
    ] = None
    server_name: Annotated[
        str | None,
        Setting(
            SECURITY,
            "Name that the server's certificate must have.",
            metavar="NAME",
            default_text="the host of the path",
        ),
    ] = None
    limits: Annotated[
        ClientLimits,
        Setting(LIMITS, "What the server may make this client hold and do."),
    ] = ClientLimits()

    def session_limits(self) -> ClientLimits:
        return msgspec.structs.replace(self.limits, session_timeout=self.session_timeout)

    def check(self) -> None:
        Config.check(self)
        if self.listen is not None:
            check_listen(self.listen)
        check_places(self.ways_in)
        if self.proxy_login_file is not None:
            check_file_name("proxy_login_file", self.proxy_login_file)
        for endpoint in self.proxy:
            if not endpoint.is_loopback and self.proxy_login_file is None:
                raise SettingError(
                    "proxy",
                    f"{endpoint} is not loopback, and without a login everybody who can reach it "
                    "could use the proxy; write USER:PASSWORD to a file of mode 0600 and add "
                    "`--proxy-login-file FILE`",
                )
        if self.target is not None:
            check_destination("target", self.target)
        check_limits(self.limits)
        check_paths(self.paths)
        for key in ("link_file", "ca_file"):
            check_file(self, key)
        if self.link_file is not None:
            for key in ("key_file", "name"):
                if getattr(self, key) is not None:
                    raise SettingError(key, "is in the link already; leave it or link_file out")
        if self.name is not None and not is_name(self.name):
            raise SettingError("name", f"{self.name[:80]!r} is no name of a client; {NAME_FORM}")
        if self.name is not None and self.key_file is None:
            raise SettingError("name", "needs the key of this client; set key_file as well")
        for text in self.fingerprint:
            try:
                parse_fingerprint(text)
            except ConfigError as error:
                raise SettingError("fingerprint", f"{text[:100]!r} {error}") from None
        for key in ("fingerprint", "ca_file", "server_name", "certificate"):
            if self.tls is False and getattr(self, key):
                raise SettingError(key, "needs TLS, which is turned off; remove one of the two")
        if self.subflows > self.most_subflows:
            raise SettingError(
                "server",
                f"the paths have {self.subflows} connections or more, the limit is "
                f"{self.most_subflows}; lower --connections or the connections= of a path",
            )

    @property
    def ways_in(self) -> tuple[WayIn, ...]:
        """Where applications connect."""
        listen = self.listen
        if listen is None:
            alone = not (self.forward or self.proxy)
            listen = (Endpoint("127.0.0.1", 7701),) if alone else ()
        target = str(self.target or "")
        return (
            *(WayIn(endpoint, target=target) for endpoint in listen),
            *(WayIn(forward.place, target=str(forward.target)) for forward in self.forward),
            *(WayIn(endpoint, "proxy") for endpoint in self.proxy),
        )

    @property
    def paths(self) -> tuple[PathSpec, ...]:
        """The paths to use; those of a link are filled in by fastmtcp.config.credentials."""
        return _USUAL_PATHS if self.server is None else self.server

    @property
    def most_subflows(self) -> int:
        """Connections that one worker may have on all paths."""
        return min(MAX_SUBFLOWS, self.limits.max_subflows - SPARE_SUBFLOWS)

    @property
    def subflows(self) -> int:
        """The fewest connections of one worker on all paths, the express one not counted."""
        return sum((path.connections or self.connections).least for path in self.paths)
