"""Servers that misbehave, at the level of HTTP/2 and TCP, and count what reaches them."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import h2.config
import h2.connection
import h2.events

Fault = Callable[["FaultyServer", h2.connection.H2Connection, int], bool]
"""What to do with a complete request on a stream; False closes the connection."""


def close(server: "FaultyServer", connection: h2.connection.H2Connection, stream: int) -> bool:
    """Drop the connection without an answer."""
    return False


def silence(server: "FaultyServer", connection: h2.connection.H2Connection, stream: int) -> bool:
    """Never answer."""
    return True


def answer(code: int, message: str) -> Fault:
    """End the call with a gRPC status."""

    def fault(server: "FaultyServer", connection: h2.connection.H2Connection, stream: int) -> bool:
        headers = [(":status", "200"), ("content-type", "application/grpc")]
        headers += [("grpc-status", str(code)), ("grpc-message", message)]
        connection.send_headers(stream, headers, end_stream=True)
        return True

    return fault


class FaultyServer:
    """Accepts connections and requests, and answers every request with a fault."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[dict[str, str]] = []
        """Headers of each request that arrived whole."""
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self._accept = threading.Thread(target=self._accept_all, daemon=True)
        self._accept.start()

    def stop(self) -> None:
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in (self._accept, *self._threads):
            thread.join(10)

    def _accept_all(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                accepted, _ = self._listener.accept()
                self._open.append(accepted)
                thread = threading.Thread(target=self._serve, args=(accepted,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, accepted: socket.socket) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        headers: dict[int, dict[str, str]] = {}
        with contextlib.suppress(OSError), accepted:
            accepted.sendall(connection.data_to_send())
            while data := accepted.recv(65536):
                for event in connection.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        assert event.stream_id is not None
                        headers[event.stream_id] = {str(name): str(value) for name, value in event.headers or []}
                    elif isinstance(event, h2.events.StreamEnded):
                        assert event.stream_id is not None
                        self.requests.append(headers[event.stream_id])
                        if not self._fault(self, connection, event.stream_id):
                            return
                accepted.sendall(connection.data_to_send())


@contextlib.contextmanager
def faulty(fault: Fault) -> Iterator[FaultyServer]:
    """A server with this fault."""
    server = FaultyServer(fault)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    """An endpoint where nobody listens, and nobody else can meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@contextlib.contextmanager
def blackhole() -> Iterator[str]:
    """An endpoint that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
