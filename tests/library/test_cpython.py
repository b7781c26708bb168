"""CPython's own tests of TCP connections, with ours in their place (see everywhere.py).

They are run where the installed Python has its package `test`; Debian's has not.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]

_SUITES = {
    "test.test_socket": (
        "BasicTCPTest",
        "BasicTCPTest2",
        "BufferIOTest",
        "ContextManagersTest",
        "FileObjectClassTestCase",
        "InterruptedSendTimeoutTest",
        "NetworkConnectionAttributesTest",
        "NonBlockingTCPTests",
        "RecvmsgIntoTCPTest",
        "RecvmsgTCPTest",
        "SendfileUsingSendTest",
        "SendfileUsingSendfileTest",
        "SendmsgTCPTest",
        "TCPCloserTest",
        "UnbufferedFileObjectClassTestCase",
        "UnicodeReadWriteFileObjectClassTestCase",
    ),
    "test.test_ssl": ("ThreadedTests",),
    "test.test_httplib": (),
    "test.test_asyncio.test_streams": (),
}

_DO_NOT_APPLY = {
    "NetworkConnectionAttributesTest.testSourceAddress": "the inner connection has ports of its "
    "own; source_address is that of the subflows",
    "SourceAddressTest.testHTTPConnectionSourceAddress": "the same",
    "ThreadedTests.test_server_accept": "accept() and getsockname() name different connections "
    "here, a thing of everywhere.py",
    "SendfileUsingSendTest.testWithTimeoutTriggeredSend": "expects that 10 MB do not fit into "
    "the buffers of a connection",
    "SendfileUsingSendfileTest.testWithTimeoutTriggeredSend": "the same",
}


def _start(name: str, cases: Iterable[str], errors: Path) -> subprocess.Popen[str]:
    with open(errors, "ab") as stderr:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.library.everywhere", name, *cases],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=_ROOT,
            text=True,
        )


def _report(process: subprocess.Popen[str], errors: Path) -> dict[str, Any]:
    output, _ = process.communicate(timeout=110)
    assert process.returncode == 0, errors.read_text()
    # The tests print as well.
    report: dict[str, Any] = json.loads(output[f"\n{output}".rindex("\n{\n") :])
    return report


if all(importlib.util.find_spec(name.rpartition(".")[0]) for name in _SUITES):

    def test_the_tests_of_cpython(tmp_path: Path) -> None:
        errors = tmp_path / "stderr"
        running = {name: _start(name, cases, errors) for name, cases in _SUITES.items()}
        reports = {name: _report(process, errors) for name, process in running.items()}
        assert sum(report["run"] for report in reports.values()) > 350
        assert sum(report["replaced"] for report in reports.values()) > 200
        for name, report in reports.items():
            failed = set(report["failed"]) - set(_DO_NOT_APPLY)
            if failed:
                # Some of them measure time: once more, without company.
                report = _report(_start(name, failed, errors), errors)
                assert report["failed"] == {}
