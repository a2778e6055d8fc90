"""Limits of a real member: callers who ask too much are refused, and others are not."""

import asyncio
import contextlib
import json
import queue
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from raftkv.client import Client, ClientError, Refused
from raftkv.http import frames
from raftkv.pb import peer_pb2, v3lock_pb2
from raftkv.pb import rpc_pb2 as pb
from raftkv.peer import joining
from raftkv.peer.asking import Asking
from raftkv.peer.dial import Dial
from raftkv.status import Code
from tests.cluster.test_audit import await_line, lines, of
from tests.cluster.test_auth import CHEAP, PASSWORD, call, client_of, set_up, token_of
from tests.support.processes import START_SECONDS, Cluster, Process, cluster

CHANNEL = [("grpc.max_send_message_length", -1)]
NEVER = 1e-6
"""A second call of this rate comes in days: what follows is decided by counting, not by time."""
RATES = f"*/Put={NEVER}:3,root/Put=1000000,ann/Range={NEVER}:2,*/LeaseKeepAlive={NEVER}:2,*/Watch={NEVER}:1"


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with cluster(tmp_path_factory.mktemp("limits"), 1, *CHEAP, "--rate-limit", RATES) as running:
        with client_of(running) as client:
            set_up(client)
        yield running.members[0]


def refused(client: Client, key: str) -> str:
    try:
        client.put(key, "x")
    except ClientError as error:
        return str(error)
    return ""


def test_a_user_who_asks_too_much_is_refused_and_others_are_not(member: Process) -> None:
    with client_of(member, "ann") as ann, client_of(member, "root") as root:
        assert [bool(refused(ann, "/ann/a")) for _ in range(5)] == [False] * 3 + [True] * 2
        assert "rate limit exceeded: calls of Put of ann are limited to 1e-06 a second" in refused(ann, "/ann/a")
        assert root.get("/ann/a") is not None
        for _ in range(20):
            root.put("a", "x")
        assert ann.get("/ann/a") is not None, "other methods have their own"
        assert ann.get("/ann/a") is not None
        with pytest.raises(ClientError, match="calls of Range of ann"):
            ann.get("/ann/a")


def test_json_is_limited_like_grpc(member: Process) -> None:
    token = token_of(member.endpoint, "ann")
    with client_of(member, "ann") as ann:
        while not refused(ann, "/ann/a"):
            pass
    request = urllib.request.Request(
        f"http://{member.endpoint}/v3/kv/put", b'{"key":"L2Fubi9h","value":""}', {"Authorization": token}
    )
    with pytest.raises(urllib.error.HTTPError) as problem:
        urllib.request.urlopen(request, timeout=60)
    assert problem.value.code == 429
    assert "rate limit exceeded" in json.load(problem.value)["error"]


def test_each_request_of_a_stream_counts(member: Process) -> None:
    with client_of(member, "root") as root:
        lease = root.lease_grant(1000).ID
    renewal = pb.LeaseKeepAliveRequest(ID=lease).SerializeToString()
    answers = 0
    with grpc.insecure_channel(member.endpoint) as channel:
        method = channel.stream_stream("/etcdserverpb.Lease/LeaseKeepAlive")
        metadata = (("token", token_of(member.endpoint, "root")),)
        with pytest.raises(grpc.RpcError) as problem:  # noqa: PT012
            for _ in method(iter([renewal] * 5), timeout=60, metadata=metadata):
                answers += 1
    assert answers == 2
    assert problem.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
    create = pb.WatchRequest(create_request={"key": b"/ann/"}).SerializeToString()
    token = token_of(member.endpoint, "ann")
    assert call(member.endpoint, "/etcdserverpb.Watch/Watch", token, create)[0] is grpc.StatusCode.OK
    code, text = call(member.endpoint, "/etcdserverpb.Watch/Watch", token, create)
    assert (code, "calls of Watch of ann" in text) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)


def test_guesses_of_who_has_no_name_yet_run_out(tmp_path: Path) -> None:
    """Passwords cannot be tried for ever."""
    rate = f"*/Authenticate={NEVER}:6"
    with cluster(tmp_path, 1, *CHEAP, "--rate-limit", rate) as running:
        with client_of(running) as client:
            set_up(client)
        [member] = running.members
        codes = []
        for _ in range(8):
            guess = pb.AuthenticateRequest(name="ann", password="s3cret").SerializeToString()
            codes.append(call(member.endpoint, "/etcdserverpb.Auth/Authenticate", "", guess)[0])
        wrong, late = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED
        assert codes == [wrong] * 6 + [late] * 2
        with Client(member.endpoint, user="ann", password=PASSWORD) as ann, pytest.raises(ClientError):
            ann.get("/ann/a")


@pytest.mark.parametrize(
    ("rate", "problem"),
    [("*/Putt=5", "there is no method Putt"), ("ann", "is not of the form USER[/METHOD]=RATE[:BURST]")],
)
def test_a_rule_that_cannot_be_meant_is_refused_at_start(tmp_path: Path, rate: str, problem: str) -> None:
    running = Cluster(tmp_path, 1, "--rate-limit", rate)
    [member] = running.members
    member.start()
    with contextlib.ExitStack() as stack:
        stack.callback(running.kill)
        assert member.wait() == 1
        assert problem in member.log()
        assert len(member.log().splitlines()) == 1


def gauge(member: Process, name: str) -> float:
    with urllib.request.urlopen(f"http://{member.endpoint}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def test_calls_that_stay_open_and_watchers_are_bounded_by_the_flags(tmp_path: Path) -> None:
    with cluster(tmp_path, 1, "--max-streams", "8", "--max-watch-bytes", "20000") as running:
        [member] = running.members
        with contextlib.ExitStack() as opened:
            channel = opened.enter_context(grpc.insecure_channel(member.endpoint))
            watch = channel.stream_stream("/etcdserverpb.Watch/Watch")
            renew = channel.stream_stream("/etcdserverpb.Lease/LeaseKeepAlive")
            asked: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
            watches = [watch(iter(asked.get, None), timeout=120)]
            opened.callback(asked.put, None)
            create = pb.WatchRequest(create_request={"key": b"k" * 1000}).SerializeToString()
            reasons = []
            while not reasons or not reasons[-1]:
                asked.put(create)
                reasons.append(pb.WatchResponse.FromString(next(watches[0])).cancel_reason)
            # A key of 1,000 bytes counts twice, with 1 KiB for all else.
            assert len(reasons) in (7, 8)
            assert "ResourceExhausted" in reasons[-1]
            assert 20000 <= gauge(member, "raftkv_watch_bytes") < 24000
            # Streams that say nothing.
            silent: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
            while gauge(member, "raftkv_client_streams") < 8:
                watches.append(watch(iter(silent.get, None), timeout=120))
                opened.callback(silent.put, None)
                time.sleep(0.05)
            with pytest.raises(grpc.RpcError) as problem:
                next(watch(iter([create]), timeout=60))
            assert problem.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
            # Renewals have some room above, and calls that are no streams are served.
            with Client(member.endpoint) as client:
                lease = client.lease_grant(1000).ID
            assert next(renew(iter([pb.LeaseKeepAliveRequest(ID=lease).SerializeToString()]), timeout=60))
        deadline = time.monotonic() + START_SECONDS
        while gauge(member, "raftkv_client_streams") or gauge(member, "raftkv_watch_bytes"):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_while_watchers_hold_all_they_may_locks_wait_and_who_is_refused_is_told(tmp_path: Path) -> None:
    audit = tmp_path / "audit.log"
    with (
        cluster(tmp_path, 1, "--max-watch-bytes", "1000", "--audit-log", str(audit)) as running,
        running.client() as client,
    ):
        [member] = running.members
        with client.watch("k") as watch, grpc.insecure_channel(member.endpoint) as channel:
            watch.ready()
            with pytest.raises(Refused, match="as much memory as they may") as caught, client.watch("more") as more:
                more.ready()
            assert caught.value.code is Code.RESOURCE_EXHAUSTED
            assert gauge(member, "raftkv_refused_calls_total") == 1
            await_line(audit, of("Watch", stage="message", code="ResourceExhausted"))
            assert len([line for line in lines(audit) if of("Watch", stage="message", code="OK")(line)]) == 1
            lock = channel.unary_unary("/v3lockpb.Lock/Lock", v3lock_pb2.LockRequest.SerializeToString)
            keys = []
            waiting = []
            for number in range(2):
                request = v3lock_pb2.LockRequest(name=b"n", lease=client.lease_grant(1000).ID)
                waiting.append(lock.future(request, timeout=120))
                deadline = time.monotonic() + START_SECONDS
                while len(keys := client.range("n/", prefix=True).kvs) <= number:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            with urllib.request.urlopen(f"http://{member.endpoint}/health", timeout=60) as answer:
                assert b"true" in answer.read()
            waiting[0].result()
            assert not waiting[1].done()
            client.delete(min(keys, key=lambda kv: kv.create_revision).key)
            waiting[1].result()
            client.put("k", "told")
            assert next(watch).events[0].kv.value == b"told"


def answers_to_pings(endpoint: str, count: int) -> bytes:
    """What a listener says to so many pings, and nothing else, up to the last answer or its end."""
    host, _, port = endpoint.rpartition(":")
    ping = frames.frame(frames.PING, 0, 0, b"12345678")
    answer = frames.frame(frames.PING, frames.ACK, 0, b"12345678")
    found = b""
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(frames.PREFACE + frames.settings([]) + ping * count)
        while found.count(answer) < count and (piece := connection.recv(1 << 16)):
            found += piece
    return found


def test_who_floods_a_member_with_pings_is_told_to_be_calm_and_other_members_never_are(member: Process) -> None:
    """By the defaults, frame by frame: three pings are answered, and the fourth is one too many."""
    assert b"too_many_pings" not in answers_to_pings(member.endpoint, 3)
    found = answers_to_pings(member.endpoint, 4)
    calm = frames.goaway(0, frames.ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")
    assert found.count(frames.frame(frames.PING, frames.ACK, 0, b"12345678")) == 3
    assert found.endswith(calm)
    assert b"too_many_pings" not in answers_to_pings(member.peer_url.removeprefix("http://"), 1000)


PEER_CALLS = [
    "Introduce",
    "Members",
    "ChangeMembers",
    "LeaseRenew",
    "LeaseTimeToLive",
    "HashKV",
    "Messages",
    "Snapshot",
]


@pytest.mark.parametrize("name", PEER_CALLS)
def test_ghsa_6vch_q96h_7gc3_a_body_on_the_peer_port_is_bounded(name: str, member: Process) -> None:
    """It is refused by what it says of its length, before it is kept; a stream before anything of it is read."""
    most = member.most_resident_bytes()
    with grpc.insecure_channel(member.peer_url.removeprefix("http://"), CHANNEL) as channel:
        ask = channel.stream_unary(f"/raftkvpb.Peer/{name}")
        with pytest.raises(grpc.RpcError) as refusal:
            ask(iter([bytes(128 << 20)]), timeout=60)
    stream = name in ("Messages", "Snapshot")
    assert refusal.value.code() is (
        grpc.StatusCode.FAILED_PRECONDITION if stream else grpc.StatusCode.RESOURCE_EXHAUSTED
    ), refusal.value
    assert member.most_resident_bytes() - most < 48 << 20
    with client_of(member, "root") as root:
        root.put("a", "x")


def hold_questions_open(member: Process, opened: contextlib.ExitStack) -> None:
    """Begin so many questions on the peer port, none of which ends, that further ones are refused."""
    host, _, port = member.peer_url.removeprefix("http://").rpartition(":")
    stranger = opened.enter_context(socket.create_connection((host, int(port)), timeout=60))
    fields = {":method": "POST", ":scheme": "http", ":path": joining.MEMBERS, ":authority": "x"}
    fields |= {"content-type": "application/grpc", "te": "trailers"}
    block = frames.header_block(tuple((name.encode(), value.encode()) for name, value in fields.items()))
    begun = b"".join(frames.header_frames(block, 2 * number + 1, 0) for number in range(6000))
    stranger.sendall(frames.PREFACE + frames.settings([]) + begun)
    found = b""
    while b"too many calls are open" not in found:
        data = stranger.recv(1 << 16)
        assert data
        found = found[-100:] + data


def why_refused(member: Process, name: str) -> grpc.StatusCode:
    """What a stream on the peer port ends with that no member begins."""
    target = member.peer_url.removeprefix("http://")
    with grpc.insecure_channel(target) as channel, pytest.raises(grpc.RpcError) as refusal:
        channel.stream_unary(f"/raftkvpb.Peer/{name}")(iter([]), timeout=60)
    code: grpc.StatusCode = refusal.value.code()
    return code


def test_bodies_on_the_peer_port_are_bounded_over_all_connections(tmp_path: Path) -> None:
    """A hundred that nearly end, from as many connections, are 400 MiB together, before it is known who asks.

    What may be held is a multiple of one of them: it is filled to the last byte.
    """
    fields = {":method": "POST", ":scheme": "http", ":path": joining.MEMBERS, ":authority": "x"}
    fields |= {"content-type": "application/grpc", "te": "trailers"}
    block = frames.header_block(tuple((name.encode(), value.encode()) for name, value in fields.items()))
    body = b"\0" + (4 << 20).to_bytes(4, "big") + bytes((4 << 20) - 5)
    pieces = [body[start : start + frames.FRAME_BYTES] for start in range(0, len(body), frames.FRAME_BYTES)]
    asked = frames.PREFACE + frames.settings([]) + frames.header_frames(block, 1, 0)
    asked += b"".join(frames.frame(frames.DATA, 0, 1, piece) for piece in pieces)

    async def ask(url: str) -> bytes:
        asking = Asking(Dial())
        try:
            return await asking.ask(url, joining.MEMBERS, b"", timeout=60)
        finally:
            asking.close()

    with cluster(tmp_path, 2) as running, contextlib.ExitStack() as opened:
        first, second = running.members
        before = first.most_resident_bytes()
        host, _, port = first.peer_url.removeprefix("http://").rpartition(":")
        for _ in range(100):
            stranger = opened.enter_context(socket.create_connection((host, int(port)), timeout=60))
            with contextlib.suppress(ConnectionError):
                stranger.sendall(asked)
        hold_questions_open(first, opened)
        for name in ("Messages", "Snapshot"):
            assert why_refused(first, name) is grpc.StatusCode.FAILED_PRECONDITION, (
                "who it is decides, not how many are open"
            )
        assert peer_pb2.KnownMembers.FromString(asyncio.run(ask(first.peer_url))).cluster_id
        # Members of the cluster come in all the same, and their messages are taken.
        second.kill()
        second.start()
        running.wait_ready(second)
        with second.client() as client:
            client.put("a", "x")
        assert first.most_resident_bytes() - before < 200 << 20
