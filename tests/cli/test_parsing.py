"""Texts that raftctl reads and writes as Go does: durations, numbers, literals, sizes, and the words of a txn."""

from collections.abc import Callable

import pytest

from cli.raftctl import golang
from cli.raftctl.failure import Failure
from cli.raftctl.operations import key_range
from cli.raftctl.txn import parse_compare, parse_request, split_words
from raftkv.pb import rpc_pb2


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5s", 5.0),
        ("1m30s", 90.0),
        ("300ms", 0.3),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("5.s", 5.0),
        ("2h3m4.5s", 7384.5),
        ("100us", 1e-4),
        ("100µs", 1e-4),
        ("7ns", 7e-9),
        ("0", 0.0),
        ("-2s", -2.0),
        ("+2s", 2.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert golang.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", 'time: invalid duration ""'),
        ("x", 'time: invalid duration "x"'),
        (".", 'time: invalid duration "."'),
        (".s", 'time: invalid duration ".s"'),
        ("5", 'time: missing unit in duration "5"'),
        ("1s5", 'time: missing unit in duration "1s5"'),
        ("5d", 'time: unknown unit "d" in duration "5d"'),
        ("5 s", 'time: unknown unit " s" in duration "5 s"'),
        ("-", 'time: invalid duration "-"'),
        ("1s-1s", 'time: unknown unit "s-" in duration "1s-1s"'),
    ],
)
def test_what_is_no_duration(text: str, error: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        golang.parse_duration(text)
    assert str(caught.value) == error


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (999, "999ns"),
        (1_000, "1µs"),
        (1_500, "1.5µs"),
        (999_999, "999.999µs"),
        (1_262_245, "1.262245ms"),
        (1_000_000_000, "1s"),
        (2_000_367_931, "2.000367931s"),
        (60_000_000_000, "1m0s"),
        (3_661_500_000_000, "1h1m1.5s"),
    ],
)
def test_durations_are_printed(nanoseconds: int, text: str) -> None:
    assert golang.format_duration(nanoseconds) == text


@pytest.mark.parametrize("text", ["", " 1", "1 ", "1_0", "x", "1.0", "٣", "--1", "0x1"])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(ValueError, match="invalid syntax"):
        golang.parse_int(text)


@pytest.mark.parametrize("parse", [golang.parse_int, golang.parse_uint])
def test_a_hexadecimal_number_has_no_0x(parse: Callable[[str, int], int]) -> None:
    with pytest.raises(ValueError, match="invalid syntax"):
        parse("0x1f", 16)


def test_numbers_have_64_bits() -> None:
    assert golang.parse_int("-9223372036854775808") == -(1 << 63)
    for text in ("9223372036854775808", "-9223372036854775809"):
        with pytest.raises(ValueError, match="value out of range"):
            golang.parse_int(text)
    assert golang.parse_int("7fffffffffffffff", 16) == (1 << 63) - 1


@pytest.mark.parametrize(
    "data",
    [b"", b"plain", b'"\\\n\t\r\a\b\f\v', bytes(range(256)), "é\u2028\U0001f600\u00a0".encode(), b"\xed\xa0\x80"],
)
def test_a_quoted_text_can_be_read_back(data: bytes) -> None:
    assert golang.scan_quoted(golang.quote(data) + " rest") == (data, " rest")


@pytest.mark.parametrize(
    ("text", "data", "rest"),
    [
        (r'"\x41\101\u0041\U00000041"', b"AAAA", ""),
        (r'"\xff" x', b"\xff", " x"),
        (r'"\377"', b"\xff", ""),
        ('`a\\n"b` c', b'a\\n"b', " c"),
        ('""x', b"", "x"),
    ],
)
def test_literals(text: str, data: bytes, rest: str) -> None:
    assert golang.scan_quoted(text) == (data, rest)


@pytest.mark.parametrize(
    "text", ["", "x", "'x'", '"x', "`x", r'"\q"', r'"\x4"', r'"\400"', r'"\ud800"', r'"\U00110000"', '"\\', r'"\'"']
)
def test_what_is_no_literal(text: str) -> None:
    with pytest.raises(ValueError, match=r"quoted string|EOF|invalid syntax"):
        golang.scan_quoted(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (9, "9 B"), (10, "10 B"), (999, "999 B"), (1000, "1.0 kB"), (20_480, "20 kB"), (25_450, "26 kB"),
     (1_550_000, "1.6 MB"), (999_999, "1000 kB"), (2_147_483_648, "2.1 GB")],
)  # fmt: skip
def test_sizes(size: int, text: str) -> None:
    assert golang.humanize(size) == text


def test_ranges() -> None:
    assert key_range(("a",), prefix=False, from_key=False) == (b"a", b"")
    assert key_range(("a", "b"), prefix=False, from_key=False) == (b"a", b"b")
    assert key_range(("a\udcff",), prefix=True, from_key=False) == (b"a\xff", b"b")
    assert key_range(("",), prefix=True, from_key=False) == (b"\0", b"\0")
    assert key_range(("a",), prefix=False, from_key=True) == (b"a", b"\0")
    assert key_range(("",), prefix=False, from_key=True) == (b"\0", b"\0")


def test_compares() -> None:
    compare = parse_compare('val("k\\xff") != `raw "v"` and more')
    assert (compare.key, compare.value) == (b"k\xff", b'raw "v"')
    assert (compare.target, compare.result) == (rpc_pb2.Compare.VALUE, rpc_pb2.Compare.NOT_EQUAL)
    for name, field in (("ver", "version"), ("create", "create_revision"), ("m", "mod_revision")):
        compare = parse_compare(f'{name}("k") < "-12"')
        assert getattr(compare, field) == -12
        assert compare.WhichOneof("target_union") == field
    assert parse_compare('lease("k") > "fF"').lease == 255


def test_words() -> None:
    assert split_words("""put k  'it is' "a \\"b\\" \\n" a"b"c '' "" ->""") == [
        *("put", "k", "it is", 'a "b" \n', 'a"b"c', "", "", "->")
    ]
    assert split_words(r'put "\xff"') == ["put", "\udcff"]
    with pytest.raises(Failure, match="invalid syntax"):
        split_words(r'put "\q"')


def test_requests() -> None:
    put = parse_request(r'put --lease=1f "\xff" v --prev-kv --ignore-lease').request_put
    assert (put.key, put.value, put.lease, put.prev_kv, put.ignore_lease) == (b"\xff", b"v", 31, True, True)
    get = parse_request("get a b --limit 3 --rev=4 --order descend --sort-by modify --consistency=s").request_range
    assert (get.key, get.range_end, get.limit, get.revision, get.serializable) == (b"a", b"b", 3, 4, True)
    assert (get.sort_order, get.sort_target) == (rpc_pb2.RangeRequest.DESCEND, rpc_pb2.RangeRequest.MOD)
    delete = parse_request("del a --prefix=true --prev-kv").request_delete_range
    assert (delete.key, delete.range_end, delete.prev_kv) == (b"a", b"b", True)


@pytest.mark.parametrize(
    ("line", "status", "error"),
    [
        ("get", 3, "invalid txn compare request: get"),
        ("watch k", 3, "invalid txn request: watch k"),
        ("get k -w json", 3, "invalid txn request: get k -w json"),
        ("get k --endpoints a:1", 3, "invalid txn request: get k --endpoints a:1"),
        ("get k --limit x", 3, "invalid txn request: get k --limit x"),
        ("put k", 128, "put command needs 1 argument and input from stdin or 2 arguments"),
        (
            "del --prefix=true --from-key k",
            128,
            "`--prefix` and `--from-key` cannot be set at the same time, choose one",
        ),
    ],
)
def test_requests_that_are_none(line: str, status: int, error: str) -> None:
    with pytest.raises(Failure) as caught:
        parse_request(line)
    assert (caught.value.status, str(caught.value)) == (status, error)
