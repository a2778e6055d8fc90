"""The headers of a request: what HTTP/2 says of them, and what of them ASGI hands on."""

from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

import hpack

from raftkv.http.asgi import Scope
from raftkv.http.frames import ErrorCode, ProtocolError

MAX_HEADER_BYTES = 256 << 10
"""Of all headers of one request, with 32 bytes more for each, as HTTP/2 counts."""

_CACHED_BLOCKS = 256
_CACHED_BLOCK_BYTES = 512
_FORBIDDEN = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))
_PSEUDO = frozenset((b":method", b":scheme", b":path", b":authority"))
_TRAILERS: dict[str, dict[str, object]] = {"http.response.trailers": {}}


class Malformed(ProtocolError):
    """The headers are none of a request (RFC 9113, section 8.1.1)."""

    def __init__(self, text: str) -> None:
        super().__init__(ErrorCode.PROTOCOL_ERROR, text)


class HeaderReader:
    """Decodes the header blocks of one connection, and remembers what equal ones mean.

    A client repeats itself: its next block is the same bytes, and says the same as long as the decoder's table, to
    which it refers, did not change.
    """

    def __init__(self, connection: Scope) -> None:
        """`connection` is what the scopes of all its requests have in common."""
        self._connection = connection
        self._decoder = hpack.Decoder(max_header_list_size=MAX_HEADER_BYTES)
        self._known: dict[bytes, Scope | Malformed] = {}

    def scope(self, block: bytes) -> Scope:
        """The ASGI scope of a request; not to be changed.

        Raises:
            Malformed: it is none; the connection goes on.
            ProtocolError: the block cannot be decoded; the connection must end.
        """
        found = self._known.get(block)
        if found is None:
            before = self._table()
            headers = self.headers(block)
            try:
                found = {**request_scope(headers), **self._connection}
            except Malformed as problem:
                found = problem
            if self._table() == before and len(self._known) < _CACHED_BLOCKS and len(block) < _CACHED_BLOCK_BYTES:
                self._known[block] = found
        if isinstance(found, Malformed):
            raise found
        return found

    def headers(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """Decode a block.

        Raises:
            ProtocolError: it cannot be decoded; the connection must end.
        """
        before = self._table()
        try:
            return [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]
        except (hpack.HPACKError, UnicodeError) as error:
            raise ProtocolError(ErrorCode.COMPRESSION_ERROR, f"headers cannot be decoded: {error}") from error
        finally:
            if self._table() != before:
                self._known.clear()

    def _table(self) -> tuple[int, int]:
        """What changes whenever the table does: a new entry is another object, and comes first."""
        entries = self._decoder.header_table.dynamic_entries
        return len(entries), id(entries[0]) if entries else 0


def request_scope(headers: Iterable[tuple[bytes, bytes]]) -> Scope:
    """Make the ASGI scope of a request, without what its connection knows.

    Raises:
        Malformed: it is none.
    """
    pseudo: dict[bytes, bytes] = {}
    regular: list[tuple[bytes, bytes]] = []
    trailers = False
    for name, value in headers:
        if name[:1] == b":":
            if regular or name in pseudo or name not in _PSEUDO:
                raise Malformed(f"header {name!r} is unknown, repeated, or comes late")
            pseudo[name] = value
            continue
        if not name or name != name.lower() or name in _FORBIDDEN or (name == b"te" and value != b"trailers"):
            raise Malformed(f"HTTP/2 has no header {name!r}: {value[:40]!r}")
        trailers = trailers or name == b"te"
        regular.append((name, value))
    method, path = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
    if not method or not path.startswith((b"/", b"*")) or not pseudo.get(b":scheme"):
        raise Malformed("a request has a method, a scheme and a path")
    if b":authority" in pseudo:
        regular.insert(0, (b"host", pseudo[b":authority"]))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "2",
        "method": method.decode("latin-1"),
        "scheme": pseudo[b":scheme"].decode("latin-1"),
        **target(path),
        "headers": regular,
        "extensions": _TRAILERS if trailers else {},
    }


def target(path: bytes) -> dict[str, Any]:
    """What ASGI says of the target of a request."""
    raw, _, query = path.partition(b"?")
    text = raw.decode("latin-1")
    return {
        "path": unquote(text) if "%" in text else text,
        "raw_path": raw,
        "query_string": query,
        "root_path": "",
    }
