"""The decoder of header blocks, held beside the library's."""

import hpack
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from raftkv.http.frames import ProtocolError
from raftkv.http.hpack import Decoder

LIMIT = 4000
QUICK = settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))

NAMES = st.one_of(st.sampled_from([b":method", b":path", b"grpc-timeout", b"cookie", b"x"]), st.binary(max_size=20))
VALUES = st.one_of(st.sampled_from([b"GET", b"/", b"5S", b""]), st.binary(max_size=60), st.integers(0, 1500).map(bytes))
HEADERS = st.lists(st.tuples(NAMES, VALUES, st.booleans()), max_size=12)
STRINGS = st.one_of(
    st.binary(max_size=12).map(lambda data: bytes((len(data),)) + data),
    st.binary(max_size=12).map(lambda data: bytes((0x80 | len(data),)) + data),
    st.sampled_from(
        [b"\x81\xff", b"\x81\x1f", b"\x84\xff\xff\xff\xff", b"\x82\x1f\xff", b"\x85", b"\x7f\x80\x01", b"\x80"]
    ),
)
PIECES = st.one_of(
    st.binary(max_size=6),
    st.integers(0, 255).map(lambda byte: bytes((byte,))),
    st.builds(lambda a, b: b"\x40" + a + b, STRINGS, STRINGS),
    st.builds(lambda a, b: b"\x0f\x01" + a + b, STRINGS, STRINGS),
    st.sampled_from(
        [b"\x20", b"\x3f\xe1\x1f", b"\x3f\xe2\x1f", b"\x3f\x81\x00", b"\xff\x00", b"\xbe", b"\x80", b"\x5e"]
    ),
)


class Pair:
    """Both decoders of one connection."""

    def __init__(self) -> None:
        self.ours = Decoder(LIMIT)
        self.library = hpack.Decoder(max_header_list_size=LIMIT)

    def decode(self, block: bytes) -> bool:
        """Decode with both, and say whether it was possible."""
        try:
            expected = [(bytes(name), bytes(value)) for name, value in self.library.decode(block, raw=True)]
        except (hpack.HPACKError, IndexError):
            expected = None
        try:
            found = self.ours.decode(block)
        except ProtocolError:
            found = None
        assert found == expected, block.hex()
        entries = [(bytes(name), bytes(value)) for name, value in self.library.header_table.dynamic_entries]
        assert found is None or list(self.ours._entries) == entries
        return found is not None


@QUICK
@given(st.lists(st.tuples(HEADERS, st.booleans(), st.sampled_from([None, 0, 50, 4096])), max_size=8))
def test_what_an_encoder_says(blocks: list[tuple[list[tuple[bytes, bytes, bool]], bool, int | None]]) -> None:
    encoder, pair = hpack.Encoder(), Pair()
    for headers, packed, size in blocks:
        if size is not None:
            encoder.header_table_size = size
        if not pair.decode(encoder.encode(headers, huffman=packed)):
            return


@QUICK
@given(st.lists(st.lists(PIECES, max_size=12).map(b"".join), max_size=6))
@example([b"\x40\x01n" + b"\x7f\xe1\x1f" + b"a" * 4064, b"\xbe"])
def test_what_no_encoder_says(blocks: list[bytes]) -> None:
    pair = Pair()
    for block in blocks:
        if not pair.decode(block):
            return


def test_sizes_of_the_table_count_against_no_header() -> None:
    """They once did: a block of many headers that was allowed by the letter was refused behind a change of size."""
    header = b"\x00\x01n\x7f" + bytes((LIMIT - 33 - 127 & 0x7F | 0x80, LIMIT - 33 - 127 >> 7)) + b"v" * (LIMIT - 33)
    assert Pair().decode(b"\x20\x3f\xe1\x1f" + header)
    with pytest.raises(ProtocolError):
        Decoder(LIMIT).decode(b"\x20" * 65)


def test_every_symbol_of_huffmans_code() -> None:
    encoder = hpack.Encoder()
    pair = Pair()
    for first in range(256):
        value = bytes((first, 255 - first, first, first ^ 1))
        assert pair.decode(encoder.encode([(b"x", value, True)], huffman=True))


def test_a_table_has_a_new_version_whenever_a_block_may_mean_something_else() -> None:
    decoder = Decoder(LIMIT)
    for block in (b"\x40\x01a\x01b", b"\x20", b"\x40\x01a\x01b", b"\x3f\xe1\x1f"):
        before = decoder.version
        decoder.decode(block)
        assert decoder.version > before
    before = decoder.version
    decoder.decode(b"\x82\x86\x84\x00\x01a\x01b")
    assert decoder.version == before


def test_a_block_of_nothing_but_sizes_is_refused() -> None:
    decoder = Decoder(LIMIT)
    assert decoder.decode(b"\x20\x3f\xe1\x1f\x82") == [(b":method", b"GET")]
    with pytest.raises(ProtocolError):
        decoder.decode(b"\x20" * 10_000)
