"""No password, token or value is in a log line, the audit log or a metric, whatever is asked and however it fails."""

import base64
import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.text_encoding import CEscape
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raftkv.api.access import RULES
from raftkv.api.audit import AUDITED
from raftkv.api.naming import request_type
from raftkv.client import ClientError, access
from raftkv.client import requests as rpcs
from raftkv.gateway.routes import routes
from raftkv.pb import rpc_pb2 as pb
from tests.cli.zygote import raftctl
from tests.cluster.test_auth import CHEAP, call, client_of, set_up, token_of
from tests.support.processes import Process, cluster, wait_log
from tests.support.secrets import keep, secret_in
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


PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=6, max_size=24)
DRAWN = {
    "password": PRINTABLE | st.text(min_size=6, max_size=24),
    "token": PRINTABLE,
    "value": st.binary(min_size=6, max_size=64) | PRINTABLE.map(str.encode),
}
FRAME = "Zq", "9Kw"
"""Around what is drawn, which alone may be as common as 000000."""


def forms(secret: str | bytes) -> set[str]:
    """How a secret might look where it must not be."""
    data = secret.encode("utf-8", "surrogatepass") if isinstance(secret, str) else secret
    text = data.decode("utf-8", "replace")
    plain = base64.b64encode(data).decode().rstrip("=")
    safe = base64.urlsafe_b64encode(data).decode().rstrip("=")
    escaped = {repr(data)[2:-1], repr(text)[1:-1], json.dumps(text)[1:-1], CEscape(data, False)}
    return {text, plain, safe, data.hex(), quote(data), *escaped}


class Drawn:
    """What was drawn in a test, and what members told since."""

    def __init__(self, member: Process) -> None:
        self.member = member
        self.forms: set[str] = set()

    def add(self, *secrets: str | bytes) -> None:
        for secret in secrets:
            self.forms |= forms(secret)

    def check(self, where: str, text: str) -> None:
        assert not [form for form in self.forms if form in text], where
        assert secret_in(text) is None, where


def framed(secret: str | bytes) -> str | bytes:
    before, after = FRAME
    return before + secret + after if isinstance(secret, str) else before.encode() + secret + after.encode()


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    path=st.sampled_from([path for path in PATHS if path.rpartition("/")[2] not in HARMFUL]),
    secrets=st.fixed_dictionaries(DRAWN),
    cut=st.integers(0, 200),
    number=st.integers(0, 1 << 60),
)
def test_what_is_drawn_at_random_is_told_by_nothing(
    member: Process, path: str, secrets: dict[str, Any], cut: int, number: int
) -> None:
    """Any call, whole and cut off, with and without a right token; users come, log in and are refused."""
    secret = {name: framed(drawn) for name, drawn in secrets.items()}
    drawn = Drawn(member)
    drawn.add(*secret.values())
    password, token, value = (secret[name] for name in DRAWN)
    assert isinstance(password, str)
    assert isinstance(token, str)
    said: list[str] = []
    root = token_of(member.endpoint, "root")
    request = request_type(path)()
    fill(request, password)
    data = request.SerializeToString()
    for given_token, message in ((token, data), (root, data[:cut]), ("", data), (root, data)):
        said.append(call(member.endpoint, path, given_token, message, seconds=0.5)[1])
    with client_of(member, "root") as client:
        client.put("drawn", value)
        client.get("drawn")
        compare = [pb.Compare(key=b"drawn", target=pb.Compare.VALUE, value=value)]  # type: ignore[arg-type]
        put = pb.RequestOp(request_put=pb.PutRequest(key=b"drawn", value=value, lease=5))  # type: ignore[arg-type]
        txns = pb.TxnRequest(compare=compare, success=[put]), pb.TxnRequest(success=[put, put])
        said += [call(member.endpoint, "/etcdserverpb.KV/Txn", root, txn.SerializeToString())[1] for txn in txns]
        name = f"drawn-{number}"
        for rpc, asked in (
            (access.USER_ADD, pb.AuthUserAddRequest(name=name, password=password)),
            (access.USER_ADD, pb.AuthUserAddRequest(name=name, password=password)),
            (access.USER_CHANGE_PASSWORD, pb.AuthUserChangePasswordRequest(name=name, password=password + "2")),
            (access.USER_CHANGE_PASSWORD, pb.AuthUserChangePasswordRequest(name=f"no {name}", password=password)),
            (rpcs.AUTHENTICATE, pb.AuthenticateRequest(name=name, password=password)),
            (rpcs.AUTHENTICATE, pb.AuthenticateRequest(name=name, password=password + "2")),
            (access.USER_DELETE, pb.AuthUserDeleteRequest(name=name)),
        ):
            try:
                answer = client.call(rpc, asked)
            except ClientError as error:
                said.append(str(error))
            else:
                if isinstance(answer, pb.AuthenticateResponse):
                    drawn.add(answer.token)
    said += as_json(member, password, token, value)
    said.append(by_raftctl(member, token))
    drawn.check("an error", "\n".join(said))
    for where, text in told(member).items():
        drawn.check(where, text)


def by_raftctl(member: Process, password: str) -> str:
    """What raftctl says besides its answers when it tells all it can, and is refused."""
    keep(password)
    flags = ("--debug", "--endpoints", member.endpoint, "--user=root", f"--password={password}")
    return raftctl(*flags, "put", "key", password).stderr + raftctl(*flags, "user", "add", f"x:{password}").stderr


def as_json(member: Process, password: str, token: str, value: Any) -> list[str]:
    """What is said to requests as JSON that cannot succeed."""
    said = []
    encoded = base64.b64encode(value).decode()
    for path, body in (
        ("/v3/kv/put", {"key": "a2V5", "value": encoded}),
        ("/v3/kv/put", {"key": "a2V5", "value": encoded, "lease": 7}),
        ("/v3/kv/put", {"key": "a2V5", "value": password}),
        ("/v3/kv/put", {"key": "a2V5", "value": [encoded]}),
        ("/v3/auth/authenticate", {"name": "nobody", "password": password}),
        ("/v3/auth/authenticate", {"name": "root", "password": {password: 1}}),
        ("/v3/auth/user/add", {"name": "nobody", "password": [password]}),
    ):
        for header in (token, f"Bearer {token}"):
            request = urllib.request.Request(
                f"http://{member.endpoint}{path}", json.dumps(body).encode(), {"Authorization": header}
            )
            try:
                urllib.request.urlopen(request, timeout=60).close()
            except urllib.error.HTTPError as error:
                said.append(error.read().decode())
    return said


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
