"""Each call of the API in the audit log: who did what to which keys, at which revision, and how it ended.

One test for each RPC of the table of rules: one that is new fails here until it is told what is recorded of it.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from raftkv.api.access import RULES, Rule
from raftkv.api.audit import AUDITED
from raftkv.client.secure import ClientTls
from raftkv.pb import auth_pb2
from raftkv.pb import rpc_pb2 as pb
from raftkv.pb import v3election_pb2 as election
from raftkv.pb import v3lock_pb2 as lock
from raftkv.status import GO_NAMES, Code
from tests.cluster.test_audit import await_line, lines
from tests.cluster.test_auth import CHEAP, PASSWORD, set_up
from tests.support.certificates import Authority
from tests.support.processes import Cluster

VALUE = b"s3cret-value"
KV, LEASE, AUTH = "/etcdserverpb.KV/", "/etcdserverpb.Lease/", "/etcdserverpb.Auth/"
CLUSTER, MAINTENANCE = "/etcdserverpb.Cluster/", "/etcdserverpb.Maintenance/"
LOCK, ELECTION = "/v3lockpb.Lock/", "/v3electionpb.Election/"
READ = auth_pb2.Permission.READ
LEARNER = "http://127.0.0.1:1"


class Asked(NamedTuple):
    """A call."""

    path: str
    request: Message


@dataclass(frozen=True)
class Case:
    """A request, what of it is recorded, and what has to be there before and must not be there after."""

    request: Message | Callable[[Any], Message]
    """It may follow from the answer to what was asked last before."""
    told: dict[str, Any] | Callable[[Any], dict[str, Any]]
    before: Sequence[Asked] = ()
    after: Callable[[Any], Asked] | None = None
    code: str = "OK"


def user(name: str) -> Asked:
    return Asked(AUTH + "UserAdd", pb.AuthUserAddRequest(name=name, password=PASSWORD))


def role(name: str) -> Asked:
    return Asked(AUTH + "RoleAdd", pb.AuthRoleAddRequest(name=name))


def lease(number: int) -> Asked:
    return Asked(LEASE + "LeaseGrant", pb.LeaseGrantRequest(ID=number, TTL=1000))


def put(key: bytes) -> Asked:
    return Asked(KV + "Put", pb.PutRequest(key=key, value=VALUE))


def given(name: str, to: str) -> Asked:
    return Asked(AUTH + "UserGrantRole", pb.AuthUserGrantRoleRequest(user=to, role=name))


def learner() -> Asked:
    return Asked(CLUSTER + "MemberAdd", pb.MemberAddRequest(peerURLs=[LEARNER], isLearner=True))


def removed(added: pb.MemberAddResponse) -> Asked:
    return Asked(CLUSTER + "MemberRemove", pb.MemberRemoveRequest(ID=added.member.ID))


def leading(name: bytes, number: int) -> Sequence[Asked]:
    """Who leads by a lease; the key is called after both."""
    return [lease(number), Asked(ELECTION + "Campaign", election.CampaignRequest(name=name, lease=number, value=VALUE))]


def permitted(name: str) -> pb.AuthRoleGrantPermissionRequest:
    permission = auth_pb2.Permission(permType=READ, key=b"p", range_end=b"q")
    return pb.AuthRoleGrantPermissionRequest(name=name, perm=permission)


TXN = pb.TxnRequest(
    compare=[pb.Compare(key=b"audit/t", target=pb.Compare.VALUE, value=VALUE)],
    success=[pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"audit/gone"))],
    failure=[pb.RequestOp(request_put=pb.PutRequest(key=b"audit/t", value=VALUE))],
)
TOLD_TXN = {
    "compare": [{"key": "audit/t"}],
    "success": [{"request_delete_range": {"key": "audit/gone"}}],
    "failure": [{"request_put": {"key": "audit/t"}}],
}
PERMISSION = {"permType": "READ", "key": "p", "range_end": "q"}

CHANGES: dict[str, Case] = {
    KV + "Put": Case(pb.PutRequest(key=b"audit/a", value=VALUE), {"key": "audit/a"}),
    KV + "DeleteRange": Case(
        pb.DeleteRangeRequest(key=b"audit/d", range_end=b"audit/e", prev_kv=True),
        {"key": "audit/d", "range_end": "audit/e", "prev_kv": True},
        before=[put(b"audit/d")],
    ),
    KV + "Txn": Case(TXN, TOLD_TXN),
    KV + "Compact": Case(
        pb.CompactionRequest(revision=2, physical=True), {"revision": 2, "physical": True}, before=[put(b"audit/k")]
    ),
    LEASE + "LeaseGrant": Case(pb.LeaseGrantRequest(ID=101, TTL=1000), {"ID": 101, "TTL": 1000}),
    LEASE + "LeaseRevoke": Case(pb.LeaseRevokeRequest(ID=102), {"ID": 102}, before=[lease(102)]),
    LEASE + "LeaseKeepAlive": Case(pb.LeaseKeepAliveRequest(ID=103), {"ID": 103}, before=[lease(103)]),
    LOCK + "Lock": Case(lock.LockRequest(name=b"audit/l", lease=104), {"name": "audit/l", "lease": 104}, [lease(104)]),
    LOCK + "Unlock": Case(lock.UnlockRequest(key=b"audit/u"), {"key": "audit/u"}, before=[put(b"audit/u")]),
    ELECTION + "Campaign": Case(
        election.CampaignRequest(name=b"audit/c", lease=105, value=VALUE),
        {"name": "audit/c", "lease": 105},
        [lease(105)],
    ),
    ELECTION + "Proclaim": Case(
        lambda led: election.ProclaimRequest(leader=led.leader, value=VALUE),
        {"leader": {"name": "audit/p", "key": "audit/p/6c", "lease": 108}},
        before=leading(b"audit/p", 108),
    ),
    ELECTION + "Resign": Case(
        lambda led: election.ResignRequest(leader=led.leader),
        {"leader": {"name": "audit/r", "key": "audit/r/6d", "lease": 109}},
        before=leading(b"audit/r", 109),
    ),
    CLUSTER + "MemberAdd": Case(learner().request, {"peerURLs": [LEARNER], "isLearner": True}, after=removed),
    CLUSTER + "MemberUpdate": Case(
        lambda added: pb.MemberUpdateRequest(ID=added.member.ID, peerURLs=[LEARNER + "1"]),
        lambda added: {"ID": added.member.ID, "peerURLs": [LEARNER + "1"]},
        before=[learner()],
        after=removed,
    ),
    CLUSTER + "MemberPromote": Case(
        lambda added: pb.MemberPromoteRequest(ID=added.member.ID),
        lambda added: {"ID": added.member.ID},
        before=[learner()],
        after=removed,
        code="FailedPrecondition",
    ),
    CLUSTER + "MemberRemove": Case(
        lambda added: removed(added).request, lambda added: {"ID": added.member.ID}, before=[learner()]
    ),
    MAINTENANCE + "Alarm": Case(
        pb.AlarmRequest(action=pb.AlarmRequest.DEACTIVATE, alarm=pb.NOSPACE),
        {"action": "DEACTIVATE", "alarm": "NOSPACE"},
    ),
    MAINTENANCE + "Defragment": Case(pb.DefragmentRequest(), {}),
    MAINTENANCE + "Downgrade": Case(
        pb.DowngradeRequest(action=pb.DowngradeRequest.CANCEL), {"action": "CANCEL"}, code="FailedPrecondition"
    ),
    MAINTENANCE + "MoveLeader": Case(pb.MoveLeaderRequest(targetID=7), {"targetID": 7}, code="FailedPrecondition"),
    AUTH + "Authenticate": Case(pb.AuthenticateRequest(name="root", password=PASSWORD), {"name": "root"}),
    AUTH + "AuthEnable": Case(pb.AuthEnableRequest(), {}),
    AUTH + "AuthDisable": Case(
        pb.AuthDisableRequest(), {}, after=lambda _: Asked(AUTH + "AuthEnable", pb.AuthEnableRequest())
    ),
    AUTH + "UserAdd": Case(pb.AuthUserAddRequest(name="u1", password=PASSWORD), {"name": "u1"}),
    AUTH + "UserDelete": Case(pb.AuthUserDeleteRequest(name="u2"), {"name": "u2"}, before=[user("u2")]),
    AUTH + "UserChangePassword": Case(
        pb.AuthUserChangePasswordRequest(name="u3", password="s3cret-new"), {"name": "u3"}, before=[user("u3")]
    ),
    AUTH + "UserGrantRole": Case(
        pb.AuthUserGrantRoleRequest(user="u4", role="r4"), {"user": "u4", "role": "r4"}, before=[user("u4"), role("r4")]
    ),
    AUTH + "UserRevokeRole": Case(
        pb.AuthUserRevokeRoleRequest(name="u5", role="r5"),
        {"name": "u5", "role": "r5"},
        before=[user("u5"), role("r5"), given("r5", to="u5")],
    ),
    AUTH + "RoleAdd": Case(pb.AuthRoleAddRequest(name="r6"), {"name": "r6"}),
    AUTH + "RoleDelete": Case(pb.AuthRoleDeleteRequest(role="r7"), {"role": "r7"}, before=[role("r7")]),
    AUTH + "RoleGrantPermission": Case(permitted("r8"), {"name": "r8", "perm": PERMISSION}, before=[role("r8")]),
    AUTH + "RoleRevokePermission": Case(
        pb.AuthRoleRevokePermissionRequest(role="r9", key=b"p", range_end=b"q"),
        {"role": "r9", "key": "p", "range_end": "q"},
        before=[role("r9"), Asked(AUTH + "RoleGrantPermission", permitted("r9"))],
    ),
}
READS: dict[str, Case] = {
    KV + "Range": Case(pb.RangeRequest(key=b"a", range_end=b"b", limit=5), {"key": "a", "range_end": "b", "limit": 5}),
    KV + "RangeStream": Case(pb.RangeRequest(key=b"a", range_end=b"b"), {"key": "a", "range_end": "b"}),
    "/etcdserverpb.Watch/Watch": Case(
        pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"w", range_end=b"x", start_revision=5)),
        {"create_request": {"key": "w", "range_end": "x", "start_revision": 5}},
    ),
    LEASE + "LeaseTimeToLive": Case(pb.LeaseTimeToLiveRequest(ID=106), {"ID": 106}, before=[lease(106)]),
    LEASE + "LeaseLeases": Case(pb.LeaseLeasesRequest(), {}),
    CLUSTER + "MemberList": Case(pb.MemberListRequest(linearizable=True), {"linearizable": True}),
    MAINTENANCE + "Status": Case(pb.StatusRequest(), {}),
    MAINTENANCE + "Hash": Case(pb.HashRequest(), {}),
    MAINTENANCE + "HashKV": Case(pb.HashKVRequest(revision=0), {}),
    MAINTENANCE + "Snapshot": Case(pb.SnapshotRequest(), {}),
    AUTH + "AuthStatus": Case(pb.AuthStatusRequest(), {}),
    AUTH + "UserGet": Case(pb.AuthUserGetRequest(name="ann"), {"name": "ann"}),
    AUTH + "UserList": Case(pb.AuthUserListRequest(), {}),
    AUTH + "RoleGet": Case(pb.AuthRoleGetRequest(role="r"), {"role": "r"}),
    AUTH + "RoleList": Case(pb.AuthRoleListRequest(), {}),
    ELECTION + "Leader": Case(election.LeaderRequest(name=b"e"), {"name": "e"}, code="Unknown"),
    ELECTION + "Observe": Case(
        election.LeaderRequest(name=b"audit/o"),
        {"name": "audit/o"},
        before=leading(b"audit/o", 107),
    ),
}
CASES = CHANGES | READS


class Member:
    """One member with users, TLS and an audit log, called by root, who shows alice's certificate."""

    def __init__(self, directory: Path, running: Cluster, authority: Authority) -> None:
        [self.process] = running.members
        self.log = directory / "audit.log"
        certificate, key = authority.issue("alice")
        self.tls = ClientTls(ca=authority.file, certificate=certificate, key=key)
        self._credentials = grpc.ssl_channel_credentials(
            authority.file.read_bytes(), key.read_bytes(), certificate.read_bytes()
        )

    def call(self, path: str, request: Message, token: str = "") -> tuple[str, Message | None]:
        """The code that ends a call, and its first answer."""
        service, _, name = path[1:].partition("/")
        method = descriptor_pool.Default().FindServiceByName(service).FindMethodByName(name)
        metadata = (("token", token),) if token else ()
        with grpc.secure_channel(self.process.endpoint, self._credentials) as channel:
            answers = channel.stream_stream(path)(iter([request.SerializeToString()]), timeout=60, metadata=metadata)
            try:
                first = next(answers, b"")
                if name in ("Watch", "Observe"):
                    answers.cancel()
                else:
                    list(answers)
            except grpc.RpcError as error:
                return GO_NAMES[Code(error.code().value[0])], None  # type: ignore[attr-defined]
            return "OK", GetMessageClass(method.output_type).FromString(first)

    def token(self) -> str:
        """Root's."""
        code, answer = self.call(AUTH + "Authenticate", pb.AuthenticateRequest(name="root", password=PASSWORD))
        assert code == "OK", code
        assert isinstance(answer, pb.AuthenticateResponse)
        return answer.token


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Member]:
    directory = tmp_path_factory.mktemp("calls")
    authority = Authority(directory / "ca")
    certificate, key = authority.issue("server")
    files = ("--cert-file", str(certificate), "--key-file", str(key), "--trusted-ca-file", str(authority.file))
    running = Cluster(directory, 1, *CHEAP, *files, "--client-cert-auth", "--audit-log", str(directory / "audit.log"))
    made = Member(directory, running, authority)
    for flag in ("--listen-client-urls", "--advertise-client-urls"):
        made.process.set_flag(flag, f"https://{made.process.endpoint}")
    try:
        made.process.start()
        with made.process.client(tls=made.tls) as client:
            set_up(client)
        yield made
    finally:
        running.kill()


def test_every_call_but_those_that_are_open_is_recorded() -> None:
    assert {path for path, rule in RULES.items() if rule is not Rule.OPEN and not path.startswith(AUDITED)} == set()


@pytest.mark.parametrize("path", sorted(path for path in RULES if path.startswith(AUDITED)))
def test_a_call_is_recorded_with_who_what_and_how_it_ended(path: str, member: Member) -> None:
    assert path in CASES, "say here what is recorded of it"
    case = CASES[path]
    token = member.token()
    last: Any = None
    for asked in case.before:
        code, last = member.call(*asked, token)
        assert code == "OK", asked
    request, told = (part(last) if callable(part) else part for part in (case.request, case.told))
    before = lines(member.log)
    code, answer = member.call(path, request, token)
    if case.after is not None:
        asked = case.after(last or answer)
        assert member.call(*asked, token)[0] == "OK", asked
    assert code == case.code
    stage = {"Watch": "message", "LeaseKeepAlive": "message"}.get(path.rpartition("/")[2])

    def wanted(line: dict[str, Any]) -> bool:
        if line["method"] != path or line in before:
            return False
        return line["stage"] == stage if stage else line.get("stage") != "begin"

    line = await_line(member.log, wanted)
    assert line.get("request", {}) == told
    assert line["certificate"] == "alice"
    assert re.fullmatch(r"127\.0\.0\.1:\d+", line["remote"])
    assert line["remote"] != member.process.endpoint
    assert line["code"] == ("Canceled" if path.endswith("Observe") else case.code)
    if path.endswith("Authenticate"):
        assert "user" not in line, "who logs in is nobody yet; the certificate says more"
    else:
        assert line["user"] == "root"
    if "stage" not in line and answer is not None:
        header = getattr(answer, "header", None)
        assert line.get("revision", 0) == (header.revision if header else 0)
    if path in CHANGES and path.startswith((KV, LEASE, LOCK + "Unlock", ELECTION + "Proclaim", ELECTION + "Resign")):
        assert line["revision"] > 0, "what changes keys is recorded with the revision"
    found = member.log.read_text()
    assert not [secret for secret in (token, PASSWORD, "s3cret") if secret in found]
