"""No password, token or value is in a log line, the audit log or a metric, whatever is asked and however it fails."""

import base64
import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.message import Message

from raftkv.api.access import RULES
from raftkv.api.audit import AUDITED
from raftkv.api.naming import request_type
from raftkv.gateway.routes import routes
from raftkv.pb import rpc_pb2 as pb
from tests.cluster.test_auth import CHEAP, call, client_of, set_up, token_of
from tests.support.processes import Process, cluster, wait_log
from tests.support.secrets import secret_in
from tests.unit.audit.test_naming import fill

SECRET = "s3cret"
HARMFUL = {"AuthDisable", "AuthEnable", "UserDelete", "Defragment", "MoveLeader", "MemberAdd", "MemberRemove", "Alarm"}
"""Called without a token only: what comes after needs the member as it is."""
PATHS = sorted(path for path in RULES if path.startswith(AUDITED))


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A member that logs all it can: each request counts as slow."""
    directory = tmp_path_factory.mktemp("secrets")
    flags = ("--log-level", "debug", "--warning-apply-duration", "0s", "--metrics", "extensive", "--enable-pprof")
    with cluster(directory, 1, *CHEAP, *flags, "--audit-log", str(directory / "audit.log")) as running:
        with client_of(running) as client:
            set_up(client)
        yield running.members[0]


def filled(path: str) -> Message:
    message = request_type(path)()
    fill(message)
    return message


def told(member: Process) -> dict[str, str]:
    """All that a member tells about what it was asked."""
    pages = {"log": member.log(), "audit log": (member.directory / "audit.log").read_text()}
    for page in ("metrics", "debug/stacks", "health?verbose", "version"):
        with urllib.request.urlopen(f"http://{member.endpoint}/{page}", timeout=60) as answer:
            pages[page] = answer.read().decode()
    return pages


def check(member: Process) -> None:
    for name, text in told(member).items():
        assert secret_in(text) is None, name


def test_what_is_asked_of_every_rpc(member: Process) -> None:
    """Whole, cut anywhere, and with a token that is none."""
    root = token_of(member.endpoint, "root")
    for path in PATHS:
        request = filled(path).SerializeToString()
        tokens = ["", f"{SECRET}-token"] if path.rpartition("/")[2] in HARMFUL else ["", f"{SECRET}-token", root]
        for token in tokens:
            # Some would wait for ever.
            call(member.endpoint, path, token, request, seconds=10.0)
            call(member.endpoint, path, token, request[:-1], seconds=10.0)
    with client_of(member, "root") as client:
        client.put("key", SECRET)
        client.put("key", SECRET * 1000)
        lease = client.lease_grant(100).ID
        client.put("leased", SECRET, lease=lease)
    wait_log(member, "took too long")
    check(member)


def test_what_is_asked_as_json(member: Process) -> None:
    root = token_of(member.endpoint, "root")
    for path, route in routes().items():
        if route.call.rpartition("/")[2] in HARMFUL:
            continue
        for body in (b'{"value": "%s"' % SECRET.encode(), b'{"password": {"%s": 1}}' % SECRET.encode()):
            for token in (root, f"Bearer {SECRET}"):
                request = urllib.request.Request(f"http://{member.endpoint}{path}", body, {"Authorization": token})
                with contextlib.suppress(urllib.error.URLError, TimeoutError):
                    urllib.request.urlopen(request, timeout=0.5).close()
    value = base64.b64encode(SECRET.encode()).decode()
    body = json.dumps({"key": value[:4], "value": value}).encode()
    request = urllib.request.Request(f"http://{member.endpoint}/v3/kv/put", body, {"Authorization": root})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200
    check(member)
    assert value not in "".join(told(member).values())


def test_what_is_no_request_at_all(member: Process) -> None:
    with grpc.insecure_channel(member.endpoint) as channel:
        for path in ("/etcdserverpb.KV/Put", f"/{SECRET}/{SECRET}", f"/etcdserverpb.KV/{SECRET}"):
            metadata = ((f"{SECRET}-bin", SECRET.encode()), ("token", SECRET))
            with pytest.raises(grpc.RpcError):
                channel.unary_unary(path)(b"\xff" + SECRET.encode(), metadata=metadata, timeout=60)
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"http://{member.endpoint}/{SECRET}?token={SECRET}", timeout=60)
    check(member)


def test_tokens_and_passwords_that_are_right(member: Process) -> None:
    """They are secrets as much as the wrong ones."""
    tokens = [token_of(member.endpoint, user) for user in ("ann", "root")]
    for token in tokens:
        call(member.endpoint, "/etcdserverpb.KV/Range", token, pb.RangeRequest(key=b"/ann/a").SerializeToString())
    text = "".join(told(member).values())
    assert not [token for token in tokens if token in text]
    check(member)


@pytest.mark.parametrize(
    "line",
    [
        "put value='s3cret'",
        "-----BEGIN PRIVATE KEY-----",
        "token abcdefghijklmnop.17 is new",
        "eyJhbGciOiJIUzI1NiJ9.eyJ1c2VyIjoiYSJ9.c2ln",
        "hash $2b$04$abc",
    ],
)
def test_the_check_finds_what_it_looks_for(line: str) -> None:
    assert secret_in(f"harmless\n{line}\n") == line
    assert secret_in("2026-01-01T00:00:00Z info  server: leader 8e9e05c52164694d of term 2; etcd API 3.6.1") is None
