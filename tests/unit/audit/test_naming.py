"""What requests are about, and that nothing secret is ever in it."""

import json
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from raftkv.api import naming
from raftkv.api.access import RULES
from raftkv.api.audit import AUDITED, answered
from raftkv.api.naming import named, named_by, request_type
from raftkv.pb import auth_pb2
from raftkv.pb import rpc_pb2 as pb

PATHS = sorted(path for path in RULES if path.startswith(AUDITED))
SECRETS = {"value", "password", "hashedPassword", "token", "prev_value", "blob"}


def fill(message: Message, secret: str = "s3cret", depth: int = 0) -> None:
    """Set every field: a secret one to a secret, others to what they are called."""
    for field in message.DESCRIPTOR.fields:
        text = secret if field.name in SECRETS else f"<{field.name}>"
        values: dict[int, Any] = {
            FieldDescriptor.CPPTYPE_STRING: text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text,
            FieldDescriptor.CPPTYPE_BOOL: True,
            FieldDescriptor.CPPTYPE_ENUM: 1,
        }
        inner = field.message_type
        if inner is None:
            value = values.get(field.cpp_type, 7)
            if isinstance(getattr(message, field.name), (str, bytes, int, bool)):
                setattr(message, field.name, value)
            else:
                getattr(message, field.name).append(value)
        elif depth < 4:
            target = getattr(message, field.name)
            for one in [target] if isinstance(target, Message) else [target.add() for _ in inner.fields or [None]]:
                one.SetInParent()
                fill(one, secret, depth + 1)


@pytest.mark.parametrize("path", PATHS)
def test_no_request_tells_a_secret(path: str) -> None:
    message = request_type(path)()
    fill(message)
    told = json.dumps(named_by(message))
    assert "s3cret" not in told
    wanted = [f.name for f in message.DESCRIPTOR.fields if f.name in ("key", "range_end", "name", "role", "user")]
    for name in wanted:
        assert f"<{name}>" in told


@pytest.mark.parametrize("secret", sorted(SECRETS))
def test_no_field_of_a_secret_name_is_told(secret: str) -> None:
    assert secret not in naming._TOLD
    assert secret not in naming._ENTERED


def test_a_transaction_is_told_whole() -> None:
    inner = pb.TxnRequest(failure=[pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"c", range_end=b"d"))])
    txn = pb.TxnRequest(
        compare=[pb.Compare(key=b"a", value=b"s3cret")],
        success=[pb.RequestOp(request_put=pb.PutRequest(key=b"b", value=b"s3cret", lease=7))],
        failure=[pb.RequestOp(request_txn=inner)],
    )
    assert named(pb.TxnRequest, txn.SerializeToString()) == {
        "compare": [{"key": "a"}],
        "success": [{"request_put": {"key": "b", "lease": 7}}],
        "failure": [{"request_txn": {"failure": [{"request_delete_range": {"key": "c", "range_end": "d"}}]}}],
    }


def test_a_huge_transaction_is_told_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(naming, "MAX_MESSAGES", 3)
    told = named_by(pb.TxnRequest(compare=[pb.Compare(key=b"a")] * 10))
    assert told == {"compare": [{"key": "a"}] * 2, "compare_omitted": 8}


def test_text_and_bytes_cannot_be_taken_for_each_other() -> None:
    assert named_by(pb.PutRequest(key=b"/9g=")) == {"key": "/9g="}
    assert named_by(pb.PutRequest(key=b"\xff\xd8")) == {"key_base64": "/9g="}
    assert named_by(pb.PutRequest(key=b"x" * 5000)) == {"key": "x" * 1024, "key_bytes": 5000}


def test_who_is_given_what() -> None:
    permission = auth_pb2.Permission(permType=auth_pb2.Permission.READWRITE, key=b"a", range_end=b"\0")
    told = named_by(pb.AuthRoleGrantPermissionRequest(name="r", perm=permission))
    assert told == {"name": "r", "perm": {"permType": "READWRITE", "key": "a", "range_end": "\0"}}


def test_the_first_of_an_enumeration_is_told_though_it_is_not_sent() -> None:
    permission = auth_pb2.Permission(permType=auth_pb2.Permission.READ, key=b"a")
    told = named_by(pb.AuthRoleGrantPermissionRequest(name="r", perm=permission))
    assert told == {"name": "r", "perm": {"permType": "READ", "key": "a"}}
    assert named_by(pb.AlarmRequest()) == {"action": "GET", "alarm": "NONE"}


def test_bytes_that_are_no_request() -> None:
    assert named(pb.PutRequest, b"\xff\xff") == {"malformed_bytes": 2}


def test_what_answers_say() -> None:
    header = pb.ResponseHeader(cluster_id=2**64 - 1, member_id=2**64 - 1, revision=2**62, raft_term=2**62)
    put = pb.PutResponse(header=header).SerializeToString()
    assert answered("/etcdserverpb.KV/Put", put) == {"revision": 2**62}
    for succeeded in (True, False):
        txn = pb.TxnResponse(header=pb.ResponseHeader(revision=3), succeeded=succeeded).SerializeToString()
        assert answered("/etcdserverpb.KV/Txn", [txn]) == {"revision": 3, "succeeded": succeeded}
    grant = pb.LeaseGrantResponse(header=header, ID=2**62, TTL=5).SerializeToString()
    assert answered("/etcdserverpb.Lease/LeaseGrant", grant) == {"revision": 2**62, "ID": 2**62}
    assert answered("/etcdserverpb.Maintenance/MoveLeader", b"") == {}
