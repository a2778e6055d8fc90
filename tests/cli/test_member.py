"""raftctl member: what is printed and refused is what etcdctl prints and refuses, at one and the same cluster."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.cli.raftctl import Result, etcdctl
from tests.cli.zygote import raftctl
from tests.support.processes import cluster

pytestmark = pytest.mark.skipif(shutil.which("etcdctl") is None, reason="etcdctl is not installed")

REFUSED = (
    "add",
    "add a b",
    "add a http://127.0.0.1:9",
    "add a",
    "add a --peer-urls=nonsense",
    "add a --peer-urls=http://a",
    "add a --peer-urls=http://127.0.0.1:9/path",
    "add a --peer-urls=http://127.0.0.1:9 --learner",
    "remove",
    "remove 1 2",
    "remove xyz",
    "remove 18446744073709551616",
    "remove 1234",
    "promote",
    "promote 1234",
    "update 1234",
    "update xyz --peer-urls=http://127.0.0.1:9",
    "update 1234 --peer-urls=http://127.0.0.1:9",
)


def error(result: Result) -> str:
    """The line that says what is wrong."""
    return next(line for line in result.stderr.splitlines() if line.startswith("Error: "))


def masked(result: Result) -> tuple[int, str]:
    """Ids are new each time, members stand in their order, and the term is new in JSON."""
    text = result.stdout.decode()
    if text.startswith("{"):
        said = json.loads(text)
        said["members"].sort(key=lambda member: str(member.get("name")))
        text = json.dumps(said)
    text = re.sub(r'(?<=ETCD_INITIAL_CLUSTER=")[^"]*', lambda found: ",".join(sorted(found[0].split(","))), text)
    return result.status, re.sub(r"Member +[0-9a-f]+|\"ID\": \d+", "Member ID", text)


def test_changes_are_printed_and_refused_as_by_etcdctl(tmp_path: Path) -> None:
    with cluster(tmp_path, 1) as running:
        at = ("--endpoints", running.endpoints)

        def both(*words: str) -> tuple[Result, Result]:
            ours, theirs = raftctl(*at, "member", *words), etcdctl(*at, "member", *words)
            return ours, theirs

        def both_in_turn(*words: str) -> None:
            """The change is undone in between."""
            said = []
            for tool in (raftctl, etcdctl):
                said.append(masked(tool(*at, "member", *words)))
                (learner,) = re.findall(r"^(\w+), unstarted", raftctl(*at, "member", "list").stdout.decode(), re.M)
                assert raftctl(*at, "member", "remove", learner).status == 0
            assert said[0] == said[1]

        both_in_turn("add", "m1", "--peer-urls=http://127.0.0.1:9,http://127.0.0.1:19", "--learner")
        both_in_turn("add", "m1", "--peer-urls=http://127.0.0.1:9", "--learner", "-w", "json")
        assert raftctl(*at, "member", "add", "m1", "--peer-urls=http://127.0.0.1:5", "--learner").status == 0
        for line in REFUSED:
            ours, theirs = both(*line.split())
            assert (ours.status, error(ours)) == (theirs.status, error(theirs)), line
        (learner,) = re.findall(r"^(\w+), unstarted", raftctl(*at, "member", "list").stdout.decode(), re.M)
        for words in (
            ("update", learner, "--peer-urls=http://127.0.0.1:6"),
            ("update", learner, "--peer-urls=http://127.0.0.1:6", "-w", "json"),
            ("update", learner, "--peer-urls=http://127.0.0.1:6", "-w", "table"),
            ("promote", learner),
            ("list",),
            ("list", "-w", "json"),
        ):
            ours, theirs = both(*words)
            assert (ours.status, ours.stdout) == (theirs.status, theirs.stdout), words
