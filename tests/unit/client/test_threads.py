"""The client for threads has what the one for asyncio has: the same methods, parameters and errors."""

import inspect
import re
from pathlib import Path

import pytest

from raftkv import client, errors
from raftkv.client import Client, LeaseLost, NotConnected, Refused, TurnLost, WatchCompacted
from tests.cli.servers import serve

PAIRS = [
    (client.AsyncClient, client.Client),
    (client.AsyncWatch, client.Watch),
    (client.AsyncLease, client.Lease),
    (client.AsyncLock, client.Lock),
    (client.AsyncElection, client.Election),
    (client.AsyncTransaction, client.Transaction),
]
ENTERED = {"__aenter__": "__enter__", "__anext__": "__next__"}
OF_ASYNCIO = {"lease"}
"""An election's lease, whose `lost`, `wait_lost` and `check` threads find at the election itself."""


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_") or name in ENTERED}


def raised(method: object) -> list[str]:
    """What the documentation of a method says of errors, word by word."""
    found = re.search(r"Raises:.*", inspect.getdoc(method) or "", re.DOTALL)
    return found.group().split() if found else []


@pytest.mark.parametrize(("of_asyncio", "of_threads"), PAIRS)
def test_methods_parameters_and_errors_are_the_same(of_asyncio: type, of_threads: type) -> None:
    names = public(of_asyncio) - (OF_ASYNCIO if of_asyncio is client.AsyncElection else set())
    assert names
    for name in names:
        theirs = getattr(of_asyncio, name)
        ours = getattr(of_threads, ENTERED.get(name, name))
        assert raised(ours) == raised(theirs), name
        if callable(theirs):
            parameters = [
                [(one.name, one.kind, one.default) for one in inspect.signature(method).parameters.values()]
                for method in (ours, theirs)
            ]
            assert parameters[0] == parameters[1], name


def test_threads_get_the_errors_that_are_documented(tmp_path: Path) -> None:
    with serve("raftkv", tmp_path) as endpoint, Client(endpoint) as one:
        revision = one.put("k", "1").header.revision
        one.compact(one.put("k", "2").header.revision)
        with one.watch("k", start_revision=revision) as watch, pytest.raises(WatchCompacted):
            next(watch)
        with pytest.raises(Refused) as missing:
            one.lease_keep_alive_once(4711)
        assert isinstance(missing.value, errors.LeaseNotFound)
        with pytest.raises(errors.LeaseTTLTooLarge), one.lease(10**10):
            pass
        with one.lease(60) as lease:
            assert 50 < lease.valid_seconds <= 60
            lease.check()
        with one.lease(1) as lost:
            one.lease_revoke(lost.id)
            assert lost.wait_lost(20)
            assert lost.valid_seconds == 0
            with pytest.raises(LeaseLost):
                lost.check()
        with one.lock("l"), pytest.raises(TimeoutError), one.lock("l", timeout=0):
            pass
        with one.election("e") as election:
            election.campaign("me")
            one.delete(election.key)
            with pytest.raises(TurnLost):
                election.proclaim("still me")
        with pytest.raises(RuntimeError, match="own"):
            one.stm(fails)
        assert one.get("written") is None


def fails(transaction: client.Transaction) -> None:
    transaction.put("written", "never")
    raise RuntimeError("its own error")


def test_threads_learn_that_nobody_can_be_reached() -> None:
    with Client("127.0.0.1:1", timeout=5.0, dial_timeout=0.2) as nobody:
        for use in (
            lambda: nobody.watch("k").ready(),
            lambda: nobody.lease(5).__enter__(),
            lambda: nobody.lock("l").__enter__(),
            lambda: nobody.election("e").campaign("me"),
            lambda: next(nobody.election("e").observe()),
            lambda: nobody.stm(lambda transaction: transaction.get("k")),
            lambda: next(nobody.snapshot()),
        ):
            with pytest.raises(NotConnected):
                use()
