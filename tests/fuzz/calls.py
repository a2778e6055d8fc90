"""Fuzz targets of what a request holds: operations that reach the log, tokens, certificates, messages of members."""

import base64
import contextlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jwt
from google.protobuf.message import DecodeError

from raftkv.auth.tokens import JwtTokens, SimpleTokens
from raftkv.http.tls import Refused, Revocations, common_name, is_for
from raftkv.mvcc import validate
from raftkv.pb import auth_pb2, log_pb2
from raftkv.pb import rpc_pb2 as pb
from raftkv.peer.codec import decode_batch, encode_framed
from raftkv.raft import (
    AppendEntries,
    ConfState,
    Entry,
    EntryKind,
    Heartbeat,
    InstallSnapshot,
    Message,
    SnapshotMetadata,
)
from raftkv.status import StatusError
from tests.fuzz.bytestream import Choices
from tests.fuzz.files import file_of
from tests.fuzz.target import Target
from tests.unit.auth.test_known_cves import World

MAX_OPERATIONS = 16

# Requests


class Checked(NamedTuple):
    """A field of `log_pb2.Proposal` and what the services check before it is proposed."""

    field: str
    kind: Any
    check: Any = lambda request: None


OPERATIONS = (
    Checked("put", pb.PutRequest, validate.check_put),
    Checked("delete_range", pb.DeleteRangeRequest, validate.check_delete_range),
    Checked("txn", pb.TxnRequest, lambda request: validate.check_txn(request, MAX_OPERATIONS)),
    Checked("compaction", pb.CompactionRequest),
    Checked("lease_grant", pb.LeaseGrantRequest, lambda request: validate_grant(request)),
    Checked("lease_revoke", pb.LeaseRevokeRequest),
    Checked("alarm", pb.AlarmRequest),
    Checked("user_delete", pb.AuthUserDeleteRequest),
    Checked("user_grant_role", pb.AuthUserGrantRoleRequest),
    Checked("user_revoke_role", pb.AuthUserRevokeRoleRequest),
    Checked("role_add", pb.AuthRoleAddRequest),
    Checked("role_delete", pb.AuthRoleDeleteRequest),
    Checked("role_grant_permission", pb.AuthRoleGrantPermissionRequest),
    Checked("role_revoke_permission", pb.AuthRoleRevokePermissionRequest),
)


def validate_grant(request: Any) -> None:
    """The member that is asked gives a lease an id."""
    request.ID = abs(request.ID) or 99


def requests(data: bytes) -> None:
    """A request that passes the checks is applied, or refused: it never stops a member."""
    choices = Choices(data)
    field, kind, check = choices.choose((*OPERATIONS, Checked("range", pb.RangeRequest, validate.check_range)))
    user = choices.choose(("root", "u", "", "nobody"))
    try:
        request = kind.FromString(choices.rest())
        check(request)
    except (DecodeError, StatusError):
        return
    world = World()
    proposal = None
    if field != "range":
        proposal = log_pb2.Proposal(id=1, **{field: request})
        proposal.caller.user, proposal.caller.revision = user, world.auth.revision
        batch = log_pb2.Batch(proposals=[proposal]).SerializeToString()
        index = world.applier.index
        assert world.applier.apply([Entry(1, index + 1, EntryKind.NORMAL, batch)]) == 1
    with contextlib.suppress(StatusError):
        world.rules.check_range(world.caller(user), request if field == "range" else pb.RangeRequest(key=b"own"))
    with contextlib.suppress(StatusError):
        world.store.range(request if field == "range" else pb.RangeRequest(key=b"\0", range_end=b"\0"))


def request_seeds() -> tuple[bytes, ...]:
    put = pb.PutRequest(key=b"own", value=b"v", lease=2, prev_kv=True)
    span = pb.RangeRequest(key=b"a", range_end=b"z", limit=2, sort_order=pb.RangeRequest.DESCEND, revision=2)
    compare = pb.Compare(key=b"own", range_end=b"\0", result=pb.Compare.LESS, target=pb.Compare.LEASE, lease=1)
    nested = pb.TxnRequest(success=[pb.RequestOp(request_range=span)], compare=[compare])
    permission = auth_pb2.Permission(permType=auth_pb2.Permission.READWRITE, key=b"a", range_end=b"\0")
    examples: dict[str, Any] = {
        "put": put,
        "delete_range": pb.DeleteRangeRequest(key=b"a", range_end=b"\0", prev_kv=True),
        "txn": pb.TxnRequest(
            compare=[compare],
            success=[pb.RequestOp(request_put=put), pb.RequestOp(request_txn=nested)],
            failure=[pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"a", range_end=b"z"))],
        ),
        "compaction": pb.CompactionRequest(revision=2),
        "lease_grant": pb.LeaseGrantRequest(TTL=60, ID=5),
        "lease_revoke": pb.LeaseRevokeRequest(ID=2),
        "alarm": pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=1, alarm=pb.NOSPACE),
        "role_grant_permission": pb.AuthRoleGrantPermissionRequest(name="r", perm=permission),
        "role_revoke_permission": pb.AuthRoleRevokePermissionRequest(role="r", key=b"own"),
        "user_grant_role": pb.AuthUserGrantRoleRequest(user="u", role="root"),
        "user_revoke_role": pb.AuthUserRevokeRoleRequest(name="u", role="r"),
        "range": span,
    }
    places = {operation.field: place for place, operation in enumerate(OPERATIONS)} | {"range": len(OPERATIONS)}
    return tuple(bytes([places[field], 0]) + example.SerializeToString() for field, example in examples.items())


# Who calls

SECRET = b"s" * 64
SIGNED = JwtTokens(method="HS256", private=SECRET, public=SECRET, ttl_seconds=60.0, now=lambda: 1_800_000_000.0)
CLAIMS = {"username": "ann", "revision": 7, "exp": 1_800_000_060, "nbf": 0.5}


def token(data: bytes) -> None:
    """A token is somebody's or nobody's; only the right signature makes it somebody's."""
    choices = Choices(data)
    way = choices.byte() % 3
    raw = choices.rest()
    text = raw.decode("latin-1")
    simple = SimpleTokens(60.0, lambda: 0.0)
    simple.assign("abc.7", "ann")
    assert simple.user(text) == ("ann" if text == "abc.7" else None)
    assert 0 <= simple.index(text) < 10**19
    if way == 0:
        assert SIGNED.caller(text) is None or text == SIGNED.sign("ann", 7)
    elif way == 1:
        _caller_of(jwt.api_jws.encode(raw, SECRET, algorithm="HS256"))
    else:
        head, _, rest = raw.partition(b"\n")
        parts = [base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (head, rest)]
        assert SIGNED.caller(f"{'.'.join(parts)}.") is None


def _caller_of(text: str) -> None:
    caller = SIGNED.caller(text)
    if caller is not None:
        assert caller.user
        assert 0 < caller.revision < 1 << 64


def token_seeds() -> tuple[bytes, ...]:
    claims = json.dumps(CLAIMS).encode()
    return (b"\0" + SIGNED.sign("ann", 7).encode(), b"\1" + claims, b'\2{"alg":"none"}\n' + claims, b"\0abc.7")


def certificate(data: bytes) -> None:
    """Names of certificates are compared as they are; a revocation list is read, or refused."""
    choices = Choices(data)
    kinds = ("DNS", "IP Address", "URI", "email")
    names = tuple((choices.choose(kinds), choices.text().decode("utf-8", "replace")) for _ in range(choices.byte() % 4))
    # What ssl gives as an address is one.
    names = tuple((kind, name) for kind, name in names if kind != "IP Address" or name in ("10.0.0.1", "::1"))
    name = choices.text().decode("utf-8", "replace")
    shown = {"subject": ((("organizationName", "x"),), (("commonName", name),)), "subjectAltName": names}
    assert common_name(shown) == name
    host = choices.text().decode("utf-8", "replace")
    if is_for(shown, host) and ("DNS", host) not in names and ("IP Address", host) not in names:
        assert any(
            kind == "IP Address" or known.startswith("*.") or _plain(known) == _plain(host) for kind, known in names
        )
    with file_of(choices.rest()) as path:
        _revocations(path)


def _plain(name: str) -> str:
    return name.lower().rstrip(".")


def _revocations(path: str) -> None:
    try:
        Revocations(Path(path)).check(5)
    except (ValueError, Refused):
        return


FIELDS = b"\2\0\7*.x.org\1\x0810.0.0.1\5alice\7n.x.org"
"""The corpus has them with revocation lists behind."""


# Members


def peer(data: bytes) -> None:
    """Messages of a member: what is understood, is understood the same way when it is sent on."""
    try:
        messages = list(decode_batch(data))
    except DecodeError:
        return
    sent_on = b"".join(encode_framed(message) for message in messages)
    assert list(decode_batch(sent_on)) == messages


def peer_seeds() -> tuple[bytes, ...]:
    entries = [Entry(2, 5, EntryKind.NORMAL, b"data"), Entry(2, 6, EntryKind.NORMAL, b"")]
    snapshot = SnapshotMetadata(index=9, term=2, conf_state=ConfState(voters=(1, 2, 3), learners=(4,)))
    messages: tuple[Message, ...] = (
        AppendEntries(1, 2, 2, 4, 1, entries, 3, False),
        Heartbeat(1, 2, 2, 3, b"context"),
        InstallSnapshot(1, 2, 2, snapshot),
    )
    return (b"".join(map(encode_framed, messages)), *(encode_framed(message) for message in messages))


TARGETS = (
    Target("requests", requests, request_seeds(), 1024),
    Target("token", token, token_seeds(), 1024),
    Target("certificate", certificate, (FIELDS,), 2048),
    Target("peer", peer, peer_seeds(), 1024),
)
