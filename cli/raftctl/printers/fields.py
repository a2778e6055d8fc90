"""-w fields: one quoted name and its value a line."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cli.raftctl import golang
from cli.raftctl.printers import HashKV, Health, Printer, Snapshot, Status, write_line
from raftkv.pb import kv_pb2, rpc_pb2
from raftkv.pb.auth_pb2 import Permission

if TYPE_CHECKING:
    from cli.raftctl.printers import AuthChanged


def _line(name: str, value: str | int | bool) -> None:
    write_line(f'"{name}" : {str(value).lower() if isinstance(value, bool) else value}')


def _text(name: str, value: str | bytes) -> None:
    _line(name, golang.quote(value.encode() if isinstance(value, str) else value))


def _header(header: rpc_pb2.ResponseHeader) -> None:
    _line("ClusterID", header.cluster_id)
    _line("MemberID", header.member_id)
    _line("Revision", header.revision)
    _line("RaftTerm", header.raft_term)


def _kv(prefix: str, kv: kv_pb2.KeyValue) -> None:
    _text(prefix + "Key", kv.key)
    _line(prefix + "CreateRevision", kv.create_revision)
    _line(prefix + "ModRevision", kv.mod_revision)
    _line(prefix + "Version", kv.version)
    _text(prefix + "Value", kv.value)
    _line(prefix + "Lease", kv.lease)


class Fields(Printer):
    """Go's names of the fields; --hex changes nothing here."""

    form = "fields"
    counts = True

    def put(self, response: rpc_pb2.PutResponse) -> None:
        _header(response.header)
        if response.HasField("prev_kv"):
            _kv("Prev", response.prev_kv)

    def range(self, response: rpc_pb2.RangeResponse) -> None:
        _header(response.header)
        for kv in response.kvs:
            _kv("", kv)
        _line("More", response.more)
        _line("Count", response.count)

    def delete(self, response: rpc_pb2.DeleteRangeResponse) -> None:
        _header(response.header)
        _line("Deleted", response.deleted)
        for kv in response.prev_kvs:
            _kv("Prev", kv)

    def txn(self, response: rpc_pb2.TxnResponse) -> None:
        _header(response.header)
        _line("Succeeded", response.succeeded)
        for op in response.responses:
            if op.HasField("response_put"):
                self.put(op.response_put)
            elif op.HasField("response_range"):
                self.range(op.response_range)
            elif op.HasField("response_delete_range"):
                self.delete(op.response_delete_range)

    def watch(self, response: rpc_pb2.WatchResponse) -> None:
        _header(response.header)
        for event in response.events:
            _line("Type", kv_pb2.Event.EventType.Name(event.type))
            if event.HasField("prev_kv"):
                _kv("Prev", event.prev_kv)
            _kv("", event.kv)

    def lease_grant(self, response: rpc_pb2.LeaseGrantResponse) -> None:
        self._lease(response.header, response.ID, response.TTL)

    def lease_revoke(self, lease_id: int, response: rpc_pb2.LeaseRevokeResponse) -> None:
        _header(response.header)

    def lease_time_to_live(self, response: rpc_pb2.LeaseTimeToLiveResponse, *, keys: bool) -> None:
        self._lease(response.header, response.ID, response.TTL)
        _line("GrantedTTL", response.grantedTTL)
        for key in response.keys:
            _text("Key", key)

    def lease_keep_alive(self, response: rpc_pb2.LeaseKeepAliveResponse) -> None:
        self._lease(response.header, response.ID, response.TTL)

    def leases(self, response: rpc_pb2.LeaseLeasesResponse) -> None:
        _header(response.header)
        for one in response.leases:
            _line("ID", one.ID)

    def _lease(self, header: rpc_pb2.ResponseHeader, lease_id: int, ttl: int) -> None:
        _header(header)
        _line("ID", lease_id)
        _line("TTL", ttl)

    def members(self, response: rpc_pb2.MemberListResponse) -> None:
        _header(response.header)
        for member in response.members:
            _line("ID", member.ID)
            _text("Name", member.name)
            for url in member.peerURLs:
                _text("PeerURL", url)
            for url in member.clientURLs:
                _text("ClientURL", url)
            _line("IsLearner", member.isLearner)
            write_line("")

    def statuses(self, statuses: Sequence[Status]) -> None:
        for endpoint, status in statuses:
            _header(status.header)
            _text("Version", status.version)
            _line("DBSize", status.dbSize)
            _line("Leader", status.leader)
            _line("IsLearner", status.isLearner)
            _line("RaftIndex", status.raftIndex)
            _line("RaftTerm", status.raftTerm)
            _line("RaftAppliedIndex", status.raftAppliedIndex)
            _line("Errors", f"[{' '.join(status.errors)}]")
            _text("Endpoint", endpoint)
            write_line("")

    def alarms(self, response: rpc_pb2.AlarmResponse) -> None:
        _header(response.header)
        for one in response.alarms:
            _line("MemberID", one.memberID)
            _line("AlarmType", rpc_pb2.AlarmType.Name(one.alarm))
            write_line("")

    # Of users etcdctl has no fields.

    def changed(self, response: "AuthChanged", text: str) -> None:
        _header(response.header)

    def permission_revoked(
        self, role: str, key: bytes, range_end: bytes, response: rpc_pb2.AuthRoleRevokePermissionResponse
    ) -> None:
        _header(response.header)

    def auth_status(self, response: rpc_pb2.AuthStatusResponse) -> None:
        _header(response.header)
        _line("Enabled", response.enabled)
        _line("AuthRevision", response.authRevision)

    def role_get(self, name: str, response: rpc_pb2.AuthRoleGetResponse) -> None:
        _header(response.header)
        for one in response.perm:
            # The second blank is etcdctl's.
            _line("PermType", f" {Permission.Type.Name(one.permType)}")
            _text("Key", one.key)
            _text("RangeEnd", one.range_end)

    def role_list(self, response: rpc_pb2.AuthRoleListResponse) -> None:
        _header(response.header)
        write_line(" ".join(['"Roles" :', *(golang.quote(name.encode()) for name in response.roles)]))

    def snapshot(self, found: Snapshot) -> None:
        _line("Hash", found.hash)
        _line("Revision", found.revision)
        _line("Keys", found.records)
        _line("Size", found.size_bytes)

    def hashes(self, hashes: Sequence[HashKV]) -> None:
        for one in hashes:
            _header(one.answer.header)
            _text("Endpoint", one.endpoint)
            _line("Hash", one.answer.hash)
            write_line("")

    def healths(self, healths: Sequence[Health]) -> None:
        for one in healths:
            _text("Endpoint", one.endpoint)
            _line("Health", not one.error)
            _line("Took", one.took)
            _line("Error", one.error)
            write_line("")
