"""Giving up root for good, once the ports are bound (setuid(2), setgroups(2))."""

from __future__ import annotations

import grp
import os
import pwd

import msgspec

from fastmtcp.errors import ConfigError, StartError


class Account(msgspec.Struct, frozen=True):
    """The user to run as."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    """Supplementary groups: those of the user, or only the group that was named."""
    has_group: bool
    """A group was named, whose members are to use what is made for it."""


def find(text: str) -> Account:
    """Look up `NAME` or `NAME:GROUP`. Blocks: call it before the loop runs.

    Raises:
        ConfigError: there is no such user, it is root, or this process may not change its user.
    """
    name, colon, group = text.partition(":")
    try:
        user = pwd.getpwnam(name)
    except (KeyError, ValueError):
        raise ConfigError(f"--user {text!r}: there is no user {name!r}") from None
    gid = user.pw_gid
    if colon:
        try:
            gid = grp.getgrnam(group).gr_gid
        except (KeyError, ValueError):
            raise ConfigError(f"--user {text!r}: there is no group {group!r}") from None
    if user.pw_uid == 0 or gid == 0:
        raise ConfigError(f"--user {text!r}: is root; name an unprivileged user and group")
    if os.geteuid() != 0:
        raise ConfigError(
            f"--user {text!r}: only root can become another user; start as root or leave it out"
        )
    groups = [gid] if colon else os.getgrouplist(name, gid)
    return Account(name, user.pw_uid, gid, tuple(sorted(set(groups) - {0})), bool(colon))


def drop(account: Account) -> None:
    """Become `account`, with no way back: real, effective and saved ids, and all groups. With the
    user the kernel takes the capabilities (capabilities(7)).

    Raises:
        StartError: the system does not let us.
    """
    try:
        os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
    except OSError as error:
        raise StartError(f"cannot become user {account.name}: {error.strerror}") from None
    try:
        os.setresuid(-1, 0, -1)
    except PermissionError:
        return
    raise StartError(f"cannot give up root for good as user {account.name}")
