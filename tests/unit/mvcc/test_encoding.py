"""Integers on the wire, against protobuf's own."""

import pytest

from raftkv.mvcc.encoding import decode_varint, varint
from raftkv.pb import kv_pb2

EDGES = sorted({min(max(0, (1 << bits) + step), (1 << 63) - 1) for bits in range(0, 64, 7) for step in (-1, 0, 1)})


@pytest.mark.parametrize("value", [*EDGES, -1, -(1 << 63)])
def test_integers_are_encoded_as_protobuf_does(value: int) -> None:
    encoded = varint(value)
    assert kv_pb2.KeyValue.FromString(b"\x18" + encoded).mod_revision == value
    if value:
        assert kv_pb2.KeyValue(mod_revision=value).SerializeToString() == b"\x18" + encoded
    assert decode_varint(b"x" + encoded + b"\xff", 1) == (value & ((1 << 64) - 1), 1 + len(encoded))
