"""A server's list of clients: a file with one line for each, `NAME STORED-KEY SERVER-KEY`.

Both keys are hexadecimal; what they are is in fastmtcp.security.identity. The file is replaced as
a whole, so a server that reads it while it changes sees the old list or the new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from fastmtcp.errors import ConfigError, FastmtcpError
from fastmtcp.security.identity import Clients, Identity, Verifier, is_name
from fastmtcp.security.keys import read_private

HEAD = "# Clients of this server: `fastmtcp client add|list|revoke NAME` changes this file.\n"

_LINE = re.compile(r"(\S+)\s+([0-9a-fA-F]{64})\s+([0-9a-fA-F]{64})")
_MAX_FILE = 16 << 20


def read(path: str | os.PathLike[str]) -> dict[str, Verifier]:
    """All clients of the list. Raises ConfigError."""
    found: dict[str, Verifier] = {}
    for number, line in enumerate(_lines(path), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _LINE.fullmatch(text)
        if match is None or not is_name(match[1]):
            raise ConfigError(f"{path}: line {number} is no client; remove it")
        if match[1] in found:
            raise ConfigError(f"{path}: line {number}: {match[1]} is there twice; remove one")
        found[match[1]] = Verifier(bytes.fromhex(match[2]), bytes.fromhex(match[3]))
    return found


def digest(found: Clients) -> str:
    """16 digits that are others for another list. What a key file adds has no name and does not
    count."""
    lines = [f"{name} {keys.stored_key.hex()}" for name, keys in sorted(found.items()) if name]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def add(path: str | os.PathLike[str], identity: Identity) -> None:
    """Append a client. Raises ConfigError if there is one of that name."""
    with _locked(path):
        if identity.name in read(path):
            raise ConfigError(f"there is a client {identity.name} already; choose another name")
        keys = identity.verifier
        line = f"{identity.name} {keys.stored_key.hex()} {keys.server_key.hex()}\n"
        lines = _lines(path)
        if lines and not lines[-1].endswith("\n"):
            lines[-1] += "\n"
        _replace(path, "".join([*lines, line]))


def revoke(path: str | os.PathLike[str], name: str) -> None:
    """Remove a client. Raises ConfigError if there is none of that name."""
    with _locked(path):
        if name not in read(path):
            raise ConfigError(f"there is no client {name}; `fastmtcp client list` shows all")
        kept = [line for line in _lines(path) if line.split()[:1] != [name]]
        _replace(path, "".join(kept))


def _lines(path: str | os.PathLike[str]) -> list[str]:
    content = read_private(path, "list of clients", _MAX_FILE)
    if len(content) > _MAX_FILE:
        raise ConfigError(f"list of clients {path} is too large; revoke some")
    return content.decode("utf-8", errors="replace").splitlines(keepends=True)


@contextlib.contextmanager
def _locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other commands from changing the list. The lock is on its directory, as the file is
    another one after each change."""
    try:
        fd = os.open(Path(path).absolute().parent, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "impossible name"
        raise ConfigError(f"list of clients {path} cannot be read: {reason}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _replace(path: str | os.PathLike[str], content: str) -> None:
    target = Path(path)
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "w", encoding="utf-8") as file:
                # Root may change the list of a server that runs as somebody else.
                before = os.stat(target)
                with contextlib.suppress(PermissionError):
                    os.fchown(fd, before.st_uid, before.st_gid)
                os.fchmod(fd, 0o600)
                file.write(content)
                file.flush()
                os.fsync(fd)
            os.replace(fresh, target)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(fresh)
            raise
    except OSError as error:
        raise FastmtcpError(f"{path} cannot be written: {error.strerror}") from None
