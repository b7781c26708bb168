"""Files with secrets. A key is 256 bits as 64 hexadecimal digits, and never part of an error or a
log line."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import stat
from pathlib import Path

from fastmtcp.errors import ConfigError, FastmtcpError
from fastmtcp.security.identity import KEY_SIZE
from fastmtcp.security.link import Link
from fastmtcp.security.redaction import redact

_KEY_TEXT = re.compile(rb"\s*([0-9a-fA-F]{64})\s*")
_MAX_FILE = 4096


def generate(path: str | os.PathLike[str]) -> None:
    """Write a new random key to a new file that only its owner can read (mode 0600).

    Raises ConfigError if the file exists or cannot be made, FastmtcpError if writing fails.
    """
    import secrets

    write_private(path, "key file", secrets.token_hex(KEY_SIZE).encode() + b"\n")


def write_private(path: str | os.PathLike[str], what: str, content: bytes) -> None:
    """Write a new file of the kind `what` that only its owner can read (mode 0600).

    Raises ConfigError if the file exists or cannot be made, FastmtcpError if writing fails.
    """
    name = f"{what} {_shown(path)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
    except FileExistsError:
        raise ConfigError(
            f"{name} already exists and is not overwritten; choose another name"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name} cannot be made: {_reason(error)}") from None
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, 0o600)  # a umask such as 0777 would leave a file nobody can read
            file.write(content)
            file.flush()
            os.fsync(fd)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise FastmtcpError(f"{name} cannot be written: {_reason(error)}") from None


def load(path: str | os.PathLike[str]) -> bytes:
    """Return the 32 bytes of a key file.

    Refuses, with ConfigError, a file that is missing, that is not a regular file, that anybody
    but its owner has access to, or that holds anything but one key.
    """
    remedy = f"make one with `fastmtcp keygen {_quoted(path)}`"
    content = read_private(path, "key file", _MAX_FILE, remedy)
    match = _KEY_TEXT.fullmatch(content)
    if match is None or len(content) > _MAX_FILE:
        raise ConfigError(
            f"key file {_shown(path)} does not hold 64 hexadecimal digits and nothing else; "
            "make a new one with `fastmtcp keygen FILE`"
        )
    return bytes.fromhex(match[1].decode("ascii"))


def load_link(path: str | os.PathLike[str]) -> Link:
    """The link in a file that only its owner has access to. Raises ConfigError."""
    content = read_private(path, "link file", _MAX_FILE, "paste the server's link into it")
    try:
        return Link.parse(content.decode("utf-8", errors="replace"))
    except ConfigError as error:
        raise ConfigError(f"link file {_shown(path)}: {error}") from None


def read_private(
    path: str | os.PathLike[str], what: str, limit: int, remedy: str = "name another file"
) -> bytes:
    """The content of a file that only its owner has access to; no more than `limit` + 1 bytes.

    Raises ConfigError, in which `what` is the kind of file and `remedy` what to do if there is
    none.
    """
    name = f"{what} {_shown(path)}"
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        raise ConfigError(f"{name} does not exist; {remedy}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name} cannot be read: {_reason(error)}") from None
    try:
        # Checked on the open descriptor: the name may point elsewhere a moment later.
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{name} is not a regular file; name another one")
        check_closed(path, status.st_mode, name)
        with open(fd, "rb", closefd=False) as file:
            return file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {_reason(error)}") from None
    finally:
        os.close(fd)


def check_closed(path: str | os.PathLike[str], mode: int, name: str) -> None:
    """Raises ConfigError if a file with a secret, called `name` in it, has a `mode` by which
    anybody but its owner has access to it."""
    if mode & _closed_bits(path):
        raise ConfigError(
            f"{name} is open to others (mode {stat.S_IMODE(mode):04o}); "
            f"close it with `chmod 600 {_quoted(path)}`"
        )


def _closed_bits(path: str | os.PathLike[str]) -> int:
    """The bits of a file's mode that must not be set. systemd lets a service read its credentials
    by an ACL, which shows as the group's bits, in a directory that is closed to all others
    (systemd.exec(5), LoadCredential=)."""
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    return 0o037 if credentials and os.path.dirname(path) == credentials else 0o077


def _shown(path: str | os.PathLike[str]) -> str:
    return redact(str(Path(path)))


def _quoted(path: str | os.PathLike[str]) -> str:
    name = str(Path(path))
    return "FILE" if redact(name) != name else shlex.quote(name)


def _reason(error: OSError | ValueError) -> str:
    # A ValueError is a NUL in the name.
    return (error.strerror or "unknown error") if isinstance(error, OSError) else "impossible name"
