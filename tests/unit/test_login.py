"""The file with the proxy's user name and password."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastmtcp.errors import ConfigError
from fastmtcp.proxy import login
from fastmtcp.proxy.login import Login


def file(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    path = folder / "proxy.login"
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_file(tmp_path: Path, end: bytes) -> None:
    found = login.load(file(tmp_path, b"me:a secret: with \xc3\xbc " + end))
    assert found == Login(b"me", b"a secret: with \xc3\xbc ")
    assert "secret" not in repr(found)
    assert found.matches(b"me", b"a secret: with \xc3\xbc ")
    for user, password in ((b"me", b"a secret"), (b"", b""), (b"you", found.password)):
        assert not found.matches(user, password)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"geheim", b":geheim", b"me:", b"me:geheim\nmore", b"me:ge\x00heim", b"me:\x7f"],
)
def test_a_file_with_something_else(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ConfigError, match="USER:PASSWORD in one line") as caught:
        login.load(file(tmp_path, content))
    assert "heim" not in str(caught.value)


@pytest.mark.parametrize("content", [b"x" * 256 + b":y", b"x:" + b"y" * 256, b"x:" + b"y" * 9999])
def test_what_socks_cannot_carry(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ConfigError, match="more than 255 bytes"):
        login.load(file(tmp_path, content))


def test_a_file_that_others_can_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"login file .* is open to others .*chmod 600"):
        login.load(file(tmp_path, b"me:geheim", 0o640))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist; write USER:PASSWORD to it"):
        login.load(tmp_path / "none")
    with pytest.raises(ConfigError, match="not a regular file"):
        login.load(tmp_path)
