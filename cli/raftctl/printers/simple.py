"""-w simple: for people and pipes."""

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cli.raftctl import golang
from cli.raftctl.printers import (
    HashKV,
    Health,
    Printer,
    Snapshot,
    Status,
    member_rows,
    snapshot_row,
    status_rows,
    write,
    write_line,
)
from raftkv.client.requests import prefix_end
from raftkv.pb import kv_pb2, rpc_pb2
from raftkv.pb.auth_pb2 import Permission

if TYPE_CHECKING:
    from cli.raftctl.printers import AuthChanged

READWRITE = Permission.READWRITE


class Simple(Printer):
    """Keys and values on lines of their own."""

    form = "simple"
    streams = True
    counts = True

    def put(self, response: rpc_pb2.PutResponse) -> None:
        write_line("OK")
        if response.HasField("prev_kv"):
            self._kvs([response.prev_kv])

    def range(self, response: rpc_pb2.RangeResponse) -> None:
        if self.count_only:
            write_line(str(response.count))
            return
        self._kvs(response.kvs)
        # A page is for whoever waits at the other end of the pipe.
        sys.stdout.flush()

    def delete(self, response: rpc_pb2.DeleteRangeResponse) -> None:
        write_line(str(response.deleted))
        self._kvs(response.prev_kvs)

    def txn(self, response: rpc_pb2.TxnResponse) -> None:
        write_line("SUCCESS" if response.succeeded else "FAILURE")
        for op in response.responses:
            write_line("")
            if op.HasField("response_put"):
                self.put(op.response_put)
            elif op.HasField("response_range"):
                self._kvs(op.response_range.kvs)
            elif op.HasField("response_delete_range"):
                self.delete(op.response_delete_range)

    def watch(self, response: rpc_pb2.WatchResponse) -> None:
        for event in response.events:
            write_line(kv_pb2.Event.EventType.Name(event.type))
            self._kvs([*([event.prev_kv] if event.HasField("prev_kv") else []), event.kv])

    def lease_grant(self, response: rpc_pb2.LeaseGrantResponse) -> None:
        write_line(f"lease {response.ID:016x} granted with TTL({response.TTL}s)")

    def lease_revoke(self, lease_id: int, response: rpc_pb2.LeaseRevokeResponse) -> None:
        write_line(f"lease {lease_id:016x} revoked")

    def lease_time_to_live(self, response: rpc_pb2.LeaseTimeToLiveResponse, *, keys: bool) -> None:
        head = f"lease {response.ID:016x} "
        if response.TTL == -1 and not response.grantedTTL:
            write_line(f"{head}already expired")
            return
        line = f"{head}granted with TTL({response.grantedTTL}s), remaining({response.TTL}s)".encode()
        if keys:
            line += b", attached keys([%s])" % b" ".join(response.keys)
        write(line + b"\n")

    def lease_keep_alive(self, response: rpc_pb2.LeaseKeepAliveResponse) -> None:
        write_line(f"lease {response.ID:016x} keepalived with TTL({response.TTL})")

    def lease_gone(self, lease_id: int) -> None:
        write_line(f"lease {lease_id:016x} expired or revoked.")

    def leases(self, response: rpc_pb2.LeaseLeasesResponse) -> None:
        write_line(f"found {len(response.leases)} leases")
        for one in response.leases:
            write_line(f"{one.ID:016x}")

    def members(self, response: rpc_pb2.MemberListResponse) -> None:
        for row in member_rows(response):
            write_line(", ".join(row))

    def member_added(self, response: rpc_pb2.MemberAddResponse) -> None:
        write_line(f"Member {response.member.ID:16x} added to cluster {response.header.cluster_id:16x}")

    def member_removed(self, member: int, response: rpc_pb2.MemberRemoveResponse) -> None:
        write_line(f"Member {member:16x} removed from cluster {response.header.cluster_id:16x}")

    def member_updated(self, member: int, response: rpc_pb2.MemberUpdateResponse) -> None:
        write_line(f"Member {member:16x} updated in cluster {response.header.cluster_id:16x}")

    def member_promoted(self, member: int, response: rpc_pb2.MemberPromoteResponse) -> None:
        write_line(f"Member {member:16x} promoted in cluster {response.header.cluster_id:16x}")

    def statuses(self, statuses: Sequence[Status]) -> None:
        for row in status_rows(statuses):
            write_line(", ".join(row))

    def healths(self, healths: Sequence[Health]) -> None:
        for one in healths:
            if one.error:
                said = f"{one.endpoint} is unhealthy: failed to commit proposal: {one.error}"
            else:
                said = f"{one.endpoint} is healthy: successfully committed proposal: took = {one.took}"
            # etcdctl says it there.
            print(said, file=sys.stderr)

    def hashes(self, hashes: Sequence[HashKV]) -> None:
        for one in hashes:
            write_line(f"{one.endpoint}, {one.answer.hash}")

    def alarms(self, response: rpc_pb2.AlarmResponse) -> None:
        for one in response.alarms:
            # etcd's rendering ends in a blank.
            write_line(f"memberID:{one.memberID} alarm:{rpc_pb2.AlarmType.Name(one.alarm)} ")

    def snapshot(self, found: Snapshot) -> None:
        write_line(", ".join(snapshot_row(found)))

    def move_leader(self, leader: int, target: int, response: rpc_pb2.MoveLeaderResponse) -> None:
        write_line(f"Leadership transferred from {leader:x} to {target:x}")

    def changed(self, response: "AuthChanged", text: str) -> None:
        write_line(text)

    def permission_revoked(
        self, role: str, key: bytes, range_end: bytes, response: rpc_pb2.AuthRoleRevokePermissionResponse
    ) -> None:
        what = b"range " + _span(key, range_end) if range_end else b"key " + key
        write(b"Permission of %s is revoked from role %s\n" % (what, role.encode("utf-8", "surrogateescape")))

    def auth_status(self, response: rpc_pb2.AuthStatusResponse) -> None:
        write_line(f"Authentication Status: {str(response.enabled).lower()}")
        write_line(f"AuthRevision: {response.authRevision}")

    def user_get(self, name: str, response: rpc_pb2.AuthUserGetResponse) -> None:
        write_line(f"User: {name}")
        write_line("".join(["Roles:", *(f" {role}" for role in response.roles)]))

    def user_list(self, response: rpc_pb2.AuthUserListResponse) -> None:
        for name in response.users:
            write_line(name)

    def role_get(self, name: str, response: rpc_pb2.AuthRoleGetResponse) -> None:
        write_line(f"Role {name}")
        for title, kinds in (("KV Read:", (Permission.READ, READWRITE)), ("KV Write:", (Permission.WRITE, READWRITE))):
            write_line(title)
            for one in response.perm:
                if one.permType in kinds:
                    write(b"\t" + _permitted(one) + b"\n")

    def role_list(self, response: rpc_pb2.AuthRoleListResponse) -> None:
        for name in response.roles:
            write_line(name)

    def _kvs(self, kvs: Iterable[kv_pb2.KeyValue]) -> None:
        encode = golang.hexadecimal if self.hexadecimal else bytes
        lines = []
        for kv in kvs:
            if not self.value_only:
                lines += [encode(kv.key), b"\n"]
            lines += [encode(kv.value), b"\n"]
        write(b"".join(lines))


def _span(key: bytes, range_end: bytes) -> bytes:
    # etcdctl leaves the bracket open.
    return b"[%s, %s" % (key, b"<open ended>" if range_end == b"\0" else range_end + b")")


def _permitted(permission: Permission) -> bytes:
    key, range_end = permission.key, permission.range_end
    if not range_end:
        return key
    suffix = b" (prefix %s)" % key if range_end == prefix_end(key) else b""
    return _span(key, range_end) + suffix
