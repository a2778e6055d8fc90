"""JSON to messages and back. The texts of refusals are those etcd 3.4 gave to the same bodies."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.gateway import text as text_module
from raftkv.gateway.codec import decode, encode
from raftkv.gateway.routes import routes
from raftkv.gateway.text import BadJson, Splitter, dumps
from raftkv.pb import kv_pb2, rpc_pb2

REFUSED = [
    ("{", "unexpected EOF"),
    ('{"key"', "unexpected EOF"),
    ('{"key":"Zm9v"', "unexpected EOF"),
    ('{"key":tr', "unexpected EOF"),
    ('{"key":"a', "unexpected EOF"),
    ('{"key":"Zm9v",}', "invalid character '}' looking for beginning of object key string"),
    ("{bad", "invalid character 'b' looking for beginning of object key string"),
    ("x", "invalid character 'x' looking for beginning of value"),
    ('{"key":[1,]}', "invalid character ']' looking for beginning of value"),
    ('{"key":"Zm9v" "limit":1}', "invalid character '\"' after object key:value pair"),
    ('{"key" "Zm9v"}', "invalid character '\"' after object key"),
    ('{"key":[1 2]}', "invalid character '2' after array element"),
    ('{"key":tru}', "invalid character '}' in literal true (expecting 'e')"),
    (r'{"key":"a\x"}', "invalid character 'x' in string escape code"),
    (r'{"key":"a\u12"}', "invalid character '\"' in \\u hexadecimal character escape"),
    ('{"key":NaN}', "invalid character 'N' looking for beginning of value"),
    ('{"key":01}', "invalid character '1' after object key:value pair"),
    ('{"key":"a\nb"}', "invalid character '\\n' in string literal"),
    ("[]", "json: cannot unmarshal array into Go value of type map[string]json.RawMessage"),
    ("5", "json: cannot unmarshal number into Go value of type map[string]json.RawMessage"),
    ('"x"', "json: cannot unmarshal string into Go value of type map[string]json.RawMessage"),
    ('{"key":5}', "json: cannot unmarshal number into Go value of type []uint8"),
    ('{"key":"!!"}', "illegal base64 data at input byte 0"),
    ('{"key":"Zm9v!g=="}', "illegal base64 data at input byte 4"),
    ('{"key":"Zm9vY"}', "illegal base64 data at input byte 4"),
    ('{"limit":5.5}', "json: cannot unmarshal number 5.5 into Go value of type int64"),
    ('{"limit":1e1}', "json: cannot unmarshal number 1e1 into Go value of type int64"),
    ('{"limit":"abc"}', "invalid character 'a' looking for beginning of value"),
    (
        '{"limit":"99999999999999999999"}',
        "json: cannot unmarshal number 99999999999999999999 into Go value of type int64",
    ),
    ('{"serializable":"true"}', "json: cannot unmarshal string into Go value of type bool"),
    ('{"serializable":1}', "json: cannot unmarshal number into Go value of type bool"),
    ('{"sort_order":"NOSUCH"}', 'unknown value "NOSUCH" for enum etcdserverpb.RangeRequest_SortOrder'),
    ("[" * 100_000, "exceeded max depth"),
    ('{"limit":' + "9" * 10_000 + "}", "a number has too many digits"),
]


@pytest.mark.parametrize(("body", "text"), REFUSED, ids=[body[:20] for body, _ in REFUSED])
def test_what_is_no_request_is_refused_in_the_words_of_etcd(body: str, text: str) -> None:
    with pytest.raises(BadJson) as refused:
        decode(rpc_pb2.RangeRequest, body.encode())
    assert str(refused.value) == text


def test_lists_and_nested_messages_are_refused_too() -> None:
    for body, kind in (('{"compare":5}', "[]json.RawMessage"), ('{"compare":[5]}', "map[string]json.RawMessage")):
        with pytest.raises(BadJson, match="cannot unmarshal number into Go value of type ") as refused:
            decode(rpc_pb2.TxnRequest, body.encode())
        assert str(refused.value).endswith(kind)


def test_messages_nested_deeper_than_protobuf_allows_are_refused() -> None:
    deep = '{"success":[{"request_txn":' * 60 + "{}" + "}]}" * 60
    with pytest.raises(BadJson, match="exceeded max depth"):
        decode(rpc_pb2.TxnRequest, deep.encode())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("", {}),
        (" \n", {}),
        ("null", {}),
        ('{"key":"Zm9v"}x', {"key": b"foo"}),
        ('{"key":"Zm9v"} {"key":"AAAA"}', {"key": b"foo"}),
        ('{"key":null,"unknown":[{}]}', {}),
        ('{"range_end":"AA=="}', {"range_end": b"\0"}),
        ('{"rangeEnd":"AA"}', {"range_end": b"\0"}),
        ('{"key":"+/8="}', {"key": b"\xfb\xff"}),
        ('{"key":"-_8"}', {"key": b"\xfb\xff"}),
        ('{"limit":5,"revision":"-7"}', {"limit": 5, "revision": -7}),
        ('{"sort_order":"DESCEND"}', {"sort_order": 2}),
        ('{"sort_order":2}', {"sort_order": 2}),
        ('{"serializable":true}', {"serializable": True}),
    ],
)
def test_requests_are_read_as_protobufs_json_says(body: str, expected: dict[str, object]) -> None:
    assert decode(rpc_pb2.RangeRequest, body.encode()) == rpc_pb2.RangeRequest(**expected)  # type: ignore[arg-type]


def test_texts_with_half_a_character_become_valid() -> None:
    assert decode(rpc_pb2.AuthUserAddRequest, rb'{"name":"a\ud800"}').name == "a\ufffd"


def test_a_oneof_member_is_chosen_by_its_presence() -> None:
    request = decode(rpc_pb2.WatchRequest, b'{"progress_request":{}}')
    assert request.WhichOneof("request_union") == "progress_request"


def test_answers_leave_out_defaults_and_write_64_bit_integers_as_strings() -> None:
    response = rpc_pb2.RangeResponse(
        header=rpc_pb2.ResponseHeader(cluster_id=(1 << 64) - 1, revision=7),
        kvs=[kv_pb2.KeyValue(key=b"\xfb\xff", mod_revision=7, value=b"")],
        count=1,
    )
    assert encode(response) == (
        b'{"header":{"cluster_id":"18446744073709551615","revision":"7"},'
        b'"kvs":[{"key":"+/8=","mod_revision":"7"}],"count":"1"}'
    )
    assert encode(rpc_pb2.HashResponse(hash=5)) == b'{"hash":5}'
    assert encode(rpc_pb2.WatchResponse(watch_id=-1, canceled=True)) == b'{"watch_id":"-1","canceled":true}'
    assert encode(rpc_pb2.DefragmentResponse()) == b"{}"


def test_texts_are_written_as_go_writes_them() -> None:
    assert dumps(["a<&>é\u2028\u0001"]) == '["a\\u003c\\u0026\\u003eé\\u2028\\u0001"]'.encode()


def test_every_message_of_the_api_survives_the_way_through_json() -> None:
    for route in routes().values():
        for kind in (route.request, route.response):
            assert not any(field.GetOptions().map_entry for field in kind.DESCRIPTOR.nested_types), kind
            assert decode(kind, encode(kind())) == kind()


@given(st.binary(), st.binary(), st.integers(-(1 << 63), (1 << 63) - 1))
def test_a_put_survives_the_way_through_json(key: bytes, value: bytes, lease: int) -> None:
    request = rpc_pb2.PutRequest(key=key, value=value, lease=lease)
    assert decode(rpc_pb2.PutRequest, encode(request)) == request


TEXTS = st.text(alphabet='{}[]"\\\\aé', max_size=6)
VALUES = st.recursive(TEXTS, lambda inner: st.lists(inner, max_size=2), max_leaves=4)


@settings(max_examples=60)
@given(
    st.lists(st.dictionaries(TEXTS, VALUES, max_size=2), max_size=3),
    st.sampled_from([b"", b"\n", b" \t"]),
    st.integers(1, 9),
)
def test_a_body_is_cut_at_the_same_places_however_its_bytes_arrive(
    values: list[dict[str, object]], between: bytes, piece: int
) -> None:
    body = between.join(json.dumps(value).encode() for value in values)
    splitter = Splitter(1 << 20)
    pieces = [body[start : start + piece] for start in range(0, len(body), piece)] or [b""]
    found = [value for data in pieces[:-1] for value in splitter.feed(data)]
    found += splitter.feed(pieces[-1], last=True)
    assert [json.loads(value) for value in found] == values


NAMES = sorted(
    {field.name for route in routes().values() for field in route.request.DESCRIPTOR.fields}
    | {"key", "range_end", "request_put", "request_txn", "create_request", "success", "filters", "permType", "x"}
)
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["MOD", "YWE=", "7"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200)
@given(st.sampled_from(sorted(routes())), ANYTHING)
def test_whatever_is_sent_is_read_or_refused(path: str, value: object) -> None:
    kind = routes()[path].request
    try:
        message = decode(kind, json.dumps(value).encode())
    except BadJson as refused:
        assert str(refused)
    else:
        assert kind.FromString(message.SerializeToString()) == message


@given(st.binary(max_size=40))
def test_bytes_that_are_no_json_are_refused(body: bytes) -> None:
    try:
        decode(rpc_pb2.RangeRequest, body)
    except BadJson as refused:
        assert str(refused)


def test_a_value_that_never_ends_is_refused_before_memory_is() -> None:
    splitter = Splitter(100)
    list(splitter.feed(b'{"key":"' + b"a" * 80))
    with pytest.raises(BadJson, match="larger than 100 bytes"):
        list(splitter.feed(b"a" * 20))


@pytest.mark.parametrize(
    "begun",
    ["{", '{"a":-', '{"a":1.', '{"a":1e+', '{"a":tr', '{"a":"\\u1', '{"a":"\\', '{"a":[1,', "nul", '{"a":"}', " 7"],
)
def test_what_may_become_a_value_is_waited_for(begun: str) -> None:
    assert not list(Splitter(100).feed(begun.encode()))


@pytest.mark.parametrize("broken", ["nonsense", '{"a\n', '{"a" b', "}", "{5", '{"a":1]', "[}", "7 ", '"a" '])
def test_what_cannot_become_a_value_is_not_waited_for(broken: str) -> None:
    assert list(Splitter(100).feed(broken.encode())) == [broken.encode()]


def test_long_texts_are_not_read_again_with_each_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    monkeypatch.setattr(text_module, "_may_go_on", lambda text: read.append(len(text)) or True)
    splitter = Splitter(1 << 20)
    for piece in (b'{"a":"', *[bytes(500)] * 100):
        assert not list(splitter.feed(piece))
    assert max(read) < 5000
