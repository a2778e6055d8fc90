"""Decoding of header blocks (RFC 7541), for requests whose headers differ each time: a time limit, a token.

The library decodes such a request in several times as long. Its tables of constants are used here, and the tests hold
its decoder beside this one.
"""

from collections import deque
from collections.abc import Sequence

from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable

from raftkv.http.frames import DEFAULT_TABLE_BYTES, ErrorCode, ProtocolError

Header = tuple[bytes, bytes]

ENTRY_BYTES = 32
"""What a header counts more than its name and value."""
_STATIC: tuple[Header, ...] = ((b"", b""), *((bytes(name), bytes(value)) for name, value in HeaderTable.STATIC_TABLE))
_FIRST_DYNAMIC = len(_STATIC)
_MAX_SIZES = 64
"""Two say all there is to say; a block of nothing else would take long to read."""
_MAX_NUMBER = 1 << 28
_MAX_SHIFT = 28
_END_OF_STRING = 256


class Decoder:
    """Decodes the header blocks of one connection, in order."""

    __slots__ = ("_entries", "_limit", "_max_list_bytes", "_size", "version")

    def __init__(self, max_list_bytes: int) -> None:
        """`max_list_bytes` is the limit on the headers of a block, each with `ENTRY_BYTES` more."""
        self._max_list_bytes = max_list_bytes
        self._entries: deque[Header] = deque()
        self._size = 0
        self._limit = DEFAULT_TABLE_BYTES
        self.version = 0
        """Grows with every block that may have changed the table."""

    def decode(self, block: bytes) -> list[Header]:
        """The headers of a block.

        Raises:
            ProtocolError: it cannot be decoded; the connection must end.
        """
        try:
            return self._decode(block)
        except IndexError as error:
            raise _broken("a block that ends early, or an entry that no table has") from error

    def _decode(self, block: bytes) -> list[Header]:
        headers: list[Header] = []
        at, end, room = 0, len(block), self._max_list_bytes
        sizes = 0
        while at < end:
            byte = block[at]
            if byte & 0x80:
                index, at = _number(block, at, 0x7F)
                header = self._entry(index)
            elif byte & 0xE0 == 0x20:
                if headers:
                    raise _broken("a size of the table amid headers")
                size, at = _number(block, at, 0x1F)
                self._resize(size)
                sizes += 1
                if sizes > _MAX_SIZES:
                    raise _broken("sizes of the table without end")
                continue
            else:
                kept = byte & 0x40
                index, at = _number(block, at, 0x3F if kept else 0x0F)
                if index:
                    name = self._entry(index)[0]
                else:
                    name, at = _string(block, at)
                value, at = _string(block, at)
                header = (name, value)
                if kept:
                    self._keep(header)
            room -= len(header[0]) + len(header[1]) + ENTRY_BYTES
            headers.append(header)
            if room < 0:
                raise _broken("more headers than are allowed")
        return headers

    def _entry(self, index: int) -> Header:
        if index >= _FIRST_DYNAMIC:
            return self._entries[index - _FIRST_DYNAMIC]
        if not index:
            raise _broken("an entry of number 0")
        return _STATIC[index]

    def _keep(self, header: Header) -> None:
        self.version += 1
        self._size += len(header[0]) + len(header[1]) + ENTRY_BYTES
        self._entries.appendleft(header)
        self._shrink()

    def _resize(self, size: int) -> None:
        if size > DEFAULT_TABLE_BYTES:
            raise _broken("a table larger than is allowed")
        self.version += 1
        self._limit = size
        self._shrink()

    def _shrink(self) -> None:
        while self._size > self._limit:
            name, value = self._entries.pop()
            self._size -= len(name) + len(value) + ENTRY_BYTES


def _broken(text: str) -> ProtocolError:
    return ProtocolError(ErrorCode.COMPRESSION_ERROR, f"headers cannot be decoded: {text}")


def _number(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """A number whose first bits are those of the mask, and where it ends."""
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    shift = 0
    while True:
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if value > _MAX_NUMBER or shift > _MAX_SHIFT:
            raise _broken("a number that is too large")
        if byte < 0x80:
            return value, at
        shift += 7


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    packed = block[at] & 0x80
    size, at = _number(block, at, 0x7F)
    end = at + size
    data = block[at:end]
    if len(data) < size:
        raise _broken("a string that ends early")
    return (unpack(data) if packed else data), end


def unpack(data: bytes) -> bytes:
    """Decode Huffman's code.

    Raises:
        ProtocolError: it is none.
    """
    pieces = []
    node = 0
    for byte in data:
        step = _STEPS.get(node << 8 | byte)
        node, piece = _step(node, byte) if step is None else step
        pieces.append(piece)
    if node not in _ENDS:
        raise _broken("a string that ends amid a symbol")
    return b"".join(pieces)


def _tree(codes: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Huffman's tree: for each node, what follows a 0 and a 1; a node (0 is the root), or below 0 a symbol."""
    nodes = [[0, 0]]
    for symbol, (code, size) in enumerate(zip(codes, sizes, strict=True)):
        node = 0
        for place in range(size - 1, 0, -1):
            bit = code >> place & 1
            if not nodes[node][bit]:
                nodes[node][bit] = len(nodes)
                nodes.append([0, 0])
            node = nodes[node][bit]
        nodes[node][code & 1] = ~symbol
    return nodes


_NODES = _tree(REQUEST_CODES, REQUEST_CODES_LENGTH)
_STEPS: dict[int, tuple[int, bytes]] = {}
"""What a byte does at a node, by node << 8 | byte: the next node and the symbols on the way. Made when needed."""


def _step(node: int, byte: int) -> tuple[int, bytes]:
    symbols = bytearray()
    start = node
    for place in range(7, -1, -1):
        node = _NODES[node][byte >> place & 1]
        if node < 0:
            if ~node == _END_OF_STRING:
                raise _broken("the end of a string amid it")
            symbols.append(~node)
            node = 0
    found = _STEPS[start << 8 | byte] = (node, bytes(symbols))
    return found


def _ends() -> frozenset[int]:
    """Where a string may end: what is left of its last byte is all ones, and less than a byte."""
    nodes = [0]
    for _ in range(7):
        nodes.append(_NODES[nodes[-1]][1])
    return frozenset(nodes)


_ENDS = _ends()
