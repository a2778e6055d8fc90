"""One printer per output form. A printer that lacks an answer's form says so with exit status 4."""

import base64
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.message import Message

from cli.raftctl import golang
from cli.raftctl.failure import BAD_FEATURE, Failure
from raftkv.pb import kv_pb2, rpc_pb2

FORMATS = ("simple", "fields", "json", "protobuf", "table")

StatusOf = tuple[str, rpc_pb2.StatusResponse]
HealthOf = tuple[str, bool, float, str]


def make_printer(form: str, *, hexadecimal: bool = False) -> "Printer":
    """The printer of an output form."""
    return {
        "simple": Simple,
        "fields": Fields,
        "json": Json,
        "protobuf": Protobuf,
        "table": Table,
    }[form](hexadecimal=hexadecimal)


class Printer:
    """Prints answers; subclasses define the forms they have."""

    form = ""
    streams = False
    """Whether a range may be printed page by page."""

    def __init__(self, *, hexadecimal: bool) -> None:
        self._hexadecimal = hexadecimal

    def unsupported(self) -> Failure:
        return Failure(f"{self.form} not supported as output format", BAD_FEATURE)

    def put(self, response: rpc_pb2.PutResponse) -> None:
        raise self.unsupported()

    def range(self, response: rpc_pb2.RangeResponse, *, value_only: bool, count_only: bool) -> None:
        raise self.unsupported()

    def delete(self, response: rpc_pb2.DeleteRangeResponse) -> None:
        raise self.unsupported()

    def txn(self, response: rpc_pb2.TxnResponse) -> None:
        raise self.unsupported()

    def compaction(self, response: rpc_pb2.CompactionResponse, revision: int) -> None:
        print(f"compacted revision {revision}")

    def members(self, response: rpc_pb2.MemberListResponse) -> None:
        raise self.unsupported()

    def statuses(self, statuses: Sequence[StatusOf]) -> None:
        raise self.unsupported()

    def healths(self, healths: Sequence[HealthOf]) -> None:
        raise self.unsupported()


def write(data: bytes) -> None:
    """Write bytes as they are: values need not be text."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


class Simple(Printer):
    """For people and pipes."""

    form = "simple"
    streams = True

    def put(self, response: rpc_pb2.PutResponse) -> None:
        print("OK")
        if response.HasField("prev_kv"):
            self._kvs([response.prev_kv])

    def range(self, response: rpc_pb2.RangeResponse, *, value_only: bool, count_only: bool) -> None:
        if count_only:
            print(response.count)
        self._kvs(response.kvs, value_only=value_only)

    def delete(self, response: rpc_pb2.DeleteRangeResponse) -> None:
        print(response.deleted)
        self._kvs(response.prev_kvs)

    def txn(self, response: rpc_pb2.TxnResponse) -> None:
        print("SUCCESS" if response.succeeded else "FAILURE")
        for op in response.responses:
            print()
            if op.HasField("response_put"):
                self.put(op.response_put)
            elif op.HasField("response_range"):
                self._kvs(op.response_range.kvs)
            elif op.HasField("response_delete_range"):
                self.delete(op.response_delete_range)

    def members(self, response: rpc_pb2.MemberListResponse) -> None:
        for row in _member_rows(response):
            print(", ".join(row))

    def statuses(self, statuses: Sequence[StatusOf]) -> None:
        for row in _status_rows(statuses):
            print(", ".join(row))

    def healths(self, healths: Sequence[HealthOf]) -> None:
        for endpoint, healthy, took, error in healths:
            if healthy:
                text = f"{endpoint} is healthy: successfully committed proposal: took = {golang.format_duration(took)}"
            else:
                text = f"{endpoint} is unhealthy: failed to commit proposal: {error}"
            print(text, file=sys.stderr)

    def _kvs(self, kvs: Iterable[kv_pb2.KeyValue], *, value_only: bool = False) -> None:
        encode = golang.hexadecimal if self._hexadecimal else bytes
        lines = []
        for kv in kvs:
            if not value_only:
                lines += [encode(kv.key), b"\n"]
            lines += [encode(kv.value), b"\n"]
        write(b"".join(lines))


class Fields(Printer):
    """One quoted name and its value a line."""

    form = "fields"

    def put(self, response: rpc_pb2.PutResponse) -> None:
        self._header(response.header)
        if response.HasField("prev_kv"):
            self._kv("Prev", response.prev_kv)

    def range(self, response: rpc_pb2.RangeResponse, *, value_only: bool, count_only: bool) -> None:
        self._header(response.header)
        for kv in response.kvs:
            self._kv("", kv)
        self._field("More", response.more)
        self._field("Count", response.count)

    def delete(self, response: rpc_pb2.DeleteRangeResponse) -> None:
        self._header(response.header)
        self._field("Deleted", response.deleted)
        for kv in response.prev_kvs:
            self._kv("Prev", kv)

    def txn(self, response: rpc_pb2.TxnResponse) -> None:
        self._header(response.header)
        self._field("Succeeded", response.succeeded)
        for op in response.responses:
            if op.HasField("response_put"):
                self.put(op.response_put)
            elif op.HasField("response_range"):
                self.range(op.response_range, value_only=False, count_only=False)
            elif op.HasField("response_delete_range"):
                self.delete(op.response_delete_range)

    def compaction(self, response: rpc_pb2.CompactionResponse, revision: int) -> None:
        print(f"compacted revision {revision}")

    def members(self, response: rpc_pb2.MemberListResponse) -> None:
        self._header(response.header)
        for member in response.members:
            self._field("ID", member.ID)
            print(f'"Name" : {golang.quote(member.name.encode())}')
            for url in member.peerURLs:
                print(f'"PeerURL" : {golang.quote(url.encode())}')
            for url in member.clientURLs:
                print(f'"ClientURL" : {golang.quote(url.encode())}')
            self._field("IsLearner", member.isLearner)
            print()

    def statuses(self, statuses: Sequence[StatusOf]) -> None:
        for endpoint, status in statuses:
            self._header(status.header)
            print(f'"Version" : {golang.quote(status.version.encode())}')
            self._field("DBSize", status.dbSize)
            self._field("Leader", status.leader)
            self._field("IsLearner", status.isLearner)
            self._field("RaftIndex", status.raftIndex)
            self._field("RaftTerm", status.raftTerm)
            self._field("RaftAppliedIndex", status.raftAppliedIndex)
            print(f'"Errors" : [{" ".join(status.errors)}]')
            print(f'"Endpoint" : {golang.quote(endpoint.encode())}')
            print()

    def healths(self, healths: Sequence[HealthOf]) -> None:
        for endpoint, healthy, took, error in healths:
            print(f'"Endpoint" : {golang.quote(endpoint.encode())}')
            self._field("Health", healthy)
            print(f'"Took" : {golang.format_duration(took)}')
            print(f'"Error" : {error}')
            print()

    def _header(self, header: rpc_pb2.ResponseHeader) -> None:
        self._field("ClusterID", header.cluster_id)
        self._field("MemberID", header.member_id)
        self._field("Revision", header.revision)
        self._field("RaftTerm", header.raft_term)

    def _kv(self, prefix: str, kv: kv_pb2.KeyValue) -> None:
        encode = golang.hexadecimal if self._hexadecimal else bytes
        print(f'"{prefix}Key" : {golang.quote(encode(kv.key))}')
        self._field(prefix + "CreateRevision", kv.create_revision)
        self._field(prefix + "ModRevision", kv.mod_revision)
        self._field(prefix + "Version", kv.version)
        print(f'"{prefix}Value" : {golang.quote(encode(kv.value))}')
        self._field(prefix + "Lease", kv.lease)

    def _field(self, name: str, value: int | bool) -> None:
        print(f'"{name}" : {str(value).lower()}')


class Json(Printer):
    """Go's rendering of the messages: snake case names, base64 bytes, zero values left out."""

    form = "json"

    def put(self, response: rpc_pb2.PutResponse) -> None:
        self._print(to_json(response))

    def range(self, response: rpc_pb2.RangeResponse, *, value_only: bool, count_only: bool) -> None:
        self._print(to_json(response))

    def delete(self, response: rpc_pb2.DeleteRangeResponse) -> None:
        self._print(to_json(response))

    def txn(self, response: rpc_pb2.TxnResponse) -> None:
        self._print(to_json(response))

    def compaction(self, response: rpc_pb2.CompactionResponse, revision: int) -> None:
        print(f"compacted revision {revision}")

    def members(self, response: rpc_pb2.MemberListResponse) -> None:
        self._print(to_json(response))

    def statuses(self, statuses: Sequence[StatusOf]) -> None:
        self._print([{"Endpoint": endpoint, "Status": to_json(status)} for endpoint, status in statuses])

    def healths(self, healths: Sequence[HealthOf]) -> None:
        rows: list[dict[str, Any]] = []
        for endpoint, healthy, took, error in healths:
            row: dict[str, Any] = {"endpoint": endpoint, "health": healthy, "took": golang.format_duration(took)}
            rows.append(row | ({"error": error} if error else {}))
        self._print(rows)

    def _print(self, value: Any) -> None:
        print(json.dumps(value, separators=(",", ":"), ensure_ascii=False))


class Protobuf(Printer):
    """The answer's own bytes."""

    form = "protobuf"

    def put(self, response: rpc_pb2.PutResponse) -> None:
        write(response.SerializeToString())

    def range(self, response: rpc_pb2.RangeResponse, *, value_only: bool, count_only: bool) -> None:
        write(response.SerializeToString())

    def delete(self, response: rpc_pb2.DeleteRangeResponse) -> None:
        write(response.SerializeToString())

    def txn(self, response: rpc_pb2.TxnResponse) -> None:
        write(response.SerializeToString())

    def members(self, response: rpc_pb2.MemberListResponse) -> None:
        write(response.SerializeToString())


class Table(Printer):
    """Boxed columns, for lists."""

    form = "table"

    def members(self, response: rpc_pb2.MemberListResponse) -> None:
        _print_table(("ID", "STATUS", "NAME", "PEER ADDRS", "CLIENT ADDRS", "IS LEARNER"), list(_member_rows(response)))

    def statuses(self, statuses: Sequence[StatusOf]) -> None:
        names = ("ENDPOINT", "ID", "VERSION", "DB SIZE", "IS LEADER", "IS LEARNER")
        _print_table((*names, "RAFT TERM", "RAFT INDEX", "RAFT APPLIED INDEX", "ERRORS"), list(_status_rows(statuses)))

    def healths(self, healths: Sequence[HealthOf]) -> None:
        rows = [
            (endpoint, str(healthy).lower(), golang.format_duration(took), error)
            for endpoint, healthy, took, error in healths
        ]
        _print_table(("ENDPOINT", "HEALTH", "TOOK", "ERROR"), rows)


def to_json(message: Message) -> dict[str, Any]:
    """A message as Go's encoding/json renders etcd's structures."""
    rendered: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.message_type is not None:
            value = [to_json(item) for item in value] if field.is_repeated else to_json(value)
        elif isinstance(value, bytes):
            value = base64.b64encode(value).decode()
        elif field.is_repeated:
            value = list(value)
        rendered[field.name] = value
    if isinstance(message, rpc_pb2.ResponseOp):
        return {"Response": {"".join(map(str.title, name.split("_"))): value for name, value in rendered.items()}}
    return rendered


def _member_rows(response: rpc_pb2.MemberListResponse) -> Iterable[tuple[str, ...]]:
    for member in response.members:
        yield (
            f"{member.ID:x}",
            "started" if member.name else "unstarted",
            member.name,
            ",".join(member.peerURLs),
            ",".join(member.clientURLs),
            str(member.isLearner).lower(),
        )


def _status_rows(statuses: Sequence[StatusOf]) -> Iterable[tuple[str, ...]]:
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


def _print_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    line = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    print(line)
    print("|" + "|".join(f" {_center(name, width)} " for name, width in zip(names, widths, strict=True)) + "|")
    print(line)
    for row in rows:
        print("|" + "|".join(f" {cell:>{width}} " for cell, width in zip(row, widths, strict=True)) + "|")
    print(line)


def _center(text: str, width: int) -> str:
    left = (width - len(text)) // 2
    return " " * left + text + " " * (width - len(text) - left)
