"""The client's rules without a server: ranges, endpoints, errors, pages, attempts."""

import pickle

import pytest

from raftkv import errors
from raftkv.client import OutcomeUnknown, Refused, Unavailable
from raftkv.client import requests as req
from raftkv.client.errors import classify
from raftkv.client.failover import Attempts, Rotation
from raftkv.pb import kv_pb2, rpc_pb2
from raftkv.status import Code


@pytest.mark.parametrize(
    ("prefix", "end"),
    [(b"a", b"b"), (b"a\xff", b"b"), (b"a\xff\xff", b"b"), (b"\xff", b"\0"), (b"", b"\0"), (b"/a/", b"/a0")],
)
def test_prefix_end(prefix: bytes, end: bytes) -> None:
    assert req.prefix_end(prefix) == end


def test_key_range() -> None:
    assert req.key_range("ä") == ("ä".encode(), b"")
    assert req.key_range("a", "b") == (b"a", b"b")
    assert req.key_range("", prefix=True) == (b"\0", b"\0")
    with pytest.raises(ValueError, match="either a range_end or a prefix"):
        req.key_range("a", "b", prefix=True)


def test_targets() -> None:
    assert req.targets("a:1, http://b:2/,a:1") == ["a:1", "b:2"]
    assert req.targets(["[::1]:2379", "unix:/run/raftkv"]) == ["[::1]:2379", "unix:/run/raftkv"]
    assert req.targets("https://a:1/,b:1") == ["https://a:1", "b:1"]
    assert req.targets("https://a:1,b:1,http://c:1", secured=True) == ["https://a:1", "https://b:1", "c:1"]
    for bad, why in (
        ("unixs://a", "TLS on Unix sockets is not supported"),
        ("https://localhost", "has no port"),
        ("localhost", "has no port"),
        (
            "ftp://localhost:1",
            "ftp://localhost:1 is no address: write host:port, http://host:port or https://host:port",
        ),
        ("http://localhost:1/x", "is no address"),
        ("http://localhost", "has no port"),
        (" ,", "no endpoints"),
    ):
        with pytest.raises(ValueError, match=why):
            req.targets(bad)


def test_every_etcd_error_is_recognised() -> None:
    for kind in errors.EtcdError.__subclasses__():
        for read in (True, False):
            assert isinstance(classify(kind.CODE, kind.TEXT, read=read), kind)


def test_no_ambiguous_error_is_called_definite() -> None:
    """The errors that etcd gives to writes it may carry out all the same."""
    ambiguous = {
        *(errors.LeaderChanged, errors.Stopped, errors.Timeout, errors.TimeoutDueToLeaderFail),
        *(errors.TimeoutDueToConnectionLost, errors.TimeoutWaitAppliedIndex, errors.Unhealthy),
        *(errors.Canceled, errors.DeadlineExceeded, errors.WatchCanceled, errors.TimeoutLeaderTransfer),
    }
    unknown = {
        kind
        for kind in errors.EtcdError.__subclasses__()
        if isinstance(classify(kind.CODE, kind.TEXT, read=False), OutcomeUnknown)
    }
    assert unknown == ambiguous


def test_errors_survive_pickling() -> None:
    error = classify(Code.OUT_OF_RANGE, errors.Compacted.TEXT, read=True)
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, errors.Compacted)
    assert isinstance(copy, Refused)
    assert str(copy) == errors.Compacted.TEXT
    plain = pickle.loads(pickle.dumps(classify(Code.INTERNAL, "x", read=False)))
    assert type(plain) is OutcomeUnknown


def answer(keys: list[bytes], *, more: bool, size: int = 0) -> rpc_pb2.RangeResponse:
    header = rpc_pb2.ResponseHeader(revision=7)
    return rpc_pb2.RangeResponse(
        header=header, kvs=[kv_pb2.KeyValue(key=key, value=b"v" * size) for key in keys], more=more
    )


def test_pages_go_on_after_the_last_key_at_the_first_revision() -> None:
    pages = req.Pages(rpc_pb2.RangeRequest(key=b"a", range_end=b"c"))
    assert (pages.request.key, pages.request.revision, pages.request.limit) == (b"a", 0, req.Pages.FIRST_KEYS)
    assert pages.take(answer([b"a", b"b"], more=True))
    assert (pages.request.key, pages.request.range_end, pages.request.revision) == (b"b\0", b"c", 7)
    assert not pages.take(answer([b"bb"], more=False))


def test_pages_fit_the_size_of_the_values() -> None:
    pages = req.Pages(rpc_pb2.RangeRequest(key=b"a", range_end=b"c"), page_bytes=10_000)
    pages.take(answer([b"a"] * 10, more=True, size=5_000))
    assert pages.request.limit == 1
    pages.take(answer([b"a"], more=True, size=10))
    assert 100 < pages.request.limit <= 10_000 // 10
    pages.take(answer([], more=True))
    assert not pages.take(answer([], more=True)), "an empty page must end it"


def test_pages_keep_the_limit() -> None:
    pages = req.Pages(rpc_pb2.RangeRequest(key=b"a", range_end=b"c", limit=3))
    assert pages.request.limit == 3
    assert pages.take(answer([b"a", b"b"], more=True))
    assert pages.request.limit == 1
    assert not pages.take(answer([b"bb"], more=True))


def test_pages_refuse_another_order() -> None:
    for order in ({"sort_order": "DESCEND"}, {"sort_target": "MOD"}):
        with pytest.raises(ValueError, match="ascending order of keys"):
            req.Pages(rpc_pb2.RangeRequest(key=b"a", **order))  # type: ignore[arg-type]


def attempts(*targets: str, read: bool = False, only: str | None = None) -> Attempts:
    return Attempts(Rotation(targets or ("a", "b")), read=read, now=100.0, timeout=5.0, dial_timeout=2.0, only=only)


def test_the_dial_timeout_is_shared() -> None:
    trying = attempts("a", "b")
    assert trying.connect_seconds(100.0) == 1.0
    assert trying.unconnected("a", 101.0) == 0.0
    assert (trying.target, trying.connect_seconds(101.5)) == ("b", 0.5)
    assert 0 < trying.unconnected("b", 101.9) <= 0.1
    assert trying.target == "a"
    with pytest.raises(Unavailable):
        trying.unconnected("a", 102.0)


def test_a_pinned_call_stays_and_has_the_dial_timeout_for_itself() -> None:
    trying = attempts("a", "b", only="c")
    assert (trying.target, trying.connect_seconds(100.0)) == ("c", 2.0)
    assert 0 < trying.unconnected("c", 100.1) <= 0.1
    assert trying.target == "c"
    with pytest.raises(Unavailable, match=r"could not connect to c$"):
        trying.unconnected("c", 102.0)


def test_reads_end_with_the_call() -> None:
    trying = attempts("a", "b", "c", read=True)
    assert trying.failed("a", Code.UNAVAILABLE, "x", 100.1) == 0.0
    assert trying.target == "b"
    with pytest.raises(Unavailable):
        trying.failed("b", Code.UNAVAILABLE, "x", 104.5)


def test_a_call_that_failed_before_does_not_move_the_next_one_twice() -> None:
    rotation = Rotation(("a", "b", "c"))
    rotation.leave("a")
    rotation.leave("a")
    assert rotation.current == "b"


def test_a_definite_answer_does_not_move_on() -> None:
    trying = attempts("a", "b", read=True)
    with pytest.raises(errors.Compacted):
        trying.failed("a", Code.OUT_OF_RANGE, errors.Compacted.TEXT, 100.1)
    assert trying.target == "a"
