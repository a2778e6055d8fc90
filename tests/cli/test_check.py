"""raftctl check: what it says of a load, and that it leaves nothing behind."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.raftctl.checking import verdicts_of
from cli.raftctl.load import Outcome
from raftkv.client import Client
from tests.cli.raftctl import PATIENT, etcdctl
from tests.cli.servers import KINDS, serve, serve_tls
from tests.cli.zygote import raftctl
from tests.support.certificates import Authority


@pytest.fixture(scope="module", params=KINDS)
def live(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(request.param, tmp_path_factory.mktemp("server")) as endpoint:
        yield endpoint


def keys(endpoint: str) -> int:
    with Client(endpoint) as client:
        return client.range("", prefix=True, count_only=True).count


def test_a_load_is_judged_by_rate_slowest_and_spread() -> None:
    good = verdicts_of(Outcome(seconds=1.0, latencies=[0.001] * 149 + [0.4]), 150)
    assert [passed for passed, _ in good] == [True, True, True]
    assert [text for _, text in good][:2] == ["Throughput is 150 writes/s", "Slowest request took 0.400000s"]
    few = verdicts_of(Outcome(seconds=1.0, latencies=[0.001] * 134), 150)
    assert few[0] == (False, "Throughput too low: 134 writes/s")
    slow = verdicts_of(Outcome(seconds=1.0, latencies=[0.001] * 149 + [0.6]), 150)
    assert slow[1] == (False, "Slowest request took too long: 0.600000s")
    spread = verdicts_of(Outcome(seconds=1.0, latencies=[0.001, 0.3] * 75), 150)
    assert spread[2] == (False, "Stddev too high: 0.149500s")


def test_perf_says_what_it_found_and_leaves_nothing(live: str) -> None:
    command = ("--endpoints", live, "check", "perf", "--duration", "1s", "--auto-compact", "--auto-defrag")
    done = raftctl(*command)
    lines = done.stdout.decode().splitlines()
    assert re.fullmatch(r"Compacting with revision \d+", lines[0])
    assert lines[1:4] == [
        lines[0].replace("Compacting", "Compacted"),
        f'Defragmenting "{live}"',
        f'Defragmented "{live}"',
    ]
    for line, words in zip(lines[4:7], ("Throughput", "Slowest request", "Stddev"), strict=True):
        assert re.match(rf"(PASS|FAIL): {words} ", line)
    # How fast this machine is, is not for this test to say.
    assert lines[7:] == ["PASS" if done.status == 0 else "FAIL"]
    assert (done.status == 1) == any("FAIL" in line for line in lines)
    assert keys(live) == 0


def test_what_is_there_already_is_not_touched(live: str) -> None:
    with Client(live) as client:
        client.put("/mine/a", "x")
        for kind in ("perf", "datascale"):
            done = raftctl("--endpoints", live, "check", kind, "--prefix", "/mine/")
            assert (done.status, done.stdout) == (3, b"")
            assert done.stderr == 'Error: prefix "/mine/" has keys. Delete with raftctl del --prefix /mine/ first\n'
        client.delete("/mine/a")


def test_an_unknown_load_is_refused_as_by_etcdctl() -> None:
    for kind in ("perf", "datascale"):
        done = raftctl("check", kind, "--load", "zz")
        assert (done.status, done.stderr) == (4, "Error: unknown load option zz\n")
        if shutil.which("etcdctl"):
            theirs = etcdctl("check", kind, "--load", "zz")
            assert (theirs.status, theirs.stderr) == (done.status, done.stderr)


def test_datascale_says_what_etcdctl_says(tmp_path: Path) -> None:
    with serve("raftkv", tmp_path) as endpoint:
        command = ("--endpoints", endpoint, "check", "datascale", "--auto-compact", "--auto-defrag")
        said = [raftctl(*command), *([etcdctl(*command)] if shutil.which("etcdctl") else [])]
        for done in said:
            assert done.status == 0, done.stderr
            # etcdctl's progress is on stdout, whoever reads it.
            lines = [
                line for line in done.stdout.decode().splitlines() if not line.lstrip().partition(" /")[0].isdigit()
            ]
            assert [re.sub(r"\d+(\.\d+)? MB|revision \d+", "N", line).strip() for line in lines if line.strip()] == [
                "Start data scale check for work load [10000 key-value pairs, 1024 bytes per key-value, 50 concurrent "
                "clients].",
                "Compacting with N",
                "Compacted with N",
                f'Defragmenting "{endpoint}"',
                f'Defragmented "{endpoint}"',
                "PASS: Approximate system memory used : N.",
            ]
        assert keys(endpoint) == 0


@pytest.mark.parametrize("verified", [True, False], ids=["verified", "unverified"])
def test_datascale_reads_the_memory_of_a_member_with_tls(tmp_path: Path, *, verified: bool) -> None:
    """Whose endpoint has no scheme, and whose authority the system does not know."""
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.issue("checker")
    trust = ("--cacert", str(authority.file)) if verified else ("--insecure-skip-tls-verify",)
    with serve_tls(tmp_path / "member", authority) as endpoint:
        own = ("--endpoints", endpoint, *PATIENT, *trust, "--cert", str(certificate), "--key", str(key))
        done = raftctl(*own, "check", "datascale")
    assert done.status == 0, (done.stdout, done.stderr)
    assert re.search(rb"PASS: Approximate system memory used : \d", done.stdout)
