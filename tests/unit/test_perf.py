"""What the benchmarks read from other programs, tell the kernel, and print."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fastmtcp.endpoint import Endpoint

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from perf import (
    compare,
    iperf_compare,
    loopback,
    network,
    results,
    setups,
    tools,
    trees,
    uplinks,
)
from perf.network import CLASSES, Line
from perf.processes import BenchmarkError, Meter, running
from perf.uplinks import Uplink

WRK = """\
Running 2s test @ http://127.0.0.1:8080/
  1 threads and 32 connections
  Latency Distribution
     50%    1.73ms
     99%    9.00ms
  16000 requests in 2.00s, 2.50MB read
  Socket errors: connect 1, read 2, write 0, timeout 4
  Non-2xx or 3xx responses: 3
Requests/sec:   8000.50
Transfer/sec:      1.25MB
"""


class TestIperf3:
    result: dict[str, Any] = {  # noqa: RUF012 - read only
        "intervals": [
            {"sum": {"bytes": 100, "omitted": True}},
            {"sum": {"bytes": 250, "omitted": False}},
        ],
        "end": {"sum_received": {"bits_per_second": 1600.0, "bytes": 240}},
    }

    def test_the_total_includes_what_the_rate_leaves_out(self) -> None:
        assert tools.read_iperf3(self.result) == tools.Transfer(1600.0, 350)

    @pytest.mark.parametrize(
        "text", ["", "iperf3: oh", "[]", '{"error": "unable to connect"}', '{"end": {}}']
    )
    def test_a_failed_run_is_one_line(self, text: str) -> None:
        with pytest.raises(BenchmarkError, match=r"^iperf3: [^\n]+$"):
            tools.read_iperf3(tools.read_json(text))


class TestWrk:
    def test_all_errors_count(self) -> None:
        load = tools.read_wrk(WRK)
        assert (load.rate, load.errors) == (8000.5, 1 + 2 + 4 + 3)
        assert load.latency == pytest.approx(0.00173)

    def test_output_without_a_result_is_an_error(self) -> None:
        with pytest.raises(BenchmarkError, match="no result"):
            tools.read_wrk("unable to connect")


class TestSetups:
    LISTEN, TARGET, ENTRY = (Endpoint("127.0.0.1", port) for port in (7700, 5201, 7701))

    def test_plainly_all_numbers_are_given_and_nothing_is_encrypted(self) -> None:
        with setups.set_up(setups.PLAIN, self.LISTEN, self.TARGET) as made:
            client = " ".join(made.client(self.ENTRY, 4))
            assert "--workers 1" in " ".join(made.server)
            assert "--workers 1 " in client
            assert client.endswith("--connections 4 --server 127.0.0.1:7700")
            assert "--key-file" not in client
            assert "--link-file" not in client

    def test_a_key_where_others_can_connect(self) -> None:
        with setups.set_up(setups.PLAIN, Endpoint("10.0.0.1", 7700), self.TARGET) as made:
            assert "--key-file" in made.server
            assert "--key-file" in made.client(self.ENTRY, 4)

    def test_a_quick_start_gives_a_link_and_no_number(self) -> None:
        with setups.set_up(setups.QUICK_START, self.LISTEN, self.TARGET) as made:
            config = Path(made.server[-1]).read_text()
            client = made.client(self.ENTRY, 4, ["127.0.0.1:7709"])
            assert Path(made.credentials[1]).stat().st_mode & 0o777 == 0o600
        assert 'target = "127.0.0.1:5201"' in config
        assert "tls = true" in config
        assert {"--link-file", "--server", "127.0.0.1:7709"} < set(client)
        for command in (made.server, client):
            assert not {"--workers", "--connections"} & set(command)


class TestNetwork:
    def test_every_class_that_nft_gives_exists_with_its_rate(self) -> None:
        given = {part.split(":", 1)[1].strip() for part in _map(network.nft_rules())}
        rules = network.tc_rules(Line(rate=20_000_000)).splitlines()
        made = {rule.split()[7]: rule for rule in rules if rule.startswith("class")}
        assert len(given) == CLASSES
        assert given < set(made)
        assert all("rate 160000000bit" in made[name] for name in given)

    def test_the_delay_is_half_of_the_round_trip_at_each_end(self) -> None:
        assert "netem delay 100ms" in network.tc_rules(Line(rtt=0.2))
        rules = network.tc_rules(Line(rate=1000, rtt=0.04))
        assert rules.count("netem delay 20ms") == CLASSES

    def test_a_line_without_limits_needs_no_rules(self) -> None:
        assert network.tc_rules(Line()) == ""

    def test_the_profile_for_another_program(self) -> None:
        assert network.wan_profile(Line(20_000_000, 0.04)) == (
            "up=160000000bit down=160000000bit delay=20ms queue=100ms\n"
        )
        assert network.wan_profile(Line(0, 0.2)) == "delay=100ms queue=100ms\n"


def _map(rules: str) -> list[str]:
    inner = rules[rules.index("map {") + 5 :]
    return inner[: inner.index("}")].split(",")


class TestResults:
    def test_the_median_is_of_the_matching_runs_only(self) -> None:
        runs = [{"kind": "a", "x": x} for x in (1.0, 9.0, 2.0)] + [{"kind": "b", "x": 100.0}]
        assert results.median_of(runs, "x", kind="a") == 2.0
        with pytest.raises(BenchmarkError):
            results.median_of(runs, "x", kind="c")

    def test_a_table_is_markdown_that_lines_up(self) -> None:
        assert results.table(["name", "figure"], [["long name", "1"], ["x", "1234567"]]) == (
            "| name      |  figure |\n"
            "| --------- | ------: |\n"
            "| long name |       1 |\n"
            "| x         | 1234567 |"
        )

    def test_efficiency_is_against_as_many_plain_connections(self) -> None:
        runs: list[results.Run] = []
        for direction, one in (("up", 100.0), ("down", 200.0)):
            for through, count, rate in (("plain", 1, 1), ("plain", 4, 4), ("fastmtcp", 4, 3)):
                runs.append(
                    {
                        "through": through,
                        "connections": count,
                        "direction": direction,
                        "mbit_per_s": rate * one,
                    }
                )
        row = iperf_compare.report(runs, [4]).splitlines()[-1]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells == ["4", "400", "300", "3.00", "0.750", "800", "600", "3.00", "0.750"]

    def test_no_forwarder_has_no_cost(self) -> None:
        runs: list[results.Run] = [
            {
                "through": "direct",
                "direction": direction,
                "gbit_per_s": 20.0,
                "cpu_s_per_gb": 0.0,
                "peak_pss_mb": 0.0,
            }
            for direction in tools.DIRECTIONS
        ]
        row = loopback.report(runs, ["direct"]).splitlines()[-1]
        assert [cell.strip() for cell in row.strip("|").split("|")] == (
            ["no forwarder", "20.00", "-", "-", "20.00", "-", "-"]
        )


class TestProcesses:
    def test_a_program_that_does_not_start_says_why(self) -> None:
        command = [sys.executable, "-c", "raise SystemExit('no such luck')"]
        with (
            pytest.raises(BenchmarkError, match="it did not start: no such luck"),
            running("it", command),
        ):
            pass

    def test_what_a_program_logs_can_be_kept(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        command = [sys.executable, "-c", "import sys\nprint('ready\\nmore', file=sys.stderr)"]
        with running("it", command, log=log) as process:
            process.popen.wait()
        assert log.read_text() == "ready\nmore\n"

    def test_cpu_and_memory_include_children(self) -> None:
        burn = "import time\nwhile time.process_time() < 0.3: pass"
        parent = (
            "import subprocess, sys\n"
            "print('ready', file=sys.stderr, flush=True)\n"
            "sys.stdin.readline()\n"
            f"subprocess.run([sys.executable, '-c', {burn!r}])\n"
            "print('done', flush=True)\n"
            "sys.stdin.readline()\n"
        )
        command = [sys.executable, "-c", parent]
        with running("parent", command, stdin=True, stdout=True) as process:
            assert process.popen.stdin is not None
            assert process.popen.stdout is not None
            with Meter([process.pid]) as meter:
                process.popen.stdin.write("go\n")
                process.popen.stdin.flush()
                assert process.popen.stdout.readline() == "done\n"
        assert meter.cpu > 0.2  # the kernel counts in ticks of 10 ms
        assert meter.peak_rss >= meter.peak_pss > 0


class TestCompare:
    def test_the_ratio_is_of_the_medians_and_the_range_of_the_turns(self) -> None:
        runs: list[results.Run] = [
            {"through": tree, "mode": "close", "turn": turn, "per_s": value}
            for tree, values in ((compare.BASE, (100, 200, 400)), (compare.TREE, (110, 180, 400)))
            for turn, value in enumerate(values)
        ]
        (figure,) = (one for one in compare.FIGURES if one.name == "connections/s")
        assert compare.verdict(figure, runs) == "ratio 0.90 (0.90-1.10)"

    @pytest.mark.parametrize(
        ("file", "content"),
        [
            (
                "setup.cfg",
                "[options.entry_points]\nconsole_scripts =\n"
                "    fastmtcp = fastmtcp.old:main\n    fastmtcp-server = fastmtcp.old:serve\n"
                "    fastmtcp-client=fastmtcp.old:main\n",
            ),
            (
                "pyproject.toml",
                '[project.scripts]\nfastmtcp = "fastmtcp.old:main"\n'
                'fastmtcp-server = "fastmtcp.old:serve"\nfastmtcp-client = "fastmtcp.old:main"\n',
            ),
        ],
    )
    def test_the_base_runs_from_its_own_tree_and_leaves_nothing(
        self, file: str, content: str, tmp_path: Path
    ) -> None:
        repository, scripts = tmp_path / "repository", tmp_path / "scripts"
        package = repository / "fastmtcp"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "old.py").write_text("def serve(): print(__file__)\ndef main(): pass\n")
        (repository / file).write_text(content)
        _git(repository, "init", "-q")
        _git(repository, "add", ".")
        _git(repository, "commit", "-q", "-m", "base")
        (package / "old.py").write_text("raise SystemExit('not of the commit')\n")
        with trees.checked_out("HEAD", repository) as tree:
            commands = trees.install(tree, scripts)
            said = subprocess.run(commands.server, capture_output=True, text=True, check=True)
            assert said.stdout.strip() == str(tree / "fastmtcp" / "old.py")
        assert not tree.parent.exists()
        assert len(_git(repository, "worktree", "list").splitlines()) == 1

    def test_a_commit_that_is_not_there(self) -> None:
        with (
            pytest.raises(BenchmarkError, match="no commit is named nothing-like-it"),
            trees.checked_out("nothing-like-it"),
        ):
            pass


def _git(repository: Path, *words: str) -> str:
    who = ("-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=no")
    command = ["git", "-C", str(repository), *who, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class TestUplinks:
    LINES = (Uplink(20_000_000, 0.04), Uplink(1_000_000, 0.2, loss=0.01))

    def test_a_line_without_a_round_trip_has_a_queue_and_no_netem(self) -> None:
        assert uplinks.tc_rules(self.LINES, True).count("netem") == 2
        bare = [line._replace(rtt=0.0, loss=0.0) for line in self.LINES]
        rules = uplinks.tc_rules(bare, True, "wan0")
        assert "netem" not in rules
        assert "bfifo limit 2000000\n" in rules
        assert "dev wan0 parent 1: classid 1:10 htb rate 160000000bit " in rules
        assert "dev line" not in rules

    def test_where_the_kernel_limits_a_line_the_program_does_not(self) -> None:
        assert uplinks.wan_profiles([self.LINES[0]._replace(rate=0)]) == (
            "delay=20ms loss=0% queue=100ms mode=shape by=10.77.0.11\n"
        )
