from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

import pytest
from fastmtcp.errors import ConfigError, FastmtcpError
from fastmtcp.security import keys
from fastmtcp.security.identity import KEY_SIZE
from fastmtcp.security.redaction import redact
from hypothesis import given
from hypothesis import strategies as st

HEX = "0123456789abcdef" * 4


def write(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_a_new_key_file(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "fastmtcp.key"
    before = os.umask(umask)
    try:
        keys.generate(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert re.fullmatch(r"[0-9a-f]{64}\n", text)
    assert keys.load(path) == bytes.fromhex(text.strip())
    assert len(keys.load(str(path))) == KEY_SIZE


def test_two_keys_differ(tmp_path: Path) -> None:
    keys.generate(tmp_path / "a")
    keys.generate(tmp_path / "b")
    assert keys.load(tmp_path / "a") != keys.load(tmp_path / "b")


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "dangling symlink"])
def test_nothing_is_overwritten(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "fastmtcp.key"
    elsewhere = tmp_path / "elsewhere"
    if kind == "file":
        path.write_text("old")
    elif kind == "directory":
        path.mkdir()
    else:
        if kind == "symlink":
            elsewhere.write_text("old")
        path.symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="already exists and is not overwritten") as caught:
        keys.generate(path)
    assert str(path) in str(caught.value)
    if kind in ("file", "symlink"):
        assert path.read_text() == "old"
    assert elsewhere.exists() == (kind == "symlink")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("missing/k", "No such file"), ("file/k", "Not a directory"), ("a\0b", "impossible name")],
)
def test_a_place_where_no_file_can_be(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=reason):
        keys.generate(f"{tmp_path}/{name}")


def test_a_failed_write_leaves_no_half_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FastmtcpError, match="No space left") as caught:
        keys.generate(tmp_path / "k")
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [HEX, HEX + "\n", HEX.upper() + "\n", HEX + "\r\n", f"\n {HEX} \n\n"],
    ids=["bare", "line", "upper case", "CRLF", "blanks"],
)
def test_forms_of_a_key(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "k", content.encode())
    assert keys.load(path) == bytes.fromhex(HEX)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_modes_that_are_private(tmp_path: Path, mode: int) -> None:
    assert keys.load(write(tmp_path / "k", HEX.encode(), mode)) == bytes.fromhex(HEX)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o602, 0o620, 0o666, 0o601])
def test_modes_that_let_others_in(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "the key", HEX.encode(), mode)
    with pytest.raises(ConfigError) as caught:
        keys.load(path)
    assert f"`chmod 600 '{path}'`" in str(caught.value)
    assert f"{mode:04o}" in str(caught.value)


def test_the_chmod_that_is_named_helps(tmp_path: Path) -> None:
    path = write(tmp_path / "k", HEX.encode(), 0o644)
    with pytest.raises(ConfigError) as caught:
        keys.load(path)
    command = re.search("`(.*)`", str(caught.value))
    assert command is not None
    assert os.system(command[1]) == 0
    assert keys.load(path) == bytes.fromhex(HEX)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        HEX[:-1].encode(),
        (HEX + "0").encode(),
        (HEX[:-1] + "g").encode(),
        (HEX + "\n" + HEX).encode(),
        ("key = " + HEX).encode(),
        ("0x" + HEX).encode(),
        bytes.fromhex(HEX),
        b"\xff\xfe" + HEX.encode("utf-16-le"),
        HEX.encode() + b" " * 5000,
        b"\0" * 100_000,
    ],
)
def test_contents_that_are_not_one_key(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "k", content)
    with pytest.raises(ConfigError, match="does not hold 64 hexadecimal digits") as caught:
        keys.load(path)
    assert HEX[:16] not in str(caught.value)
    assert str(path) in str(caught.value)


@given(st.binary(max_size=200))
def test_no_content_gets_into_an_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "any.key", content)
    # The same words whatever the file holds.
    refusal = (
        f"key file {path} does not hold 64 hexadecimal digits and nothing else; "
        "make a new one with `fastmtcp keygen FILE`"
    )
    if re.fullmatch(rb"\s*[0-9a-fA-F]{64}\s*", content):
        assert keys.load(path) == bytes.fromhex(content.decode())
    else:
        with pytest.raises(ConfigError, match=f"^{re.escape(refusal)}$"):
            keys.load(path)


def test_what_is_not_a_regular_file(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    for path in (fifo, tmp_path, Path("/dev/null")):
        with pytest.raises(ConfigError, match="is not a regular file"):
            keys.load(path)


def test_a_symbolic_link_to_a_key_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(write(tmp_path / "k", HEX.encode()))
    assert keys.load(tmp_path / "link") == bytes.fromhex(HEX)


def test_a_missing_file_names_the_command_that_makes_it(tmp_path: Path) -> None:
    path = tmp_path / "my key"
    with pytest.raises(ConfigError, match="does not exist") as caught:
        keys.load(path)
    assert f"`fastmtcp keygen '{path}'`" in str(caught.value)


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_impossible_names(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        keys.load(name)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    good = write(tmp_path / "k", HEX.encode())
    before = os.listdir("/dev/fd")
    keys.load(good)
    for path in (tmp_path, write(tmp_path / "bad", b""), write(tmp_path / "open", b"", 0o644)):
        with pytest.raises(ConfigError):
            keys.load(path)
    assert os.listdir("/dev/fd") == before


def test_a_key_given_as_the_name_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^key file \(hidden\) does not exist") as missing:
        keys.load(HEX)
    assert "`fastmtcp keygen FILE`" in str(missing.value)
    write(tmp_path / HEX, b"", 0o644)
    with pytest.raises(ConfigError, match=r"^key file \(hidden\) .* `chmod 600 FILE`$"):
        keys.load(HEX)
    with pytest.raises(ConfigError, match=r"^key file \(hidden\) already exists"):
        keys.generate(HEX)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEX, "(hidden)"),
        (HEX.upper(), "(hidden)"),
        (HEX[:60], "(hidden)"),
        (f"no such command '{HEX}'", "no such command '(hidden)'"),
        (f"argument ({HEX}).", "argument ((hidden))."),
        (f"a={HEX} b={HEX}", "a=(hidden) b=(hidden)"),
        (f"/var/lib/docker/{HEX}/k", f"/var/lib/docker/{HEX}/k"),
        (f"{HEX}.key", f"{HEX}.key"),
        (HEX[:40], HEX[:40]),
        ("plain", "plain"),
    ],
)
def test_redact(text: str, expected: str) -> None:
    assert redact(text) == expected


def test_a_credential_of_systemd_may_be_readable_by_an_acl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ACL shows in the bits of the group. Nowhere else is that allowed."""
    path = write(tmp_path / "fastmtcp.key", HEX.encode(), 0o440)
    with pytest.raises(ConfigError):
        keys.load(path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert keys.load(path) == bytes.fromhex(HEX)
    for mode in (0o444, 0o460, 0o441):
        path.chmod(mode)
        with pytest.raises(ConfigError):
            keys.load(path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "elsewhere"))
    path.chmod(0o440)
    with pytest.raises(ConfigError):
        keys.load(path)
