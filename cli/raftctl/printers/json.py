"""-w json: one line, as Go's encoding/json renders etcd's structures.

Names are those of the .proto files, bytes are base64, zero values are left out.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from google.protobuf.message import Message

from cli.raftctl.printers import HashKV, Health, Printer, Snapshot, Status, write_line
from raftkv.pb import rpc_pb2

if TYPE_CHECKING:
    from cli.raftctl.printers import AuthChanged

_HTML = {"&": "\\u0026", "<": "\\u003c", ">": "\\u003e", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""What Go escapes in strings, so that JSON may stand in a web page."""
_ESCAPES = str.maketrans(_HTML)


class Json(Printer):
    """--hex changes nothing here."""

    form = "json"

    def put(self, response: rpc_pb2.PutResponse) -> None:
        _print(render(response))

    def range(self, response: rpc_pb2.RangeResponse) -> None:
        _print(render(response))

    def delete(self, response: rpc_pb2.DeleteRangeResponse) -> None:
        _print(render(response))

    def txn(self, response: rpc_pb2.TxnResponse) -> None:
        _print(render(response))

    def watch(self, response: rpc_pb2.WatchResponse) -> None:
        # The client library's structure, not the message's: other names, and every field.
        _print(
            {
                "Header": render(response.header),
                "Events": [render(event) for event in response.events],
                "CompactRevision": response.compact_revision,
                "Canceled": response.canceled,
                "Created": response.created,
            }
        )

    def lease_grant(self, response: rpc_pb2.LeaseGrantResponse) -> None:
        _print(render(response.header) | {"ID": response.ID, "TTL": response.TTL, "Error": response.error})

    def lease_revoke(self, lease_id: int, response: rpc_pb2.LeaseRevokeResponse) -> None:
        _print(render(response))

    def lease_time_to_live(self, response: rpc_pb2.LeaseTimeToLiveResponse, *, keys: bool) -> None:
        attached = [base64.b64encode(key).decode() for key in response.keys] or None
        told = {"id": response.ID, "ttl": response.TTL, "granted-ttl": response.grantedTTL, "keys": attached}
        _print(render(response.header) | told)

    def lease_keep_alive(self, response: rpc_pb2.LeaseKeepAliveResponse) -> None:
        _print(render(response.header) | {"ID": response.ID, "TTL": response.TTL})

    def leases(self, response: rpc_pb2.LeaseLeasesResponse) -> None:
        _print(render(response.header) | {"leases": [{"id": one.ID} for one in response.leases]})

    def members(self, response: rpc_pb2.MemberListResponse) -> None:
        _print(render(response))

    def member_added(self, response: rpc_pb2.MemberAddResponse) -> None:
        _print(render(response))

    def member_removed(self, member: int, response: rpc_pb2.MemberRemoveResponse) -> None:
        _print(render(response))

    def member_updated(self, member: int, response: rpc_pb2.MemberUpdateResponse) -> None:
        _print(render(response))

    def member_promoted(self, member: int, response: rpc_pb2.MemberPromoteResponse) -> None:
        _print(render(response))

    def statuses(self, statuses: Sequence[Status]) -> None:
        _print([{"Endpoint": one.endpoint, "Status": render(one.status)} for one in statuses])

    def healths(self, healths: Sequence[Health]) -> None:
        rows: list[dict[str, object]] = []
        for one in healths:
            row: dict[str, object] = {"endpoint": one.endpoint, "health": not one.error, "took": one.took}
            rows.append(row | ({"error": one.error} if one.error else {}))
        _print(rows)

    def hashes(self, hashes: Sequence[HashKV]) -> None:
        _print([{"Endpoint": one.endpoint, "HashKV": render(one.answer)} for one in hashes])

    def alarms(self, response: rpc_pb2.AlarmResponse) -> None:
        _print(render(response))

    def snapshot(self, found: Snapshot) -> None:
        told = {
            "hash": found.hash,
            "revision": found.revision,
            "totalKey": found.records,
            "totalSize": found.size_bytes,
        }
        _print(told)

    def changed(self, response: "AuthChanged", text: str) -> None:
        _print(render(response))

    def permission_revoked(
        self, role: str, key: bytes, range_end: bytes, response: rpc_pb2.AuthRoleRevokePermissionResponse
    ) -> None:
        _print(render(response))

    def auth_status(self, response: rpc_pb2.AuthStatusResponse) -> None:
        _print(render(response))

    def user_get(self, name: str, response: rpc_pb2.AuthUserGetResponse) -> None:
        _print(render(response))

    def user_list(self, response: rpc_pb2.AuthUserListResponse) -> None:
        _print(render(response))

    def role_get(self, name: str, response: rpc_pb2.AuthRoleGetResponse) -> None:
        _print(render(response))

    def role_list(self, response: rpc_pb2.AuthRoleListResponse) -> None:
        _print(render(response))

    def move_leader(self, leader: int, target: int, response: rpc_pb2.MoveLeaderResponse) -> None:
        _print(render(response))


def _print(value: Mapping[str, object] | Sequence[object]) -> None:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    write_line(text.translate(_ESCAPES))


def render(message: Message) -> dict[str, object]:
    """A message as what json.dumps takes."""
    rendered: dict[str, object] = {}
    for field, value in message.ListFields():
        if field.message_type is not None:
            rendered[field.name] = [render(item) for item in value] if field.is_repeated else render(value)
        elif isinstance(value, bytes):
            rendered[field.name] = base64.b64encode(value).decode()
        else:
            rendered[field.name] = list(value) if field.is_repeated else value
    if isinstance(message, rpc_pb2.ResponseOp):
        # A union is an interface in Go, and shows the name of its field there.
        return {"Response": {"".join(map(str.title, name.split("_"))): value for name, value in rendered.items()}}
    return rendered
