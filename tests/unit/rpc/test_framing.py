"""Messages, timeouts and texts as gRPC puts them on the wire."""

import gzip
import random

import pytest

from raftkv.rpc.framing import (
    PIECE_BYTES,
    Deframer,
    Gathered,
    Large,
    frame,
    frame_answer,
    parse_timeout,
    percent_encode,
    whole_message,
)
from raftkv.status import Code, StatusError


def test_messages_are_cut_wherever_the_bytes_break() -> None:
    body = frame(b"one", 9) + frame([b"t", b"wo"], 9) + frame(b"", 9) + frame([], 9)
    for step in range(1, len(body) + 1):
        deframer = Deframer(b"", 100)
        messages: list[bytes] = []
        for start in range(0, len(body), step):
            messages += deframer.feed(body[start : start + step])
        deframer.finish()
        assert messages == [b"one", b"two", b"", b""]


@pytest.mark.parametrize(
    ("encoding", "body", "code", "text"),
    [
        (b"", b"\x00\x00\x00\x00\x05ab", Code.INTERNAL, "ended inside a message"),
        (b"", b"\x00\x00", Code.INTERNAL, "ended inside a message"),
        (b"", b"\x01\x00\x00\x00\x01a", Code.INTERNAL, "compressed flag set"),
        (b"identity", b"\x01\x00\x00\x00\x01a", Code.INTERNAL, "compressed flag set"),
        (b"gzip", b"\x01\x00\x00\x00\x01a", Code.INTERNAL, "failed to decompress"),
        (b"", b"\x02\x00\x00\x00\x01a", Code.INTERNAL, "unexpected payload format 2"),
        (
            b"",
            b"\x00\xff\xff\xff\xff",
            Code.RESOURCE_EXHAUSTED,
            "received message larger than max (4294967295 vs. 100)",
        ),
        (b"", b"\x00\x00\x00\x00\x65", Code.RESOURCE_EXHAUSTED, "received message larger than max (101 vs. 100)"),
    ],
)
def test_broken_frames_are_refused(encoding: bytes, body: bytes, code: Code, text: str) -> None:
    deframer = Deframer(encoding, 100)

    def read() -> None:
        deframer.feed(body)
        deframer.finish()

    with pytest.raises(StatusError) as caught:
        read()
    assert caught.value.code is code
    assert text in caught.value.message


def gathered(*parts: list[bytes]) -> Gathered:
    message = Gathered(b"header")
    for part in parts:
        message.add(part)
    return message


@pytest.mark.parametrize(
    "parts",
    [
        [[b"k%d" % number * 100 for number in range(2000)]] * 5,
        [[b"x" * (PIECE_BYTES - 10)], [b""]],
        [[b"x" * PIECE_BYTES] * 3, [], [b"tail"]],
        [[b"small"] * 1000 + [random.randbytes(5 * PIECE_BYTES)] + [b"small"] * 1000, [b"", b"tail"]],
        [[random.randbytes(random.randrange(20_000)) for _ in range(200)] for _ in range(5)],
    ],
    ids=["even", "just too large", "large", "one is larger than all", "any"],
)
def test_a_large_answer_is_never_there_as_a_whole_and_its_pieces_are_all_of_it(parts: list[list[bytes]]) -> None:
    message = gathered(*parts)
    body = b"".join(message)
    assert len(body) == message.bytes
    whole = frame(body, 1 << 30)
    for answer in (frame_answer(message, 1 << 30), frame_answer([body], 1 << 30), frame_answer(body, 1 << 30)):
        assert isinstance(answer, Large)
        assert len(answer) == len(whole)
        pieces = list(answer.pieces())
        assert b"".join(pieces) == whole
        assert max(map(len, pieces)) <= 2 * PIECE_BYTES
        assert not list(answer.pieces()), "what was sent is let go"


def test_an_answer_of_a_piece_is_joined_at_once_and_none_is_larger_than_allowed() -> None:
    fits = b"x" * (PIECE_BYTES - 11)
    for message in (b"header" + fits, [b"header", fits], gathered([fits])):
        assert frame_answer(message, 1 << 30) == frame(b"header" + fits, 1 << 30)
    for message in (b"header" + fits, [b"header", fits], gathered([fits])):
        with pytest.raises(StatusError, match=rf"larger than max \({PIECE_BYTES - 5} vs. 9\)"):
            frame_answer(message, 9)


def test_a_message_of_exactly_the_limit_passes() -> None:
    assert Deframer(b"", 100).feed(frame(b"x" * 100, 100)) == [b"x" * 100]
    assert whole_message(frame(b"x" * 100, 100), 100) == b"x" * 100
    assert whole_message(frame(b"x" * 101, 101), 100) is None
    with pytest.raises(StatusError, match=r"trying to send message larger than max \(101 vs. 100\)"):
        frame([b"x" * 100, b"x"], 100)


def test_only_one_whole_plain_frame_is_a_whole_message() -> None:
    whole = frame(b"abc", 9)
    for body in (b"", b"\0", whole[:-1], whole + b"\0", b"\1" + whole[1:]):
        assert whole_message(body, 9) is None


def compressed(data: bytes) -> bytes:
    packed = gzip.compress(data)
    return b"\x01" + len(packed).to_bytes(4, "big") + packed


def test_gzip_messages_are_inflated_and_plain_ones_among_them_are_not() -> None:
    assert Deframer(b"gzip", 100).feed(compressed(b"a" * 90) + frame(b"b", 9)) == [b"a" * 90, b"b"]


def test_a_small_message_may_not_inflate_without_bound() -> None:
    with pytest.raises(StatusError, match="after decompression larger than max"):
        Deframer(b"gzip", 10_000).feed(compressed(b"\0" * 1_000_000))


@pytest.mark.parametrize("damage", [lambda packed: packed[:-3], lambda packed: packed + b"more"])
def test_gzip_that_ends_early_or_late_is_refused(damage: object) -> None:
    packed = damage(gzip.compress(b"a" * 50))  # type: ignore[operator]
    with pytest.raises(StatusError, match="failed to decompress"):
        Deframer(b"gzip", 100).feed(b"\x01" + len(packed).to_bytes(4, "big") + packed)


def test_timeouts_are_read_in_every_unit() -> None:
    units = (b"5S", b"100m", b"2M", b"1H", b"7u", b"8n", b"0S")
    assert [parse_timeout(text) for text in units] == [5.0, 0.1, 120.0, 3600.0, 7e-6, 8e-9, 0.0]
    for bad in (b"", b"S", b"5", b"-5S", b"123456789S", b"5x", b"5 S", b"1.5S", "٣S".encode()):
        with pytest.raises(StatusError):
            parse_timeout(bad)


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("etcdserver: key is not provided", b"etcdserver: key is not provided"),
        ("50 % ä\n", b"50 %25 %C3%A4%0A"),
        ("\x7f", b"%7F"),
        ("\ud800", b"?"),
    ],
)
def test_status_texts_are_percent_encoded(text: str, encoded: bytes) -> None:
    assert percent_encode(text) == encoded
