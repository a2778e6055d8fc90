"""WebSockets to etcd's gateway and to raftkv's: the same messages, while requests and answers alternate."""

import contextlib
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Event, RejectConnection, Request, TextMessage

from raftkv.client import Client
from tests.cli.servers import serve
from tests.interop.test_gateway import masked

SECONDS = 90.0


class WebSocket:
    """A client's end of a WebSocket."""

    def __init__(self, endpoint: str, path: str, subprotocols: Sequence[str] = ()) -> None:
        host, port = endpoint.split(":")
        self._socket = socket.create_connection((host, int(port)), timeout=SECONDS)
        self._http = WSConnection(ConnectionType.CLIENT)
        self._events: Iterator[Event] = iter(())
        self._socket.sendall(self._http.send(Request(host=endpoint, target=path, subprotocols=list(subprotocols))))
        self.opened = self.next()

    def next(self) -> Event:
        while True:
            for event in self._http.events():
                return event
            self._http.receive_data(self._socket.recv(65536) or None)

    def ask(self, text: str) -> bytes:
        """Send a message; the one that answers it."""
        self.send(text)
        return self.text()

    def send(self, text: str) -> None:
        self._socket.sendall(self._http.send(TextMessage(data=text)))

    def text(self) -> bytes:
        event = self.next()
        assert isinstance(event, TextMessage), event
        return masked(event.data.encode())

    def close(self) -> None:
        self._socket.close()


def talk(endpoint: str) -> list[object]:
    """What a server says to a watch that goes on, to renewals, and to what does not exist."""
    watch = WebSocket(endpoint, "/v3/watch")
    said: list[object] = [type(watch.opened)]
    said += [watch.ask(f'{{"create_request":{{"key":"YQ==","watch_id":"{number}"}}}}') for number in (1, 2)]
    said.append(watch.ask('{"cancel_request":{"watch_id":"1"}}'))
    with Client(endpoint) as client:
        for value in ("1", "2"):
            client.put("a", value)
            said.append(watch.text())
        client.lease_grant(600, 77)
    watch.close()
    renewals = WebSocket(endpoint, "/v3/lease/keepalive")
    said += [renewals.ask('{"ID":"77"}'), renewals.ask('{"ID":"78"}'), renewals.ask('{"ID":77}')]
    renewals.close()
    said += cut(endpoint)
    nowhere = WebSocket(endpoint, "/v3/nosuch")
    said += [nowhere.ask("{}"), type(nowhere.next())]
    nowhere.close()
    return said


def cut(endpoint: str) -> list[object]:
    """What a server says to a request in several messages, and to what no message can complete any more."""
    said: list[object] = []
    for path, pieces in (("/v3/kv/put", ('{"key":', '"YQ=="}')), ("/v3/lease/keepalive", ('{"ID":', '"77"', "}"))):
        client = WebSocket(endpoint, path)
        for piece in pieces[:-1]:
            client.send(piece)
        said.append(client.ask(pieces[-1]))
        client.close()
    for path in ("/v3/kv/range", "/v3/watch"):
        for broken in ("nonsense", '{"key', "{5"):
            client = WebSocket(endpoint, path)
            said.append(client.ask(broken))
            assert isinstance(client.next(), CloseConnection)
            client.close()
    return said


def test_a_watch_and_renewals(tmp_path: Path) -> None:
    with serve("raftkv", tmp_path / "raftkv") as endpoint:
        found = talk(endpoint)
        outside = WebSocket(endpoint, "/health")
        assert isinstance(outside.opened, RejectConnection)
        outside.close()
    assert found[0] is AcceptConnection
    assert b"looking for beginning of object key string" in found[-3]  # type: ignore[operator]
    assert found[-1] is CloseConnection
    assert b'"created":true' in found[1]  # type: ignore[operator]
    if shutil.which("etcd"):
        assert talk_to_etcd(tmp_path) == found


def talk_to_etcd(directory: Path) -> list[object]:
    """What etcd says. It closes with a message unread, and now and then what it said last is lost in the reset."""
    for attempt in range(5):
        with contextlib.suppress(ConnectionResetError), serve("etcd", directory / f"etcd{attempt}") as endpoint:
            return talk(endpoint)
    raise AssertionError("etcd reset a connection each time")


def test_a_client_that_leaves_ends_its_watch(tmp_path: Path) -> None:
    with serve("raftkv", tmp_path) as endpoint:
        watch = WebSocket(endpoint, "/v3/watch")
        watch.ask('{"create_request":{"key":"YQ=="}}')
        assert watchers(endpoint) == 1
        watch.close()
        deadline = time.monotonic() + SECONDS
        while watchers(endpoint):
            assert time.monotonic() < deadline, "it still watches"
            time.sleep(0.05)


def watchers(endpoint: str) -> int:
    with socket.create_connection(endpoint.split(":"), timeout=SECONDS) as connection:  # type: ignore[arg-type]
        connection.sendall(b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    return int(float(text.partition("\netcd_debugging_mvcc_watcher_total ")[2].partition("\n")[0]))


@pytest.mark.parametrize(("subprotocols", "chosen"), [(("Bearer", "token-1"), "Bearer"), ((), None)])
def test_a_token_comes_as_a_subprotocol(subprotocols: Sequence[str], chosen: str | None, tmp_path: Path) -> None:
    with serve("raftkv", tmp_path) as endpoint:
        renewals = WebSocket(endpoint, "/v3/lease/keepalive", subprotocols)
        assert isinstance(renewals.opened, AcceptConnection)
        assert renewals.opened.subprotocol == chosen
        renewals.close()
