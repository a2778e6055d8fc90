"""Messages as JSON objects, as etcd's gateway maps them.

Answers: field names are those of the .proto files, 64-bit integers are strings, bytes are base64, and fields that have
their default value are left out.

Requests: field names in either spelling, integers as numbers or strings, enums as names or numbers, bytes in either
alphabet of base64 with or without padding; unknown fields are ignored, and null is the default value. protobuf's own
parser is not used: it drops what is not base64 and enum names it does not know, so that a request would silently mean
another key.
"""

import base64
import re
from functools import cache
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from raftkv.gateway.text import BadJson, Fraction, dumps, first_value

M = TypeVar("M", bound=Message)

MAX_DEPTH = 100
"""protobuf's own bound on nested messages."""

_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: ("int32", -(1 << 31), 1 << 31),
    FieldDescriptor.CPPTYPE_INT64: ("int64", -(1 << 63), 1 << 63),
    FieldDescriptor.CPPTYPE_UINT32: ("uint32", 0, 1 << 32),
    FieldDescriptor.CPPTYPE_UINT64: ("uint64", 0, 1 << 64),
}
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]*")
_TO_STANDARD = str.maketrans("-_", "+/", "\r\n")
_OBJECT = "map[string]json.RawMessage"


def encode(message: Message) -> bytes:
    """Write a message as one JSON object."""
    return dumps(json_format.MessageToDict(message, preserving_proto_field_name=True))


def decode(kind: type[M], body: bytes) -> M:
    """Read a message from the first JSON value of a body; an empty body is an empty message.

    Raises:
        BadJson: that value is not JSON, or not this message.
    """
    message = kind()
    _fill(message, first_value(body), MAX_DEPTH)
    return message


@cache
def _fields(kind: Descriptor) -> dict[str, FieldDescriptor]:
    return {name: field for field in kind.fields for name in (field.json_name, field.name)}


def _fill(message: Message, value: Any, depth: int) -> None:
    if value is None:
        return
    if not isinstance(value, dict):
        raise _mismatch(value, _OBJECT)
    if not depth:
        raise BadJson("exceeded max depth")
    fields = _fields(message.DESCRIPTOR)
    for name, item in value.items():
        field = fields.get(name)
        if field is None or item is None:
            continue
        if field.is_repeated:
            _extend(getattr(message, field.name), field, item, depth)
        elif field.message_type is not None:
            inner = getattr(message, field.name)
            inner.SetInParent()
            _fill(inner, item, depth - 1)
        else:
            setattr(message, field.name, _scalar(field, item))


def _extend(items: Any, field: FieldDescriptor, value: Any, depth: int) -> None:
    if not isinstance(value, list):
        raise _mismatch(value, "[]json.RawMessage")
    for item in value:
        if field.message_type is not None:
            _fill(items.add(), item, depth - 1)
        else:
            items.append(_scalar(field, item))


def _scalar(field: FieldDescriptor, value: Any) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return _enum(field, value)
    if kind in _INTEGERS:
        return _integer(value, *_INTEGERS[kind])
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        if type(value) is not bool:
            raise _mismatch(value, "bool")
        return value
    in_base64 = field.type == FieldDescriptor.TYPE_BYTES
    if type(value) is not str:
        raise _mismatch(value, "[]uint8" if in_base64 else "string")
    return _base64(value) if in_base64 else _without_surrogates(value)


def _enum(field: FieldDescriptor, value: Any) -> int:
    if type(value) is not str:
        return _integer(value, *_INTEGERS[FieldDescriptor.CPPTYPE_INT32])
    kind = field.enum_type
    assert kind is not None, "the field is an enum"
    known = kind.values_by_name.get(value)
    if known is None:
        package, _, name = kind.full_name.partition(".")
        raise BadJson(f'unknown value "{value}" for enum {package}.{name.replace(".", "_")}')
    return int(known.number)


def _integer(value: Any, name: str, low: int, end: int) -> int:
    if type(value) is str:
        if not _NUMBER.fullmatch(value):
            found = f"invalid character '{value[:1]}' looking for beginning of value"
            raise BadJson(found if value else "unexpected end of JSON input")
        value = int(value) if _INTEGER.fullmatch(value) and len(value) < 30 else Fraction(value)
    if type(value) is int and low <= value < end:
        return value
    raise _mismatch(value, name, number=True)


def _base64(value: str) -> bytes:
    text = value.translate(_TO_STANDARD)
    data = text.rstrip("=")
    valid = _BASE64.match(data)
    if valid is None or valid.end() < len(data):
        raise BadJson(f"illegal base64 data at input byte {valid.end() if valid else 0}")
    if len(data) % 4 == 1 or len(text) - len(data) not in (0, -len(data) % 4):
        raise BadJson(f"illegal base64 data at input byte {len(data) // 4 * 4}")
    return base64.b64decode(data + "=" * (-len(data) % 4))


def _without_surrogates(value: str) -> str:
    """Replace half a character, which JSON can write and UTF-8 cannot."""
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _mismatch(value: Any, wanted: str, *, number: bool = False) -> BadJson:
    """Say what is wrong with a value of the wrong kind, as Go does; a number is quoted, nothing else."""
    match value:
        case bool():
            found = "bool"
        case Fraction() | int():
            found = f"number {value}" if number else "number"
        case str():
            found = "string"
        case list():
            found = "array"
        case _:
            found = "object"
    return BadJson(f"json: cannot unmarshal {found} into Go value of type {wanted}")
