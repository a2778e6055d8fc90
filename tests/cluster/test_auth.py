"""Users, roles and tokens on real members: who is refused what, by every way in, and that no member ever differs."""

import asyncio
import base64
import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from raftkv import errors
from raftkv.api.access import RULES, Rule, check_rules
from raftkv.auth import AuthStore
from raftkv.client import AsyncClient, Client, access
from raftkv.client import requests as rpc
from raftkv.client.secure import ClientTls
from raftkv.mvcc import LmdbBackend, Store
from raftkv.pb import auth_pb2
from raftkv.pb import rpc_pb2 as pb
from raftkv.pb import v3election_pb2 as election
from raftkv.pb import v3lock_pb2 as lock
from tests.cli.raftctl import PATIENT
from tests.cli.servers import serve_tls
from tests.support.certificates import Authority
from tests.support.processes import Cluster, Process, cluster

PASSWORD = "correct horse"
READ, WRITE, READWRITE = auth_pb2.Permission.READ, auth_pb2.Permission.WRITE, auth_pb2.Permission.READWRITE
CHEAP = ("--bcrypt-cost", "4")


def set_up(client: Client) -> None:
    """Root; ann, who may do everything below /ann/; and callers must say who they are."""
    for user in ("root", "ann"):
        client.call(access.USER_ADD, pb.AuthUserAddRequest(name=user, password=PASSWORD))
    client.call(access.USER_GRANT_ROLE, pb.AuthUserGrantRoleRequest(user="root", role="root"))
    client.call(access.ROLE_ADD, pb.AuthRoleAddRequest(name="r"))
    grant(client, "r", b"/ann/", b"/ann0")
    client.call(access.USER_GRANT_ROLE, pb.AuthUserGrantRoleRequest(user="ann", role="r"))
    client.call(access.AUTH_ENABLE, pb.AuthEnableRequest())


def grant(client: Client, role: str, key: bytes, range_end: bytes = b"") -> None:
    permission = auth_pb2.Permission(permType=READWRITE, key=key, range_end=range_end)
    client.call(access.ROLE_GRANT_PERMISSION, pb.AuthRoleGrantPermissionRequest(name=role, perm=permission))


def revoke(client: Client, role: str, key: bytes, range_end: bytes = b"") -> None:
    request = pb.AuthRoleRevokePermissionRequest(role=role, key=key, range_end=range_end)
    client.call(access.ROLE_REVOKE_PERMISSION, request)


def client_of(member: Process | Cluster, user: str = "", **more: Any) -> Client:
    return member.client(user=user, password=PASSWORD if user else "", **more)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A member on which ann and root are."""
    with cluster(tmp_path_factory.mktemp("one"), 1, *CHEAP) as running:
        with client_of(running) as client:
            set_up(client)
        with client_of(running, "root") as root:
            root.put("secret", "s", lease=root.lease_grant(1000, 7).ID)
            root.put("/ann/leased", "x", lease=root.lease_grant(1000, 8).ID)
        yield running.members[0]


# Every way in

SERVED = sorted(RULES)


def call(
    endpoint: str,
    path: str,
    token: str,
    request: bytes = b"",
    *,
    seconds: float = 60.0,
    tls: grpc.ChannelCredentials | None = None,
) -> tuple[grpc.StatusCode, str]:
    """How a call with an empty request ends; OK when it has begun to answer."""
    with grpc.insecure_channel(endpoint) if tls is None else grpc.secure_channel(endpoint, tls) as channel:
        method = channel.stream_stream(path)
        answers = method(iter([request]), timeout=seconds, metadata=(("token", token),) if token else ())
        try:
            answer = next(answers)
        except StopIteration:
            return grpc.StatusCode.OK, ""
        except grpc.RpcError as error:
            return error.code(), str(error.details())  # type: ignore[attr-defined]
        answers.cancel()
        if path.endswith("Watch/Watch"):
            return grpc.StatusCode.OK, pb.WatchResponse.FromString(answer).cancel_reason
        return grpc.StatusCode.OK, ""


def token_of(endpoint: str, user: str) -> str:
    with Client(endpoint) as client:
        return client.call(rpc.AUTHENTICATE, pb.AuthenticateRequest(name=user, password=PASSWORD)).token


ASKED: dict[str, Any] = {
    # What there is to be refused; of the others an empty request is enough.
    "/etcdserverpb.KV/Range": pb.RangeRequest(key=b"secret"),
    "/etcdserverpb.KV/RangeStream": pb.RangeRequest(key=b"secret"),
    "/etcdserverpb.KV/Put": pb.PutRequest(key=b"secret"),
    "/etcdserverpb.KV/DeleteRange": pb.DeleteRangeRequest(key=b"secret"),
    "/etcdserverpb.KV/Txn": pb.TxnRequest(compare=[pb.Compare(key=b"secret")]),
    "/etcdserverpb.Lease/LeaseRevoke": pb.LeaseRevokeRequest(ID=7),
    "/etcdserverpb.Lease/LeaseKeepAlive": pb.LeaseKeepAliveRequest(ID=7),
    "/etcdserverpb.Lease/LeaseTimeToLive": pb.LeaseTimeToLiveRequest(ID=7, keys=True),
    "/etcdserverpb.Watch/Watch": pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"secret")),
    "/v3lockpb.Lock/Unlock": pb.DeleteRangeRequest(key=b"secret"),
}
LEADER = b"\x0a\x06secret\x12\x06secret\x18\x01"
NESTED = b"\x0a" + bytes([len(LEADER)]) + LEADER
RAW = {
    "/v3lockpb.Lock/Lock": b"\x0a\x06secret\x10\x08",
    "/v3electionpb.Election/Campaign": b"\x0a\x06secret\x10\x08",
    "/v3electionpb.Election/Proclaim": NESTED,
    "/v3electionpb.Election/Resign": NESTED,
    "/v3electionpb.Election/Leader": b"\x0a\x06secret",
    "/v3electionpb.Election/Observe": b"\x0a\x06secret",
}
ALARM, STATUS = "/etcdserverpb.Maintenance/Alarm", "/etcdserverpb.Maintenance/Status"
OPEN_TO_USERS = {"/etcdserverpb.Lease/LeaseGrant", "/etcdserverpb.Cluster/MemberList", ALARM, STATUS}


def asked(path: str) -> bytes:
    message = ASKED.get(path)
    return RAW.get(path, b"") if message is None else bytes(message.SerializeToString())


@pytest.mark.parametrize("path", [path for path in SERVED if RULES[path] is not Rule.OPEN])
def test_cve_2026_33413_no_way_in_without_a_user_or_the_right(path: str, one: Process) -> None:
    """Whoever adds an RPC and forgets its rule finds out here, or at the start."""
    code, text = call(one.endpoint, path, "", asked(path))
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return
    assert errors.UserEmpty.TEXT in text
    assert errors.InvalidAuthToken.TEXT in call(one.endpoint, path, "forged.1", asked(path))[1]
    code, text = call(one.endpoint, path, token_of(one.endpoint, "ann"), asked(path))
    if path in OPEN_TO_USERS:
        assert (code, text) == (grpc.StatusCode.OK, "")
    else:
        assert errors.PermissionDenied.TEXT in text


@pytest.mark.parametrize("path", [path for path in RAW | ASKED if path.startswith(("/v3lockpb.", "/v3electionpb."))])
def test_what_locks_and_elections_refuse_has_no_code_as_in_etcd(path: str, one: Process) -> None:
    refused = call(one.endpoint, path, token_of(one.endpoint, "ann"), asked(path))
    assert refused == (grpc.StatusCode.UNKNOWN, errors.PermissionDenied.TEXT)


def test_whether_to_log_in_is_told_to_everybody(one: Process) -> None:
    status = "/etcdserverpb.Auth/AuthStatus"
    with grpc.insecure_channel(one.endpoint) as channel:
        answer = pb.AuthStatusResponse.FromString(channel.unary_unary(status)(b"", timeout=60.0))
    assert answer.enabled
    assert answer.authRevision > 1
    assert call(one.endpoint, status, token_of(one.endpoint, "ann")) == (grpc.StatusCode.OK, "")
    assert errors.InvalidAuthToken.TEXT in call(one.endpoint, status, "forged.1")[1]


def test_a_user_without_rights_learns_of_alarms_and_changes_none(one: Process) -> None:
    """`etcdctl endpoint health` asks for them, and takes a refusal for ill health; Kubernetes asks for the status."""
    token = token_of(one.endpoint, "ann")
    for action in (pb.AlarmRequest.ACTIVATE, pb.AlarmRequest.DEACTIVATE):
        request = pb.AlarmRequest(action=action, alarm=pb.NOSPACE)
        assert call(one.endpoint, ALARM, token, request.SerializeToString()) == (
            grpc.StatusCode.PERMISSION_DENIED,
            errors.PermissionDenied.TEXT,
        )
    assert call(one.endpoint, ALARM, token)[0] is grpc.StatusCode.OK


def test_cve_2026_33413_no_way_in_for_a_user_that_is_gone(tmp_path: Path) -> None:
    """A signed token outlives its user; there are no leases here whose keys could be asked for."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"k" * 64)
    jwt = ("--auth-token", f"jwt,sign-method=HS256,priv-key={secret},ttl=1h")
    with cluster(tmp_path, 1, *CHEAP, *jwt) as running:
        with client_of(running) as client:
            set_up(client)
        [member] = running.members
        token = token_of(member.endpoint, "ann")
        assert call(member.endpoint, "/etcdserverpb.Cluster/MemberList", token)[0] is grpc.StatusCode.OK
        with client_of(running, "root") as root:
            root.call(access.USER_DELETE, pb.AuthUserDeleteRequest(name="ann"))
        for path in SERVED:
            if RULES[path] is not Rule.OPEN:
                code, text = call(member.endpoint, path, token, asked(path))
                # A watch is refused in an answer.
                assert code is not grpc.StatusCode.OK or text, path


def test_cve_2026_33413_no_way_in_for_the_certificate_of_a_user_that_is_gone(tmp_path: Path) -> None:
    """It is good until it expires, and whom it names may be gone long before."""
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.issue("ann")
    secured = ClientTls(ca=authority.file, certificate=certificate, key=key)
    files = (authority.file, key, certificate)
    credentials = grpc.ssl_channel_credentials(*(path.read_bytes() for path in files))
    member_list = "/etcdserverpb.Cluster/MemberList"
    with serve_tls(tmp_path / "m", authority) as endpoint:
        with Client(endpoint, tls=secured, timeout=60.0, dial_timeout=60.0) as client:
            set_up(client)
        assert call(endpoint, member_list, "", tls=credentials)[0] is grpc.StatusCode.OK
        own = pb.PutRequest(key=b"/ann/a").SerializeToString()
        assert call(endpoint, "/etcdserverpb.KV/Put", "", own, tls=credentials)[0] is grpc.StatusCode.OK
        root = {"user": "root", "password": PASSWORD, "timeout": 60.0, "dial_timeout": 60.0}
        with Client(endpoint, tls=secured, **root) as client:  # type: ignore[arg-type]
            client.call(access.USER_DELETE, pb.AuthUserDeleteRequest(name="ann"))
        for path in SERVED:
            if RULES[path] is not Rule.OPEN:
                code, text = call(endpoint, path, "", asked(path), tls=credentials)
                assert code is not grpc.StatusCode.OK or text, path
        assert call(endpoint, "/etcdserverpb.KV/Put", "", own, tls=credentials)[0] is not grpc.StatusCode.OK


def test_a_member_does_not_start_with_an_rpc_that_has_no_rule() -> None:
    check_rules(RULES)
    with pytest.raises(RuntimeError, match=r"etcdserverpb\.KV/Forgotten"):
        check_rules([*RULES, "/etcdserverpb.KV/Forgotten"])


PEER = "http://127.0.0.1:0"
FORGETFUL = """
import sys
from raftkv.api import access
from raftkv.main import main
del access.RULES["/etcdserverpb.KV/Compact"]
sys.argv = ["raftkv", *sys.argv[1:]]
sys.exit(main())
"""


def test_cve_2026_33413_a_rule_that_was_forgotten_is_told_at_the_start(tmp_path: Path) -> None:
    urls = ("--listen-client-urls", "http://127.0.0.1:0", "--advertise-client-urls", "http://127.0.0.1:1")
    done = subprocess.run(
        [sys.executable, "-c", FORGETFUL, "--data-dir", str(tmp_path / "data"), *urls, "--listen-peer-urls", PEER],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "/etcdserverpb.KV/Compact" in done.stderr


def test_ann_may_do_what_she_may(one: Process) -> None:
    with client_of(one, "ann") as ann:
        lease = ann.lease_grant(60).ID
        ann.put("/ann/a", "1", lease=lease, prev_kv=True)
        assert ann.range("/ann/", prefix=True).count >= 1
        assert ann.lease_keep_alive_once(lease).TTL > 0
        assert ann.lease_time_to_live(lease, keys=True).keys == [b"/ann/a"]
        with pytest.raises(errors.PermissionDenied):
            ann.put("/ann/b", "1", lease=7)
        with pytest.raises(errors.PermissionDenied):
            ann.range("/ann/", "/b")
        with pytest.raises(errors.PermissionDenied):
            ann.lease_time_to_live(7, keys=True)
        assert not ann.lease_time_to_live(7).keys
        with ann.lock("/ann/lock"), ann.watch("/ann/", prefix=True) as watch:
            watch.ready()
            ann.put("/ann/a", "2", lease=lease)
            assert next(watch).events[0].kv.value == b"2"
        ann.lease_revoke(lease)
        assert ann.get("/ann/a") is None
        assert list(ann.call(access.USER_GET, pb.AuthUserGetRequest(name="ann")).roles) == ["r"]


def test_locks_and_elections_of_a_user(one: Process) -> None:
    token = token_of(one.endpoint, "ann")

    def ask(path: str, request: Any, response: Any) -> Any:
        with grpc.insecure_channel(one.endpoint) as channel:
            method = channel.unary_unary(
                path, request_serializer=type(request).SerializeToString, response_deserializer=response.FromString
            )
            return method(request, timeout=60, metadata=(("token", token),))

    prefix = "/v3electionpb.Election/"
    held = ask("/v3lockpb.Lock/Lock", lock.LockRequest(name=b"/ann/lock"), lock.LockResponse)
    ask("/v3lockpb.Lock/Unlock", lock.UnlockRequest(key=held.key), lock.UnlockResponse)
    stands = election.CampaignRequest(name=b"/ann/e", value=b"v")
    leader = ask(prefix + "Campaign", stands, election.CampaignResponse).leader
    ask(prefix + "Proclaim", election.ProclaimRequest(leader=leader, value=b"w"), election.ProclaimResponse)
    found = ask(prefix + "Leader", election.LeaderRequest(name=b"/ann/e"), election.LeaderResponse)
    assert found.kv.value == b"w"
    ask(prefix + "Resign", election.ResignRequest(leader=leader), election.ResignResponse)


def test_leases_end_by_themselves_whoever_must_log_in(one: Process) -> None:
    """What the leader proposes by its clock has no user."""
    with client_of(one, "ann") as ann, ann.watch("/ann/short") as watch:
        watch.ready()
        ann.put("/ann/short", "x", lease=ann.lease_grant(4).ID)
        assert [event.type for _ in range(2) for event in next(watch).events] == [0, 1]


def test_ghsa_xg4h_6gfc_h4m8_one_key_is_not_all_that_follow(one: Process) -> None:
    with client_of(one, "root") as root:
        grant(root, "r", b"single")
        try:
            with client_of(one, "ann") as ann:
                for end in (b"\0", b"single\0\0"):
                    with ann.watch("single", end) as watch, pytest.raises(errors.PermissionDenied):
                        watch.ready()
                with ann.watch("single") as watch:
                    watch.ready()
        finally:
            revoke(root, "r", b"single")


def test_a_watch_ends_with_the_right_to_it(one: Process) -> None:
    """etcd lets it go on."""
    with client_of(one, "root") as root, client_of(one, "ann") as ann:
        grant(root, "r", b"lent")
        with ann.watch("lent") as lent, ann.watch("/ann/w") as own:
            lent.ready()
            own.ready()
            revoke(root, "r", b"lent")
            with pytest.raises(errors.PermissionDenied):
                next(lent)
            root.put("lent", "not told")
            ann.put("/ann/w", "told")
            assert next(own).events[0].kv.value == b"told"


def test_who_observes_an_election_hears_nothing_after_the_right_to_it_ended(one: Process) -> None:
    prefix = "/v3electionpb.Election/"

    def tokens(user: str) -> tuple[tuple[str, str], ...]:
        return (("token", token_of(one.endpoint, user)),)

    with grpc.insecure_channel(one.endpoint) as channel, client_of(one, "root") as root:

        def ask(path: str, request: Any, response: Any) -> Any:
            method = channel.unary_unary(
                prefix + path,
                request_serializer=type(request).SerializeToString,
                response_deserializer=response.FromString,
            )
            return method(request, timeout=60, metadata=tokens("root"))

        observe = channel.unary_stream(
            prefix + "Observe",
            request_serializer=election.LeaderRequest.SerializeToString,
            response_deserializer=election.LeaderResponse.FromString,
        )
        grant(root, "r", b"seen/", b"seen0")
        stands = election.CampaignRequest(name=b"seen", value=b"before")
        leader = ask("Campaign", stands, election.CampaignResponse).leader
        answers = observe(election.LeaderRequest(name=b"seen"), timeout=60, metadata=tokens("ann"))
        assert next(answers).kv.value == b"before"
        ask("Proclaim", election.ProclaimRequest(leader=leader, value=b"allowed"), election.ProclaimResponse)
        assert next(answers).kv.value == b"allowed"
        revoke(root, "r", b"seen/", b"seen0")
        ask("Proclaim", election.ProclaimRequest(leader=leader, value=b"not told"), election.ProclaimResponse)
        with pytest.raises(grpc.RpcError, match=errors.PermissionDenied.TEXT):
            next(answers)


def test_the_json_gateway_asks_too(one: Process) -> None:
    def post(path: str, body: object, token: str = "") -> tuple[int, Any]:
        headers = {"Authorization": token} if token else {}
        request = urllib.request.Request(f"http://{one.endpoint}/v3/{path}", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    key = {"key": base64.b64encode(b"secret").decode()}
    assert post("kv/range", key)[1]["message"] == errors.UserEmpty.TEXT
    status, answer = post("auth/authenticate", {"name": "ann", "password": PASSWORD})
    assert status == 200
    assert post("kv/range", key, answer["token"]) == (
        403,
        {"error": errors.PermissionDenied.TEXT, "message": errors.PermissionDenied.TEXT, "code": 7},
    )
    own = {"key": base64.b64encode(b"/ann/a").decode()}
    for token in (answer["token"], f"Bearer {answer['token']}"):
        assert post("kv/range", own, token)[0] == 200
    assert post("kv/range", own, "forged")[0] == 401
    assert post("auth/user/list", {}, answer["token"])[0] == 403
    wrong = post("auth/authenticate", {"name": "ann", "password": "wrong"})
    assert wrong[1]["message"] == errors.AuthFailed.TEXT
    assert post("auth/authenticate", {"name": "nobody", "password": "wrong"}) == wrong


def test_cve_2021_28235_no_password_reaches_the_log_or_the_disk(one: Process) -> None:
    """Nor a line of the log; the log on disk has tokens, as etcd's."""
    token = token_of(one.endpoint, "ann")
    files = [path for path in one.data.rglob("*") if path.is_file() and path.name != "lock.mdb"]
    assert len(files) >= 2
    for path in files:
        assert PASSWORD.encode() not in path.read_bytes()
    assert PASSWORD not in one.log()
    assert token not in one.log()


# Several members


def hashes(root: Client, members: Iterable[Process]) -> set[tuple[int, int]]:
    """Of the keys of each member, at one revision."""
    revision = root.range("any").header.revision
    found = set()
    for member in members:
        # It answers when it has come as far as that.
        root.call(rpc.RANGE, pb.RangeRequest(key=b"any"), endpoint=member.endpoint)
        answer = root.call(rpc.HASH_KV, pb.HashKVRequest(revision=revision), endpoint=member.endpoint)
        found.add((answer.hash, answer.compact_revision))
    return found


def stored(member: Process) -> object:
    """What a stopped member has of users and roles, on disk."""
    backend = LmdbBackend(str(member.data / "store"))
    try:
        store = AuthStore(Store(backend))
        store.load()
        return (
            store.enabled,
            store.revision,
            {name: (list(store.user_roles(name)), store.password_hash(name)) for name in store.users},
            {name: [str(one) for one in store.role_permissions(name)] for name in store.roles},
        )
    finally:
        backend.close()


@pytest.mark.skipif(shutil.which("etcdctl") is None, reason="etcdctl is not installed")
def test_etcdctl_with_users_against_three_members(tmp_path: Path) -> None:
    def etcdctl(*words: str, user: str = "") -> str:
        login = ("--user", f"{user}:{PASSWORD}") if user else ()
        done = subprocess.run(
            ["etcdctl", "--endpoints", running.endpoints, *PATIENT, *login, *words],
            env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.stdout or done.stderr.splitlines()[-1]

    with cluster(tmp_path, 3, *CHEAP) as running:
        for words in (
            f"user add root:{PASSWORD}",
            f"user add ann:{PASSWORD}",
            "role add r",
            "role grant-permission r readwrite /ann/ --prefix",
            "user grant-role ann r",
            "auth enable",
        ):
            first, second, rest = words.split(" ", 2) if words.count(" ") > 1 else (*words.split(), "")
            named = [rest] if first == "user" and second == "add" else rest.split()
            assert "Error" not in etcdctl(first, second, *named)
        assert etcdctl("put", "/ann/k", "v", user="ann") == "OK\n"
        assert etcdctl("get", "/ann/k", user="ann") == "/ann/k\nv\n"
        assert etcdctl("get", "/ann/k") == f"Error: {errors.UserEmpty.TEXT}"
        assert etcdctl("put", "other", "v", user="ann") == f"Error: {errors.PermissionDenied.TEXT}"
        granted = etcdctl("lease", "grant", "60", user="ann")
        assert etcdctl("put", "--lease", granted.split()[1], "/ann/l", "v", user="ann") == "OK\n"
        assert "keepalived" in etcdctl("lease", "keep-alive", "--once", granted.split()[1], user="ann")
        assert "revoked" in etcdctl("lease", "revoke", granted.split()[1], user="ann")
        # A member that was away knows all of it when it is back.
        gone = running.members[0]
        gone.kill()
        assert etcdctl("user", "passwd", "ann", "--interactive=false", user="root") == "Password updated\n"
        assert etcdctl("user", "delete", "ann", user="root") == "User ann deleted\n"
        gone.start()
        with client_of(gone, "ann") as ann, pytest.raises(errors.AuthFailed):
            ann.get("/ann/k")
        with client_of(gone, "root") as root:
            assert root.get("/ann/k") is not None


def test_a_token_holds_at_every_member_and_a_restart_forgets_it(tmp_path: Path) -> None:
    with cluster(tmp_path, 3, *CHEAP) as running:
        with client_of(running) as client:
            set_up(client)
        token = token_of(running.members[0].endpoint, "ann")
        request = pb.RangeRequest(key=b"/ann/k", serializable=True).SerializeToString()
        for member in running.members:
            assert call(member.endpoint, "/etcdserverpb.KV/Range", token, request)[0] is grpc.StatusCode.OK
        with client_of(running.members[1], "ann") as ann:
            ann.put("/ann/k", "1")
            # In good order: what a crash leaves to be applied again would make the token known again.
            running.members[1].stop()
            running.members[1].start()
            # What may be asked twice finds out that the connection is broken; it needs no token.
            ann.call(rpc.AUTHENTICATE, pb.AuthenticateRequest(name="ann", password=PASSWORD))
            # The client logs in anew, unnoticed.
            ann.put("/ann/k", "2")


def test_jwt_holds_at_every_member_until_users_change(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"k" * 64)
    setting = f"jwt,sign-method=HS256,priv-key={secret},ttl=1h"
    with cluster(tmp_path, 3, *CHEAP, "--auth-token", setting) as running:
        with client_of(running) as client:
            set_up(client)
        token = token_of(running.members[0].endpoint, "ann")
        assert token.count(".") == 2
        request = pb.RangeRequest(key=b"/ann/k").SerializeToString()
        member = running.members[1].endpoint
        assert call(member, "/etcdserverpb.KV/Range", token, request)[0] is grpc.StatusCode.OK
        with client_of(running, "root") as root, client_of(running, "ann") as ann:
            ann.put("/ann/k", "1")
            root.call(access.ROLE_ADD, pb.AuthRoleAddRequest(name="another"))
            assert call(member, "/etcdserverpb.KV/Range", token, request)[1] == errors.AuthOldRevision.TEXT
            # Clients get another token by themselves; root goes on with the one it has.
            ann.put("/ann/k", "2")
            root.call(access.ROLE_ADD, pb.AuthRoleAddRequest(name="and another"))


def test_enabled_and_disabled_under_load_no_member_differs(tmp_path: Path) -> None:
    """Writes of two users and of nobody, while root changes users, and enables and disables all that; a leader dies."""
    outcomes: set[str] = set()
    wanted = {
        "ann wrote /ann",
        f"ann: {errors.PermissionDenied.TEXT}",
        f"nobody: {errors.UserEmpty.TEXT}",
    }

    async def write(user: str, name: str, done: asyncio.Event) -> None:
        client = AsyncClient(running.endpoints, user=user, password=PASSWORD if user else "", timeout=10.0)
        async with client:
            number = 0
            while not done.is_set():
                number += 1
                try:
                    await client.put(f"/{name}/{number % 20}", str(number))
                    outcomes.add(f"{user or 'nobody'} wrote /{name}")
                except Exception as error:
                    outcomes.add(f"{user or 'nobody'}: {error}")

    async def change() -> None:
        # A write on its way to the member that is killed would have an unknown outcome.
        rest = [member.endpoint for member in running.members if member is not killed]
        async with AsyncClient(rest, user="root", password=PASSWORD, timeout=60.0, dial_timeout=60.0) as root:
            for turn in range(6):
                role = f"role {turn}"
                await root.call(access.ROLE_ADD, pb.AuthRoleAddRequest(name=role))
                await root.call(access.USER_GRANT_ROLE, pb.AuthUserGrantRoleRequest(user="ann", role=role))
                if turn == 3:
                    killed.kill()
                if turn % 2:
                    await root.call(access.AUTH_DISABLE, pb.AuthDisableRequest())
                    await root.put("by anyone", str(turn))
                    await root.call(access.AUTH_ENABLE, pb.AuthEnableRequest())
                await root.put(f"turn {turn}", "")

    async def main() -> None:
        done = asyncio.Event()
        writers = [
            asyncio.create_task(write(user, name, done)) for user, name in (("ann", "ann"), ("ann", "bob"), ("", "no"))
        ]
        try:
            async with asyncio.timeout(600):
                await change()
                # Writers go on until each has met what it is to meet.
                while not outcomes >= wanted:
                    await asyncio.sleep(0.05)
        finally:
            done.set()
            await asyncio.gather(*writers)

    with cluster(tmp_path, 3, *CHEAP) as running:
        with client_of(running) as client:
            set_up(client)
        running.credentials = {"user": "root", "password": PASSWORD}
        killed = running.leader()
        asyncio.run(main())
        killed.start()
        running.wait_ready(killed)
        with client_of(running, "root") as root:
            root.put("last", "")
            assert len(hashes(root, running.members)) == 1
        for member in running.members:
            member.stop()
        states = [stored(member) for member in running.members]
        assert states[0] == states[1] == states[2]


def test_a_member_given_the_store_knows_the_users(tmp_path: Path) -> None:
    with cluster(tmp_path, 3, *CHEAP, "--snapshot-count", "20", "--snapshot-catchup-entries", "5") as running:
        with client_of(running) as client:
            set_up(client)
        running.credentials = {"user": "root", "password": PASSWORD}
        leader = running.leader()
        follower = next(member for member in running.members if member is not leader)
        follower.kill()
        with client_of(running, "root") as root:
            root.call(access.ROLE_ADD, pb.AuthRoleAddRequest(name="later"))
            grant(root, "later", b"later")
            root.call(access.USER_GRANT_ROLE, pb.AuthUserGrantRoleRequest(user="ann", role="later"))
            for number in range(200):
                root.put(f"k{number}", "v")
            follower.start()
            with client_of(follower, "ann") as ann:
                ann.put("later", "1")
                with pytest.raises(errors.PermissionDenied):
                    ann.get("k1")
