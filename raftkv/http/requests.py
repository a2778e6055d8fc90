"""The headers of a request: what HTTP/2 says of them, and what of them ASGI hands on."""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from raftkv.http.asgi import Scope
from raftkv.http.frames import ErrorCode, ProtocolError
from raftkv.http.hpack import Decoder

MAX_HEADER_BYTES = 256 << 10
"""Of all headers of one request, with 32 bytes more for each, as HTTP/2 counts."""

_CACHED_BLOCKS = 256
_CACHED_BLOCK_BYTES = 512
_FORBIDDEN = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))
_PSEUDO = frozenset((b":method", b":scheme", b":path", b":authority"))
_NAME = re.compile(rb"[a-z0-9!#$%&'*+.^_`|~-]+")
_NO_VALUE = re.compile(rb"[\0\r\n]")
_NAME_BYTES = 1 << 10
_LENGTH_DIGITS = 18
_TRAILERS: dict[str, dict[str, object]] = {"http.response.trailers": {}}


class Malformed(ProtocolError):
    """The headers are none of a request (RFC 9113, section 8.1.1)."""

    def __init__(self, text: str) -> None:
        super().__init__(ErrorCode.PROTOCOL_ERROR, text)


class Request:
    """What the headers of a request say."""

    __slots__ = ("content_length", "head", "scope")

    def __init__(self, scope: Scope, content_length: int | None) -> None:
        """`scope` is ASGI's, and not to be changed; `content_length` is how long the body claims to be."""
        self.scope = scope
        self.head = scope["method"] == "HEAD"
        self.content_length = content_length


class HeaderReader:
    """Decodes the header blocks of one connection, and remembers what equal ones mean.

    A client repeats itself: its next block is the same bytes, and says the same as long as the decoder's table, to
    which it refers, did not change.
    """

    def __init__(self, connection: Scope) -> None:
        """`connection` is what the scopes of all its requests have in common."""
        self._connection = connection
        self._decoder = Decoder(MAX_HEADER_BYTES)
        self._known: dict[bytes, Request | str] = {}
        """Requests by block; or what is wrong with it."""

    def request(self, block: bytes) -> Request:
        """What a block says.

        Raises:
            Malformed: it is no request; the connection goes on.
            ProtocolError: the block cannot be decoded; the connection must end.
        """
        found = self._known.get(block)
        if found is None:
            version = self._decoder.version
            headers = self._headers(block)
            try:
                found = Request({**request_scope(headers), **self._connection}, content_length(headers))
            except Malformed as problem:
                found = str(problem)
            small = len(block) < _CACHED_BLOCK_BYTES and len(self._known) < _CACHED_BLOCKS
            if small and self._decoder.version == version:
                self._known[block] = found
        if isinstance(found, str):
            raise Malformed(found)
        return found

    def trailers(self, block: bytes) -> bool:
        """Decode the block that ends a request, and say whether it may.

        Raises:
            ProtocolError: it cannot be decoded; the connection must end.
        """
        headers = self._headers(block)
        return all(name[:1] != b":" and _is_field(name, value) for name, value in headers)

    def _headers(self, block: bytes) -> list[tuple[bytes, bytes]]:
        version = self._decoder.version
        headers = self._decoder.decode(block)
        if self._decoder.version != version:
            self._known.clear()
        return headers


def request_scope(headers: Iterable[tuple[bytes, bytes]]) -> Scope:
    """Make the ASGI scope of a request, without what its connection knows.

    Raises:
        Malformed: it is none.
    """
    pseudo: dict[bytes, bytes] = {}
    regular: list[tuple[bytes, bytes]] = []
    extensions: Scope = {}
    for name, value in headers:
        if name[:1] == b":":
            if regular or name in pseudo or name not in _PSEUDO:
                raise Malformed(f"header {name[:40]!r} is unknown, repeated, or comes late")
            pseudo[name] = value
            continue
        if not _is_field(name, value):
            raise Malformed(f"HTTP/2 has no header {name[:40]!r}: {value[:40]!r}")
        if name == b"te":
            extensions = _TRAILERS
        if name != b"host" or b":authority" not in pseudo:
            regular.append((name, value))
    if _NO_VALUE.search(b"".join(pseudo.values())):
        raise Malformed("a line ends within a header")
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
        "extensions": extensions,
    }


def content_length(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """How long the body claims to be; None when it does not.

    Raises:
        Malformed: it claims several lengths, or none that can be.
    """
    found = {value for name, value in headers if name == b"content-length"}
    if not found:
        return None
    value = found.pop()
    if found or not value.isdigit() or len(value) > _LENGTH_DIGITS:
        raise Malformed(f"a content-length of {value[:40]!r}")
    return int(value)


def _is_field(name: bytes, value: bytes) -> bool:
    if len(name) > _NAME_BYTES or not _is_name(name) or (name == b"te" and value != b"trailers"):
        return False
    return value.isalnum() or not (_NO_VALUE.search(value) or value[:1].isspace() or value[-1:].isspace())


@lru_cache(maxsize=1024)
def _is_name(name: bytes) -> bool:
    return name not in _FORBIDDEN and _NAME.fullmatch(name) is not None


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
