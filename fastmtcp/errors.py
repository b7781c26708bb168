"""Errors that reach a user. Engine errors are in `fastmtcp.engine.errors`."""

from __future__ import annotations


class FastmtcpError(Exception):
    """Base of every error that fastmtcp raises on purpose."""

    exit_code = 1


class ConfigError(FastmtcpError, ValueError):
    """Local misuse: an option, a file or a key is wrong. One line that names the remedy."""

    exit_code = 2


class FormError(ConfigError):
    """A value is nothing that its type can read; the text says what it must be. `hint` comes behind
    the form, also where that is said in other words."""

    def __init__(self, form: str, hint: str = "") -> None:
        super().__init__(f"must be {form}{hint}")
        self.hint = hint


def text_value(value: object, form: str) -> str:
    """A setting's value, which must be a text of this form. Raises FormError."""
    if not isinstance(value, str):
        raise FormError(form, ", in quotes")
    return value


class StartError(FastmtcpError):
    """The program cannot serve here: address in use, no permission, out of descriptors."""

    exit_code = 1


class PeerError(FastmtcpError):
    """The other side broke the protocol or failed to prove itself."""

    exit_code = 1


def in_a_sentence(text: str) -> str:
    """An error text of the system or a library without its capital: `no route to host`, but
    `TLS is needed`."""
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]
