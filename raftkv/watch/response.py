"""Watch responses as length-prefixed messages (`etcdserverpb.WatchResponse`), assembled from encoded parts."""

import struct

from raftkv.mvcc.encoding import bytes_field, int_field
from raftkv.watch.event import Body

_PREFIX = struct.Struct(">BI")

NO_ID = -1
"""The watch id of answers that concern no watcher or all of a stream."""

MAX_HEAD_BYTES = 128
"""No head is longer, so a response whose events are this far below a limit is within it."""

_CREATED = b"\x18\x01"
_CANCELED = b"\x20\x01"
_FRAGMENT = b"\x38\x01"


def head(body: Body, watch_id: int) -> bytes:
    """What comes before the events: the prefix, the header and the watch id."""
    found = body.heads.get(watch_id)
    if found is None:
        fields = body.header + int_field(b"\x10", watch_id)
        found = body.heads[watch_id] = _PREFIX.pack(0, len(fields) + body.size) + fields
    return found


def message(header: bytes, watch_id: int, rest: bytes = b"") -> bytes:
    """A whole response."""
    fields = header + int_field(b"\x10", watch_id) + rest
    return _PREFIX.pack(0, len(fields)) + fields


def created(header: bytes, watch_id: int) -> bytes:
    """The answer to a watcher that was created."""
    return message(header, watch_id, _CREATED)


def refused(header: bytes, reason: str) -> bytes:
    """The answer to a watcher that was not."""
    return message(header, NO_ID, _CREATED + _CANCELED + bytes_field(b"\x32", reason.encode()))


def canceled(header: bytes, watch_id: int, compact_revision: int = 0, reason: str = "") -> bytes:
    """The last answer of a watcher; with a compact revision, the reason is that its history is gone."""
    rest = _CANCELED + int_field(b"\x28", compact_revision)
    return message(header, watch_id, rest + bytes_field(b"\x32", reason.encode()) if reason else rest)


def fragments(body: Body, watch_id: int, max_bytes: int) -> list[bytes]:
    """Cut a response between events, so that each part is smaller than `max_bytes` if its events allow it."""
    fields = len(body.header) + len(int_field(b"\x10", watch_id))
    if fields + body.size < max_bytes or len(body.parts) == 1:
        return [message(body.header, watch_id, body.data)]
    base = fields + len(_FRAGMENT)
    groups: list[list[bytes]] = []
    size = max_bytes
    for event in body.parts:
        if size + len(event) >= max_bytes:
            groups.append([])
            size = base
        groups[-1].append(event)
        size += len(event)
    last = groups.pop()
    parts = [message(body.header, watch_id, _FRAGMENT + b"".join(group)) for group in groups]
    return [*parts, message(body.header, watch_id, b"".join(last))]
