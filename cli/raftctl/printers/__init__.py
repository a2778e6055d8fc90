"""One printer per output form, a module each, behind `Printer`. A form that an answer lacks ends with exit status 4."""

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

from cli.raftctl import golang
from cli.raftctl.failure import BAD_ARGUMENTS, BAD_FEATURE, Failure

if TYPE_CHECKING:
    from raftkv.pb import rpc_pb2

    AuthChanged = (
        rpc_pb2.AuthUserAddResponse
        | rpc_pb2.AuthUserDeleteResponse
        | rpc_pb2.AuthUserChangePasswordResponse
        | rpc_pb2.AuthUserGrantRoleResponse
        | rpc_pb2.AuthUserRevokeRoleResponse
        | rpc_pb2.AuthRoleAddResponse
        | rpc_pb2.AuthRoleDeleteResponse
        | rpc_pb2.AuthRoleGrantPermissionResponse
        | rpc_pb2.AuthRoleRevokePermissionResponse
    )


class Status(NamedTuple):
    """What an endpoint says of itself."""

    endpoint: str
    status: "rpc_pb2.StatusResponse"


class HashKV(NamedTuple):
    """The hash of an endpoint's history."""

    endpoint: str
    answer: "rpc_pb2.HashKVResponse"


class Health(NamedTuple):
    """How a check went; healthy when `error` is empty."""

    endpoint: str
    took_nanoseconds: int
    error: str

    @property
    def took(self) -> str:
        return golang.format_duration(self.took_nanoseconds)


class Snapshot(NamedTuple):
    """What a snapshot holds; `hash` is what `endpoint hashkv` said when it was taken, after a compaction had ended."""

    hash: int
    revision: int
    records: int
    size_bytes: int


class Printer:
    """Prints answers; a subclass overrides what its form has."""

    form = ""
    streams = False
    """Whether a range may be printed page by page."""
    counts = False
    """Whether --count-only makes sense."""
    value_only = False
    count_only = False

    def __init__(self, *, hexadecimal: bool) -> None:
        self.hexadecimal = hexadecimal

    def able(self, answer: str) -> Self:
        """Itself, if the form has this answer, to be asked before anything is changed.

        Raises:
            Failure: it has not.
        """
        if getattr(type(self), answer) is getattr(Printer, answer):
            raise self._lacking()
        return self

    def choose(self, *, value_only: bool, count_only: bool) -> None:
        """Set what of a range is wanted.

        Raises:
            Failure: the form knows no such choice.
        """
        if count_only and not self.counts:
            raise Failure("--count-only is only for `--write-out=fields`", BAD_ARGUMENTS)
        if value_only and self.form != "simple":
            raise Failure("print-value-only is only for `--write-out=simple`", BAD_ARGUMENTS)
        self.value_only, self.count_only = value_only, count_only

    def put(self, response: "rpc_pb2.PutResponse") -> None:
        raise self._lacking()

    def range(self, response: "rpc_pb2.RangeResponse") -> None:
        raise self._lacking()

    def delete(self, response: "rpc_pb2.DeleteRangeResponse") -> None:
        raise self._lacking()

    def txn(self, response: "rpc_pb2.TxnResponse") -> None:
        raise self._lacking()

    def watch(self, response: "rpc_pb2.WatchResponse") -> None:
        raise self._lacking()

    def lease_grant(self, response: "rpc_pb2.LeaseGrantResponse") -> None:
        raise self._lacking()

    def lease_revoke(self, lease_id: int, response: "rpc_pb2.LeaseRevokeResponse") -> None:
        raise self._lacking()

    def lease_time_to_live(self, response: "rpc_pb2.LeaseTimeToLiveResponse", *, keys: bool) -> None:
        raise self._lacking()

    def lease_keep_alive(self, response: "rpc_pb2.LeaseKeepAliveResponse") -> None:
        raise self._lacking()

    def lease_gone(self, lease_id: int) -> None:
        """A lease that was kept alive is no more; only the simple form says so."""

    def leases(self, response: "rpc_pb2.LeaseLeasesResponse") -> None:
        raise self._lacking()

    def members(self, response: "rpc_pb2.MemberListResponse") -> None:
        raise self._lacking()

    def member_added(self, response: "rpc_pb2.MemberAddResponse") -> None:
        raise self._lacking()

    def member_removed(self, member: int, response: "rpc_pb2.MemberRemoveResponse") -> None:
        raise self._lacking()

    def member_updated(self, member: int, response: "rpc_pb2.MemberUpdateResponse") -> None:
        raise self._lacking()

    def member_promoted(self, member: int, response: "rpc_pb2.MemberPromoteResponse") -> None:
        raise self._lacking()

    def statuses(self, statuses: Sequence[Status]) -> None:
        raise self._lacking()

    def healths(self, healths: Sequence[Health]) -> None:
        raise self._lacking()

    def hashes(self, hashes: Sequence[HashKV]) -> None:
        raise self._lacking()

    def alarms(self, response: "rpc_pb2.AlarmResponse") -> None:
        raise self._lacking()

    def snapshot(self, found: Snapshot) -> None:
        raise self._lacking()

    def move_leader(self, leader: int, target: int, response: "rpc_pb2.MoveLeaderResponse") -> None:
        raise self._lacking()

    def changed(self, response: "AuthChanged", text: str) -> None:
        """Users or roles were changed, as the text says."""
        raise self._lacking()

    def permission_revoked(
        self, role: str, key: bytes, range_end: bytes, response: "rpc_pb2.AuthRoleRevokePermissionResponse"
    ) -> None:
        raise self._lacking()

    def auth_status(self, response: "rpc_pb2.AuthStatusResponse") -> None:
        raise self._lacking()

    def user_get(self, name: str, response: "rpc_pb2.AuthUserGetResponse") -> None:
        raise self._lacking()

    def user_list(self, response: "rpc_pb2.AuthUserListResponse") -> None:
        raise self._lacking()

    def role_get(self, name: str, response: "rpc_pb2.AuthRoleGetResponse") -> None:
        raise self._lacking()

    def role_list(self, response: "rpc_pb2.AuthRoleListResponse") -> None:
        raise self._lacking()

    def compaction(self, revision: int) -> None:
        """The same in every form."""
        write_line(f"compacted revision {revision}")

    def _lacking(self) -> Failure:
        return Failure(f"{self.form} not supported as output format", BAD_FEATURE)


def make_printer(form: str, *, hexadecimal: bool) -> Printer:
    """The printer of an output form; only its module is loaded."""
    from importlib import import_module

    kind: type[Printer] = getattr(import_module(f"cli.raftctl.printers.{form}"), form.capitalize())
    return kind(hexadecimal=hexadecimal)


def write(data: bytes) -> None:
    """Write bytes as they are: values need not be text."""
    sys.stdout.buffer.write(data)


def write_line(text: str) -> None:
    """Write a line as UTF-8, whatever the locale."""
    write(text.encode("utf-8", "surrogateescape") + b"\n")


def member_rows(response: "rpc_pb2.MemberListResponse") -> Iterable[tuple[str, ...]]:
    """id, state, name, peer URLs, client URLs, learner."""
    for member in response.members:
        yield (
            f"{member.ID:x}",
            "started" if member.name else "unstarted",
            member.name,
            ",".join(member.peerURLs),
            ",".join(member.clientURLs),
            str(member.isLearner).lower(),
        )


def snapshot_row(found: Snapshot) -> tuple[str, ...]:
    """hash, revision, records, size."""
    return f"{found.hash:x}", str(found.revision), str(found.records), golang.humanize(found.size_bytes)


def status_rows(statuses: Sequence[Status]) -> Iterable[tuple[str, ...]]:
    """endpoint, id, version, size, leader, learner, term, index, applied index, errors."""
    for endpoint, status in statuses:
        yield (
            endpoint,
            f"{status.header.member_id:x}",
            status.version,
            golang.humanize(status.dbSize),
            str(status.leader == status.header.member_id).lower(),
            str(status.isLearner).lower(),
            str(status.raftTerm),
            str(status.raftIndex),
            str(status.raftAppliedIndex),
            ", ".join(status.errors),
        )
