"""-w protobuf: the answer's own bytes."""

from typing import TYPE_CHECKING

from google.protobuf.message import Message

from cli.raftctl.printers import Printer, write
from raftkv.pb import rpc_pb2

if TYPE_CHECKING:
    from cli.raftctl.printers import AuthChanged


class Protobuf(Printer):
    """The message as it came; lists over several endpoints are no message."""

    form = "protobuf"

    def alarms(self, response: rpc_pb2.AlarmResponse) -> None:
        _write(response)

    def put(self, response: rpc_pb2.PutResponse) -> None:
        _write(response)

    def range(self, response: rpc_pb2.RangeResponse) -> None:
        _write(response)

    def delete(self, response: rpc_pb2.DeleteRangeResponse) -> None:
        _write(response)

    def txn(self, response: rpc_pb2.TxnResponse) -> None:
        _write(response)

    def watch(self, response: rpc_pb2.WatchResponse) -> None:
        # etcdctl's client keeps the id of the watcher to itself.
        _write(
            rpc_pb2.WatchResponse(
                header=response.header,
                canceled=response.canceled,
                compact_revision=response.compact_revision,
                events=response.events,
            )
        )

    # Of these etcdctl writes the header alone.

    def lease_grant(self, response: rpc_pb2.LeaseGrantResponse) -> None:
        _write(response.header)

    def lease_time_to_live(self, response: rpc_pb2.LeaseTimeToLiveResponse, *, keys: bool) -> None:
        _write(response.header)

    def lease_keep_alive(self, response: rpc_pb2.LeaseKeepAliveResponse) -> None:
        _write(response.header)

    def leases(self, response: rpc_pb2.LeaseLeasesResponse) -> None:
        _write(response.header)

    def changed(self, response: "AuthChanged", text: str) -> None:
        _write(response)

    def permission_revoked(
        self, role: str, key: bytes, range_end: bytes, response: rpc_pb2.AuthRoleRevokePermissionResponse
    ) -> None:
        _write(response)

    def auth_status(self, response: rpc_pb2.AuthStatusResponse) -> None:
        _write(response)

    def user_get(self, name: str, response: rpc_pb2.AuthUserGetResponse) -> None:
        _write(response)

    def user_list(self, response: rpc_pb2.AuthUserListResponse) -> None:
        _write(response)

    def role_get(self, name: str, response: rpc_pb2.AuthRoleGetResponse) -> None:
        _write(response)

    def role_list(self, response: rpc_pb2.AuthRoleListResponse) -> None:
        _write(response)

    def members(self, response: rpc_pb2.MemberListResponse) -> None:
        _write(response)


def _write(message: Message) -> None:
    write(message.SerializeToString())
