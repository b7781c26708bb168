"""The keys and certificates that the settings name, read from their files."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import msgspec

from fastmtcp.config.client import ClientConfig
from fastmtcp.config.path import PathSpec
from fastmtcp.config.server import ServerConfig
from fastmtcp.errors import ConfigError
from fastmtcp.security import clients, keys
from fastmtcp.security.certificates import ClientTls, ServerTls
from fastmtcp.security.identity import NO_KEY, UNNAMED, Clients, Identity, unnamed
from fastmtcp.security.link import Link, parse_fingerprint

log = logging.getLogger("fastmtcp.files")

LINK_VARIABLE = "FASTMTCP_LINK"
"""Of the environment: the link itself."""


class Credentials(msgspec.Struct, frozen=True):
    """Who a client is, and how it knows its server; `tls` is None without TLS."""

    identity: Identity
    tls: ClientTls | None = None


def of_client(
    config: ClientConfig, environment: Mapping[str, str] = os.environ
) -> tuple[ClientConfig, Credentials]:
    """The credentials, and the configuration completed by the link if there is one.

    Reads files: not on a loop. Raises ConfigError.
    """
    link = _link(config, environment)
    if link is None:
        key = keys.load(config.key_file) if config.key_file is not None else NO_KEY
        identity = Identity.from_key(config.name or UNNAMED, key)
    else:
        identity = Identity.from_key(link.name, link.key)
        if config.server is None:
            config = msgspec.structs.replace(config, server=(PathSpec(link.endpoint),))
    return config, Credentials(identity, _client_tls(config, link))


def of_server(config: ServerConfig) -> tuple[Clients, ServerTls | None]:
    """Who may connect, and the certificate. Reads files: not on a loop. Raises ConfigError."""
    return read_clients(config), read_certificate(config)


def read_clients(config: ServerConfig) -> Clients:
    """All that may connect. Raises ConfigError."""
    if config.key_file is None and config.clients_file is None:
        return unnamed(NO_KEY)
    found = dict(unnamed(keys.load(config.key_file))) if config.key_file is not None else {}
    return found | clients.read(config.clients_file) if config.clients_file is not None else found


def read_clients_again(config: ServerConfig) -> Clients:
    """The clients as a worker that starts has to know them: not those of the program's start, as
    somebody may have been revoked since. As long as the list cannot be read nobody is let in."""
    try:
        return read_clients(config)
    except ConfigError as error:
        log.error("%s; no client is let in until it can be read", error)
        return {}


def read_certificate(config: ServerConfig) -> ServerTls | None:
    """None without TLS. Raises ConfigError."""
    if not config.tls:
        return None
    assert config.certificate is not None
    key = config.certificate_key or config.certificate
    return ServerTls(config.certificate, key, config.client_ca_file)


def _link(config: ClientConfig, environment: Mapping[str, str]) -> Link | None:
    if config.link_file is not None:
        return keys.load_link(config.link_file)
    text = environment.get(LINK_VARIABLE)
    if not text or config.key_file is not None:
        return None
    try:
        return Link.parse(text)
    except ConfigError as error:
        raise ConfigError(f"{LINK_VARIABLE} in the environment {error}") from None


def _client_tls(config: ClientConfig, link: Link | None) -> ClientTls | None:
    fingerprints = tuple(map(parse_fingerprint, config.fingerprint))
    by_name = config.ca_file is not None or config.server_name is not None
    if link is not None and link.fingerprint is not None and not fingerprints and not by_name:
        fingerprints = (link.fingerprint,)
    wanted = config.tls
    if wanted is None:
        wanted = bool(fingerprints) or by_name or config.certificate is not None
    if not wanted:
        return None
    return ClientTls(
        fingerprints,
        config.ca_file,
        config.server_name,
        config.certificate,
        config.certificate_key,
    )
