"""What a request is about, in words that may be kept: keys, names and numbers, never a value, password or token.

Of every message only the fields named here are told, so a field that is new is not.
"""

import base64
from functools import cache
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

_TOLD = frozenset(
    (
        *("key", "range_end", "keys", "limit", "count_only", "keys_only", "serializable", "revision", "start_revision"),
        *("lease", "ID", "TTL", "watch_id", "physical", "prev_kv", "ignore_value", "ignore_lease"),
        *("name", "role", "user", "permType", "no_password"),
        *("peerURLs", "isLearner", "linearizable", "memberID", "targetID", "action", "alarm"),
    )
)
_ENTERED = frozenset(
    (
        *("compare", "success", "failure", "request_range", "request_put", "request_delete_range", "request_txn"),
        *("create_request", "cancel_request", "progress_request", "leader", "perm", "options"),
    )
)
MAX_TEXT_BYTES = 1024
"""Of a longer key its beginning and its length are told."""
MAX_MESSAGES = 4096
"""Of a transaction that has more operations and compares, so many are told, and how many were left out."""

Fields = dict[str, object]


def request_type(path: str) -> type[Message]:
    """The class of an RPC's request, by its path /SERVICE/METHOD."""
    service, method = path[1:].split("/")
    found = descriptor_pool.Default().FindServiceByName(service).FindMethodByName(method)
    return GetMessageClass(found.input_type)


def named(kind: type[Message], request: bytes) -> Fields:
    """What an encoded request names."""
    try:
        return named_by(kind.FromString(request))
    except DecodeError:
        return {"malformed_bytes": len(request)}


def named_by(message: Message) -> Fields:
    """What a request names."""
    return _Telling().fields(message)


class _Telling:
    def __init__(self) -> None:
        self._left = MAX_MESSAGES

    def fields(self, message: Message) -> Fields:
        self._left -= 1
        told: Fields = {}
        for field, value in message.ListFields():
            name = field.name
            if name in _ENTERED and field.message_type is not None:
                self._enter(told, name, value)
            elif name not in _TOLD or field.message_type is not None:
                continue
            elif field.enum_type is not None:
                told[name] = _enum_name(field, value)
            elif isinstance(value, bytes):
                _tell_bytes(told, name, value)
            elif isinstance(value, str):
                _tell_bytes(told, name, value.encode())
            else:
                told[name] = value if isinstance(value, int) else list(map(str, value))
        # The first of an enumeration is not sent, and means as much as the others: READ, say.
        for name, first in _firsts(message.DESCRIPTOR):
            told.setdefault(name, first)
        return told

    def _enter(self, told: Fields, name: str, value: Any) -> None:
        if isinstance(value, Message):
            told[name] = self.fields(value) if self._left > 0 else "…"
            return
        found: list[Fields] = []
        for one in value:
            if self._left <= 0:
                told[name + "_omitted"] = len(value) - len(found)
                break
            found.append(self.fields(one))
        told[name] = found


@cache
def _firsts(kind: Any) -> list[tuple[str, str]]:
    """The fields of a message that are told and whose type is an enumeration, and what it means when none is sent."""
    fields = [field for field in kind.fields if field.enum_type is not None and field.name in _TOLD]
    return [(field.name, field.enum_type.values_by_number[0].name) for field in fields]


def _enum_name(field: Any, value: int) -> object:
    known = field.enum_type.values_by_number.get(value)
    return value if known is None else known.name


def _tell_bytes(told: Fields, name: str, value: bytes) -> None:
    """As text, or under another name as base64: neither can be taken for the other."""
    kept = value[:MAX_TEXT_BYTES]
    try:
        told[name] = kept.decode()
    except UnicodeDecodeError:
        told[f"{name}_base64"] = base64.b64encode(kept).decode()
    if len(kept) < len(value):
        told[f"{name}_bytes"] = len(value)
