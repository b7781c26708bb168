"""The files of unix sockets: whose they are, when they are stale, and that none is left."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
from fastmtcp.errors import StartError
from fastmtcp.io.unix_socket import UnixListener


def connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))


def test_it_listens_and_only_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    umask = os.umask(0)
    try:
        listener = UnixListener(str(path))
        assert os.umask(0) == 0, "the umask of the process is what it was"
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    connect(path)
    listener.close()
    assert not path.exists()
    listener.close()


def test_the_file_of_a_killed_program_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    listener = UnixListener(str(path))
    connect(path)
    listener.close()
    assert not path.exists()


def test_what_belongs_to_somebody_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    first = UnixListener(str(path))
    with pytest.raises(StartError, match="it is in use; choose another"):
        UnixListener(str(path))
    connect(path)
    first.close()
    path.write_text("precious")
    with pytest.raises(StartError, match="the file is there and no socket; choose another"):
        UnixListener(str(path))
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StartError, match="no socket"):
        UnixListener(str(path))


def test_a_file_that_has_replaced_ours_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    first = UnixListener(str(path))
    path.rename(tmp_path / "moved")
    second = UnixListener(str(path))
    first.close()
    connect(path)
    second.close()


@pytest.mark.parametrize("name", ["missing/a.sock", "x" * 200])
def test_where_there_can_be_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(StartError, match=r"cannot listen on unix:.*: \w+"):
        UnixListener(str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []
