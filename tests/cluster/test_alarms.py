"""Three real members that run out of their quota, and what is said and done then."""

import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftkv.client import ClientError
from raftkv.client.requests import ALARM
from raftkv.pb import rpc_pb2
from raftkv.status import Code
from tests.cli.raftctl import PATIENT
from tests.support.processes import START_SECONDS, Cluster, Process, cluster

QUOTA = 600_000
NO_SPACE = (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three members, filled until a put was refused."""
    with cluster(tmp_path_factory.mktemp("cluster"), 3, f"--quota-backend-bytes={QUOTA}") as running:
        with running.members[0].client() as client:
            for number in range(100):
                try:
                    client.put(f"key{number}", b"v" * 20_000)
                except ClientError as error:
                    assert (error.code, error.message) == NO_SPACE
                    assert 10 < number < 30
                    break
            else:
                raise AssertionError("never full")
        yield running


def refused(member: Process, *, put: bool = True) -> bool:
    operation = {"request_put": {"key": b"x"}} if put else {"request_delete_range": {"key": b"x"}}
    with member.client() as client:
        try:
            client.txn(rpc_pb2.TxnRequest(success=[operation]))
        except ClientError as error:
            assert (error.code, error.message) == NO_SPACE
            return True
    return False


def size_on_disk(member: Process) -> int:
    with member.client() as client:
        return client.status().dbSize


def health(member: Process, query: str = "") -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://{member.endpoint}/health{query}", timeout=60.0) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def tell(tool: list[str], endpoint: str, *words: str) -> bytes:
    done = subprocess.run(
        [*tool, "--endpoints", endpoint, *PATIENT, *words], capture_output=True, timeout=120, check=True
    )
    return done.stdout


RAFTCTL = [sys.executable, "-m", "cli.raftctl"]


def test_what_takes_space_is_refused_by_every_member(full: Cluster) -> None:
    for member in full.members:
        assert refused(member)
        with member.client() as client, pytest.raises(ClientError) as error:
            client.lease_grant(60)
        assert (error.value.code, error.value.message) == NO_SPACE


def test_reads_deletions_and_compaction_go_on(full: Cluster) -> None:
    for member in full.members:
        assert not refused(member, put=False)
    with full.client() as client:
        assert client.get("key0") is not None
        revision = client.delete("key1").header.revision
        client.compact(revision, physical=True)


def test_the_alarm_is_told_by_status_health_and_list(full: Cluster) -> None:
    assert tell(RAFTCTL, full.endpoints, "alarm", "list").startswith(b"memberID:")
    for member in full.members:
        with member.client() as client:
            status = client.status()
        assert status.dbSizeQuota == QUOTA
        assert [text.split(" ")[1] for text in status.errors] == ["alarm:NOSPACE"] * len(status.errors) != []
        assert health(member) == (503, b'{"health":"false","reason":"ALARM NOSPACE"}\n')
        assert health(member, "?exclude=NOSPACE")[0] == 200


@pytest.mark.skipif(shutil.which("etcdctl") is None, reason="no etcdctl to compare with")
@pytest.mark.parametrize("form", ["simple", "json", "fields"])
def test_etcdctl_lists_it_in_the_same_words(full: Cluster, form: str) -> None:
    endpoint = full.members[0].endpoint
    etcdctl = ["env", "ETCDCTL_API=3", "etcdctl"]
    theirs, ours = (tell(tool, endpoint, "alarm", "list", "-w", form) for tool in (etcdctl, RAFTCTL))
    assert b"NOSPACE" in theirs or form == "json"
    assert ours == theirs


def test_it_outlives_a_crash(full: Cluster) -> None:
    member = next(member for member in full.members if member is not full.leader())
    member.kill()
    member.start()
    full.wait_ready(member)
    assert refused(member)


def test_disarmed_it_comes_back_while_space_is_short(full: Cluster) -> None:
    deadline = time.monotonic() + START_SECONDS
    for member in full.members:
        # A put without a value has room until the store is flushed: only then does the file hold more than the quota.
        while size_on_disk(member) < QUOTA:
            assert time.monotonic() < deadline
    assert b"NOSPACE" in tell(RAFTCTL, full.endpoints, "alarm", "disarm")
    assert tell(RAFTCTL, full.endpoints, "alarm", "list") == b""
    while health(full.members[0])[0] != 200:
        assert time.monotonic() < deadline
    assert refused(full.members[0])
    assert b"NOSPACE" in tell(RAFTCTL, full.endpoints, "alarm", "list")


def test_corrupt_stops_all_writes_and_no_reads(full: Cluster) -> None:
    with full.client() as client:
        raised = client.call(ALARM, rpc_pb2.AlarmRequest(action="ACTIVATE", memberID=7, alarm="CORRUPT"))
        assert [(one.memberID, one.alarm) for one in raised.alarms] == [(7, rpc_pb2.CORRUPT)]
        for write in (lambda: client.delete("a"), lambda: client.lease_revoke(1), lambda: client.compact(10**6)):
            with pytest.raises(ClientError) as error:
                write()
            assert (error.value.code, error.value.message) == (Code.DATA_LOSS, "etcdserver: corrupt cluster")
        assert client.get("key0") is not None
        wrong = client.call(ALARM, rpc_pb2.AlarmRequest(action="DEACTIVATE", memberID=8, alarm="CORRUPT"))
        assert not wrong.alarms
        client.call(ALARM, rpc_pb2.AlarmRequest(action="DEACTIVATE", memberID=7, alarm="CORRUPT"))
        client.delete("a")


def test_a_member_did_not_start_after_alarms_were_listed_and_it_was_killed(tmp_path: Path) -> None:
    """etcd 14429: the question is in the log, and is applied again."""
    with cluster(tmp_path, 1) as one, one.client() as client:
        (member,) = one.members
        assert not client.call(ALARM, rpc_pb2.AlarmRequest()).alarms
        member.kill()
        member.start()
        one.wait_ready(member)
        assert not client.call(ALARM, rpc_pb2.AlarmRequest()).alarms
