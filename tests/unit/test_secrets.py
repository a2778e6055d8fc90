"""The search for secrets in all that the suite makes processes tell finds what is planted there."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli import zygote
from tests.cli.raftctl import BOUND_SECONDS, ROOT, raftctl
from tests.support import secrets
from tests.support.processes import Cluster, Process, free_ports

FAKE = """
import http.server, sys
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'm{key="hunter2"} 1')
    def log_message(self, *words): pass
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Page)
print("it listens", file=sys.stderr, flush=True)
print(sys.argv[2], file=sys.stderr, flush=True)
server.serve_forever()
"""


class Fake(Process):
    """A process that logs what it is told to, and has a page of metrics with a secret."""

    def __init__(self, directory: Path, says: str) -> None:
        client, peer = free_ports(2)
        prefix = (sys.executable, "-c", FAKE, str(client), says)
        super().__init__("m0", directory, client, peer, "", prefix=prefix)

    def await_words(self) -> None:
        while self.log().count("\n") < 2:
            assert self.running(), self.log()


def complaints() -> str:
    with pytest.raises(AssertionError) as found:
        secrets.complain()
    secrets.complain()
    return str(found.value)


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_what_a_member_logged_is_searched_when_it_ends(end: str, tmp_path: Path) -> None:
    member = Fake(tmp_path, "put value='s3cret'")
    member.start()
    member.await_words()
    if end == "kill":
        member.kill()
    else:
        with pytest.raises(AssertionError):
            member.stop()
    assert "m0.log of m0: put value='s3cret'" in complaints()
    member.kill()
    secrets.complain()


def test_the_metrics_of_a_member_are_searched_before_its_test_ends(tmp_path: Path) -> None:
    running = Cluster(tmp_path, 1)
    running.members[:] = [Fake(tmp_path, "harmless")]
    running.members[0].start()
    running.members[0].await_words()
    running.kill()
    assert "the metrics of m0: m{key=" in complaints()


def test_what_was_drawn_at_random_is_found_once_it_is_kept(tmp_path: Path) -> None:
    secrets.look("here", "says Zq0drawn")
    secrets.complain()
    secrets.keep("Zq0drawn")
    secrets.look("here", "says Zq0drawn")
    assert "here: says Zq0drawn" in complaints()
    with pytest.raises(AssertionError, match="everywhere"):
        secrets.keep("short")


def test_what_is_logged_within_the_tests_is_searched(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("raftkv.planted")
    logger.warning("a value: %s", "s3cret")
    assert "a log line of raftkv.planted: a value: s3cret" in complaints()
    logger.warning("fields", extra={"fields": {"value": "hunter2"}})
    assert "hunter2" in complaints()
    try:
        raise ValueError("correct horse")
    except ValueError:
        logger.exception("a traceback")
    assert "correct horse" in complaints()


@pytest.mark.parametrize("runs", [raftctl, zygote.raftctl])
def test_what_raftctl_says_on_stderr_is_searched(runs: Any) -> None:
    assert runs("s3cret").status
    assert "raftctl: " in complaints()


@pytest.mark.parametrize("said", ["s3cret", "harmless"])
def test_a_test_during_which_a_secret_is_told_fails(said: str, tmp_path: Path) -> None:
    (tmp_path / "test_planted.py").write_text(f"import logging\ndef test(): logging.warning({said!r})\n")
    command = (sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "--rootdir", str(tmp_path), str(tmp_path))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=BOUND_SECONDS, check=False
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert ("a secret was told by a log line of root: s3cret" in done.stdout) == (said == "s3cret")
    assert done.returncode == (said == "s3cret")


def test_passwords_of_tests_bear_a_mark(tmp_path: Path) -> None:
    for words in (["--user", "ann:word"], ["--password", "word"], ["--user=ann:word"], ["--password=word"]):
        with pytest.raises(AssertionError, match="passwords of tests"):
            raftctl(*words, "get", "a")
    with pytest.raises(AssertionError, match="passwords of tests"):
        Fake(tmp_path, "").client(user="ann", password="word")
    for words in (["--user", "ann"], ["--user", "ann:s3cret"], ["--password=s3cret"]):
        secrets.check_marks(words)
