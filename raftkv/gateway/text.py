"""JSON text: the values of a request body, and answers written as Go writes them.

Malformed JSON is refused in the words of Go's parser, which clients of etcd know.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

_SPACE = re.compile(r"[ \t\r\n]*")
_MARKS = re.compile(rb'["\\{}\[\]]')
_HEXADECIMAL = re.compile(r"[0-9A-Fa-f]{0,4}")
_NUMBER_BEGUN = re.compile(r"[-+.0-9eE]+\Z")
_CHECKED_BYTES = 4 << 10
_END = "unexpected EOF"
_ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}
_LITERALS = ("true", "false", "null")
_NO_VALUE = "Expecting value"
_NO_NAME = "Expecting property name enclosed in double quotes"
_REASONS = {
    _NO_VALUE: "looking for beginning of value",
    _NO_NAME: "looking for beginning of object key string",
    "Expecting ':' delimiter": "after object key",
    "Expecting ',' delimiter": "after object key:value pair",
    "Invalid control character at": "in string literal",
}


class BadJson(ValueError):
    """A request body that is no message in JSON; the text is for the client."""


def _no_constant(name: str) -> NoReturn:
    # NaN and Infinity are Python's, not JSON's.
    raise BadJson(f"invalid character '{name.lstrip('-')[0]}' looking for beginning of value")


class Fraction(str):
    """A JSON number that is not written as an integer; no field of the API takes one."""

    __slots__ = ()


_decoder = json.JSONDecoder(parse_float=Fraction, parse_constant=_no_constant)


def dumps(value: object) -> bytes:
    """Write a value without spaces, safe to put into HTML, as Go does."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_ESCAPES).encode("utf-8", "replace")


def first_value(body: bytes) -> Any:
    """Read the first JSON value of a body, whatever follows it; None when there is nothing but space.

    Raises:
        BadJson: it is not JSON.
    """
    text = body.decode("utf-8", "replace")
    start = _skip_space(text)
    if start == len(text):
        return None
    try:
        return _decoder.raw_decode(text, start)[0]
    except BadJson:
        raise
    except json.JSONDecodeError as error:
        raise BadJson(_reason(text, error)) from error
    except RecursionError as error:
        raise BadJson("exceeded max depth") from error
    except ValueError as error:
        raise BadJson("a number has too many digits") from error


def _may_go_on(text: str) -> bool:
    """Whether a text that is not empty is JSON, or what follows may make it JSON."""
    try:
        _decoder.raw_decode(text, _skip_space(text))
    except json.JSONDecodeError as error:
        number = _NUMBER_BEGUN.search(text)
        in_number = number is not None and number.start() <= error.pos and error.msg != _NO_NAME
        return in_number or _reason(text, error) == _END
    except (ValueError, RecursionError):
        return False
    return True


def _skip_space(text: str) -> int:
    space = _SPACE.match(text)
    return space.end() if space else 0


def _reason(text: str, error: json.JSONDecodeError) -> str:
    place, reason = error.pos, _REASONS.get(error.msg, f"({error.msg})")
    if error.msg.startswith("Illegal trailing comma"):
        # Python 3.13 points at the comma, earlier ones and Go at what follows it.
        place += 1 + _skip_space(text[place + 1 :])
        reason = _REASONS[_NO_NAME if text[place : place + 1] == "}" else _NO_VALUE]
    elif error.msg.startswith("Invalid \\escape"):
        place, reason = place + 1, "in string escape code"
    elif error.msg.startswith("Invalid \\u"):
        digits = _HEXADECIMAL.match(text, place + 1)
        place, reason = digits.end() if digits else place, "in \\u hexadecimal character escape"
    elif error.msg.startswith("Expecting ','") and _in_array(text[:place]):
        reason = "after array element"
    elif error.msg == _NO_VALUE:
        for literal in _LITERALS:
            shared = _shared(literal, text[place:])
            if shared:
                place, reason = place + shared, f"in literal {literal} (expecting '{literal[shared]}')"
    if place >= len(text) or error.msg.startswith("Unterminated"):
        return _END
    return f"invalid character {_quoted(text[place])} {reason}"


def _shared(literal: str, text: str) -> int:
    """How many signs of a text are those of the literal."""
    return next((place for place, sign in enumerate(literal) if text[place : place + 1] != sign), len(literal))


def _quoted(sign: str) -> str:
    return "'\\''" if sign == "'" else f"'{sign if sign.isprintable() else json.dumps(sign)[1:-1]}'"


def _in_array(text: str) -> bool:
    """Whether the innermost bracket that is open at the end of a text is that of an array."""
    splitter = Splitter(len(text) * 4 + 1, checked_bytes=0)
    list(splitter.feed(text.encode()))
    return splitter.innermost == b"["


class Splitter:
    """Cuts a body of concatenated JSON values into values as its bytes arrive; each byte is looked at once."""

    def __init__(self, max_bytes: int, *, checked_bytes: int = _CHECKED_BYTES) -> None:
        """`max_bytes` bounds one value; a text of more than `checked_bytes` is not examined before it is complete."""
        self._max_bytes = max_bytes
        self._checked_bytes = checked_bytes
        self._buffer = bytearray()
        self._seen = 0
        self._open: list[bytes] = []
        self._in_string = False

    @property
    def innermost(self) -> bytes:
        """The bracket that is open now, or nothing."""
        return self._open[-1] if self._open else b""

    @property
    def waiting_bytes(self) -> int:
        """The length of the value that is not complete yet."""
        return len(self._buffer)

    def feed(self, data: bytes, *, last: bool = False) -> Iterator[bytes]:
        """Take bytes; the values that are complete now, and after the last bytes whatever is left.

        What can no longer become a value counts as complete: reading it says why.

        Raises:
            BadJson: a value is larger than allowed.
        """
        self._buffer += data
        yield from self._complete()
        if len(self._buffer) > self._max_bytes:
            raise BadJson(f"a request is larger than {self._max_bytes} bytes")
        if not self._buffer.isspace() and self._buffer and (last or self._hopeless()):
            rest = bytes(self._buffer)
            self._buffer.clear()
            self._seen = 0
            yield rest

    def _hopeless(self) -> bool:
        """Whether to wait for more is no use: a word that has ended, or what no bytes can make JSON."""
        if len(self._buffer) > self._checked_bytes:
            return False
        ended = not self._open and not self._in_string and self._buffer[-1:].isspace()
        return ended or not _may_go_on(self._buffer.decode("utf-8", "replace"))

    def _complete(self) -> Iterator[bytes]:
        while (mark := _MARKS.search(self._buffer, self._seen)) is not None:
            sign = mark.group()
            if sign == b"\\" and mark.end() == len(self._buffer):
                # What it escapes has not arrived.
                self._seen = mark.start()
                return
            self._seen = mark.end() + (sign == b"\\")
            if sign == b'"':
                self._in_string = not self._in_string
            elif self._in_string or sign == b"\\":
                continue
            elif sign in b"{[":
                self._open.append(sign)
            elif self._open:
                self._open.pop()
                if not self._open:
                    yield bytes(self._buffer[: self._seen])
                    del self._buffer[: self._seen]
                    self._seen = 0
        self._seen = len(self._buffer)
