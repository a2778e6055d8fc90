"""The audit log of a real member: who did what to which keys, by every way in; and a disk that is full."""

import base64
import contextlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from raftkv.api.slices import LARGE_KEYS
from raftkv.client import Client, ClientError, access
from raftkv.client.secure import ClientTls
from raftkv.pb import rpc_pb2 as pb
from tests.cluster.test_auth import CHEAP, PASSWORD, call, client_of, set_up, token_of
from tests.support.certificates import Authority
from tests.support.processes import START_SECONDS, Cluster, Process, cluster

VALUE = "s3cret-value"
Line = dict[str, Any]


def lines(path: Path) -> list[Line]:
    # The last line may be half written.
    return [json.loads(line) for line in path.read_text().rpartition("\n")[0].splitlines()] if path.exists() else []


def await_line(path: Path, wanted: Callable[[Line], bool]) -> Line:
    """The first line that is wanted: they are written by a thread, soon after the answer."""
    deadline = time.monotonic() + START_SECONDS
    while not (found := [line for line in lines(path) if wanted(line)]):
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.02)
    return found[0]


def of(method: str, **fields: object) -> Callable[[Line], bool]:
    return lambda line: line["method"].endswith(f"/{method}") and fields.items() <= line.items()


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A member with ann and root, and an audit log."""
    directory = tmp_path_factory.mktemp("audit")
    with cluster(directory, 1, *CHEAP, "--audit-log", str(directory / "audit.log")) as running:
        with client_of(running) as client:
            set_up(client)
        yield running.members[0]


@pytest.fixture
def log(member: Process) -> Path:
    return member.directory / "audit.log"


def test_a_write_is_recorded_with_who_what_and_which_revision(member: Process, log: Path) -> None:
    with client_of(member, "ann") as ann:
        revision = ann.put("/ann/a", VALUE).header.revision
    line = await_line(log, of("Put", user="ann"))
    assert line["ts"].endswith("Z")
    assert line["remote"].startswith("127.0.0.1:")
    assert (line["request"], line["revision"], line["code"]) == ({"key": "/ann/a"}, revision, "OK")


def test_a_range_of_more_keys_than_are_read_in_one_turn_is_answered_and_recorded(member: Process, log: Path) -> None:
    with client_of(member, "root") as root:
        for first in range(0, LARGE_KEYS + 100, 100):
            puts = [pb.PutRequest(key=b"many/%05d" % number) for number in range(first, first + 100)]
            root.txn(pb.TxnRequest(success=[pb.RequestOp(request_put=put) for put in puts]))
        found = root.range("many/", prefix=True)
        assert found.count == len(found.kvs) == LARGE_KEYS + 100
        line = await_line(log, of("Range", user="root", request={"key": "many/", "range_end": "many0"}))
        assert (line["code"], line["revision"]) == ("OK", found.header.revision)
        root.delete("many/", prefix=True)


def test_what_was_refused_is_recorded_with_why(member: Process, log: Path) -> None:
    with client_of(member, "ann") as ann, pytest.raises(ClientError):
        ann.delete("root's", "z")
    line = await_line(log, of("DeleteRange", user="ann"))
    assert line["request"] == {"key": "root's", "range_end": "z"}
    assert line["code"] == "PermissionDenied"
    assert "revision" not in line
    assert call(member.endpoint, "/etcdserverpb.Lease/LeaseLeases", "forged")[0] is grpc.StatusCode.UNAUTHENTICATED
    line = await_line(log, of("LeaseLeases", code="Unauthenticated"))
    assert "user" not in line


def test_a_login_is_recorded_without_its_password_or_token(member: Process, log: Path) -> None:
    token = token_of(member.endpoint, "ann")
    with Client(member.endpoint, user="ann", password="s3cret-guess") as wrong, pytest.raises(ClientError):
        wrong.get("x")
    failed = await_line(log, of("Authenticate", code="InvalidArgument"))
    assert failed["request"] == {"name": "ann"}
    await_line(log, of("Authenticate", code="OK"))
    found = log.read_text()
    for secret in (token, "s3cret-guess", PASSWORD):
        assert secret not in found


def test_users_and_roles_are_recorded(member: Process, log: Path) -> None:
    with client_of(member, "root") as root:
        root.call(access.USER_ADD, pb.AuthUserAddRequest(name="bob", password="s3cret-bob"))
    line = await_line(log, of("UserAdd", user="root"))
    assert line["request"] == {"name": "bob"}
    assert "s3cret" not in log.read_text()


def test_json_is_recorded_like_grpc(member: Process, log: Path) -> None:
    def b64(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    body = json.dumps({"key": b64("/ann/json"), "value": b64(VALUE)}).encode()
    token = token_of(member.endpoint, "ann")
    request = urllib.request.Request(f"http://{member.endpoint}/v3/kv/put", body, {"Authorization": token})
    with urllib.request.urlopen(request, timeout=60) as answer:
        revision = int(json.load(answer)["header"]["revision"])
    line = await_line(log, lambda line: line.get("request") == {"key": "/ann/json"})
    assert (line["user"], line["revision"], line["code"]) == ("ann", revision, "OK")
    assert line["remote"].startswith("127.0.0.1:")
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"http://{member.endpoint}/v3/kv/range", b'{"key":"cm9vdA=="}', timeout=60)
    await_line(log, lambda line: line.get("request") == {"key": "root"} and line["code"] == "InvalidArgument")


def test_watchers_are_recorded_granted_and_refused(member: Process, log: Path) -> None:
    token = token_of(member.endpoint, "ann")
    path = "/etcdserverpb.Watch/Watch"
    for key in (b"/ann/w", b"others"):
        call(member.endpoint, path, token, pb.WatchRequest(create_request={"key": key}).SerializeToString())
    granted = await_line(log, lambda line: line.get("request") == {"create_request": {"key": "/ann/w"}})
    assert (granted["stage"], granted["user"], granted["code"]) == ("message", "ann", "OK")
    refused = await_line(log, lambda line: line.get("request") == {"create_request": {"key": "others"}})
    assert (refused["stage"], refused["user"], refused["code"]) == ("message", "ann", "PermissionDenied")
    await_line(log, of("Watch", stage="begin"))
    await_line(log, of("Watch", stage="end", code="Canceled"))


def test_the_first_renewal_of_a_lease_is_recorded(member: Process, log: Path) -> None:
    with client_of(member, "root") as root:
        lease = root.lease_grant(1000).ID
    granted = await_line(log, of("LeaseGrant"))
    assert granted["ID"] == lease
    with grpc.insecure_channel(member.endpoint) as channel:
        method = channel.stream_stream("/etcdserverpb.Lease/LeaseKeepAlive")
        renewal = pb.LeaseKeepAliveRequest(ID=lease).SerializeToString()
        metadata = (("token", token_of(member.endpoint, "root")),)
        assert len(list(method(iter([renewal] * 5), timeout=60, metadata=metadata))) == 5
    await_line(log, of("LeaseKeepAlive", stage="end", code="OK"))
    renewed = [line for line in lines(log) if of("LeaseKeepAlive", stage="message")(line)]
    assert [line["request"]["ID"] for line in renewed] == [lease]


def test_no_value_was_written(member: Process, log: Path) -> None:
    with client_of(member, "root") as root:
        root.put("last", VALUE)
    await_line(log, lambda line: line.get("request") == {"key": "last"})
    assert "s3cret" not in log.read_text()


# The name in a certificate


def test_the_name_in_a_certificate_is_recorded(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.issue("server")
    alice = authority.issue("alice")
    log = tmp_path / "audit.log"
    running = Cluster(
        tmp_path,
        1,
        *("--cert-file", str(certificate), "--key-file", str(key), "--trusted-ca-file", str(authority.file)),
        *("--client-cert-auth", "--audit-log", str(log)),
    )
    [member] = running.members
    member.arguments = [
        argument.replace("http://", "https://") if member.endpoint in argument else argument
        for argument in member.arguments
    ]
    tls = ClientTls(ca=authority.file, certificate=alice[0], key=alice[1])
    try:
        member.start()
        deadline = time.monotonic() + START_SECONDS
        with Client(f"https://{member.endpoint}", tls=tls) as client:
            while True:
                try:
                    client.put("k", VALUE)
                    break
                except ClientError:
                    assert time.monotonic() < deadline, member.log()
        line = await_line(log, of("Put", code="OK"))
        assert line["certificate"] == "alice"
        assert "user" not in line, "callers need not be users yet"
    finally:
        running.kill()


# Rotation


def test_the_file_rotates_at_its_size_and_no_line_is_lost_before_the_last_backup_goes(tmp_path: Path) -> None:
    log, max_bytes, backups, batch = tmp_path / "audit.log", 6000, 3, 10
    flags = ("--audit-log-max-bytes", str(max_bytes), "--audit-log-backups", str(backups))
    files = [tmp_path / f"audit.log.{number}" for number in range(backups, 0, -1)] + [log]

    def keys() -> list[str]:
        """What is in the files, while none of them is being renamed."""
        found = [line.get("request", {}).get("key", "") for file in files for line in lines(file)]
        return [key for key in found if key.startswith("rotated/")]

    with cluster(tmp_path, 1, "--audit-log", str(log), *flags) as running, client_of(running) as client:
        written: list[str] = []

        def written_last() -> bool:
            with contextlib.suppress(FileNotFoundError):
                return keys()[-1:] == written[-1:]
            return False

        def write() -> None:
            # No more than a batch waits for the thread that writes: it is one piece of the file at most.
            written.extend(f"rotated/{len(written) + number:04}" for number in range(batch))
            for key in written[-batch:]:
                client.put(key, VALUE)
            deadline = time.monotonic() + START_SECONDS
            while not written_last():
                assert time.monotonic() < deadline, written[-1]
                time.sleep(0.02)

        while not files[0].exists():
            write()
            assert len(written) < 1000, "it has not rotated"
            assert keys() == written, "every line is in one of the files, in order"
        while keys() == written:
            write()
            assert len(written) < 1000, "the oldest is kept"
    kept = keys()
    assert kept == written[-len(kept) :], "only the oldest are gone"
    assert sorted(tmp_path.glob("audit.log*")) == sorted(files)
    longest = max(len(line) for file in files for line in file.read_text().splitlines()) + 1
    for file in files[:-1]:
        assert max_bytes - batch * longest < file.stat().st_size <= max_bytes, file


# A disk that is full


def put_problem(client: Client, key: str) -> str | None:
    try:
        client.put(key, "x")
    except ClientError as error:
        return str(error)
    return None


def replace(path: Path, target: Path | str) -> None:
    """Let a name stand for another file, in one step."""
    aside = path.with_name("aside")
    aside.symlink_to(target)
    aside.rename(path)


def test_a_full_disk_refuses_what_it_cannot_record_and_recovers(tmp_path: Path) -> None:
    target = tmp_path / "audit.log"
    with cluster(tmp_path, 1, "--audit-log", str(target)) as running, client_of(running) as client:
        [member] = running.members
        # Nothing waits to be written when the disk becomes full: the first put is begun.
        await_line(target, lambda line: line["request"] == {"key": "ready"} and line["code"] == "OK")
        replace(target, "/dev/full")
        # What is begun before the disk is found full is done, and its line is kept.
        done = 0
        deadline = time.monotonic() + START_SECONDS
        while (problem := put_problem(client, f"k{done}")) is None:
            assert time.monotonic() < deadline, "it goes on without an audit log"
            done += 1
        assert "the audit log cannot be written" in problem
        with urllib.request.urlopen(f"http://{member.endpoint}/livez", timeout=60) as answer:
            assert answer.status == 200
        replace(target, tmp_path / "disk")
        deadline = time.monotonic() + START_SECONDS
        while put_problem(client, "recorded") is not None:
            assert time.monotonic() < deadline, member.log()
            time.sleep(0.05)
        await_line(target, lambda line: line.get("request") == {"key": "recorded"})
        assert any(line.get("event") == "gap" and line["refused"] for line in lines(target))
        assert client.get(f"k{done}") is None
        told = [line.get("request", {}).get("key") for line in lines(target)]
        assert done
        assert set(told) >= {f"k{number}" for number in range(done)}, "what was done is told"


def test_a_file_that_cannot_be_written_is_refused_at_start(tmp_path: Path) -> None:
    running = Cluster(tmp_path, 1, "--audit-log", str(tmp_path / "none" / "audit.log"))
    [member] = running.members
    member.start()
    try:
        assert member.wait() == 1
        assert "--audit-log: cannot write" in member.log()
        assert not (member.data / "wal").exists(), "a start that was refused has written nothing"
    finally:
        running.kill()
