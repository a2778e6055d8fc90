"""Texts as Go programs write and read them: numbers, durations, quoted strings, sizes."""

import re

_NANOSECONDS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9}
_NANOSECONDS["h"] = 3600 * 10**9
_PART = re.compile(r"([0-9]*)(?:\.([0-9]*))?([^0-9.]*)")

_ESCAPES = {"a": 0x07, "b": 0x08, "t": 0x09, "n": 0x0A, "v": 0x0B, "f": 0x0C, "r": 0x0D, "\\": 0x5C, '"': 0x22}
_NAMES = {chr(code): "\\" + name for name, code in _ESCAPES.items()}
_NUMERIC = re.compile(r"x([0-9a-fA-F]{2})|([0-7]{3})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})")


def parse_int(text: str, base: int = 10) -> int:
    """A signed 64-bit integer.

    >>> parse_int("-12"), parse_int("ff", 16)
    (-12, 255)

    Raises:
        ValueError: with Go's words.
    """
    try:
        # Python also takes underscores, blanks, 0x and digits of other scripts.
        number = int(text, base) if text.isascii() and not set(text) & set("xX_ \t\n\r\f\v") else None
    except ValueError:
        number = None
    if number is None:
        raise ValueError(f"strconv.ParseInt: parsing {quote(text.encode())}: invalid syntax")
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError(f"strconv.ParseInt: parsing {quote(text.encode())}: value out of range")
    return number


def parse_uint(text: str, base: int = 10) -> int:
    """An unsigned 64-bit integer.

    >>> parse_uint("ff", 16)
    255

    Raises:
        ValueError: with Go's words.
    """
    try:
        # Python also takes signs, underscores, blanks, 0x and digits of other scripts.
        number = int(text, base) if text.isascii() and text.isalnum() and not set(text) & set("xX") else -1
    except ValueError:
        number = -1
    if number < 0:
        raise ValueError(f"strconv.ParseUint: parsing {quote(text.encode())}: invalid syntax")
    if number >= 1 << 64:
        raise ValueError(f"strconv.ParseUint: parsing {quote(text.encode())}: value out of range")
    return number


def parse_bool(text: str) -> bool:
    """A truth value: 1, t, T, TRUE, true, True, and their opposites.

    Raises:
        ValueError: with Go's words.
    """
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise ValueError(f"strconv.ParseBool: parsing {quote(text.encode())}: invalid syntax")


def parse_duration(text: str) -> float:
    """Seconds of a duration.

    >>> parse_duration("1m30s"), parse_duration("300ms"), parse_duration("-1.5h"), parse_duration("0")
    (90.0, 0.3, -5400.0, 0.0)

    Raises:
        ValueError: with Go's words.
    """
    shown = quote(text.encode("utf-8", "surrogateescape"))
    sign, rest = (-1 if text[:1] == "-" else 1), text[1:] if text[:1] in ("+", "-") else text
    if rest == "0":
        return 0.0
    if not rest:
        raise ValueError(f"time: invalid duration {shown}")
    total = 0.0
    while rest:
        match = _PART.match(rest)
        if match is None or not (match[1] or match[2]):
            raise ValueError(f"time: invalid duration {shown}")
        if not match[3]:
            raise ValueError(f"time: missing unit in duration {shown}")
        if match[3] not in _NANOSECONDS:
            raise ValueError(f"time: unknown unit {quote(match[3].encode('utf-8', 'replace'))} in duration {shown}")
        total += float(f"{match[1] or 0}.{match[2] or 0}") * _NANOSECONDS[match[3]]
        rest = rest[match.end() :]
    return sign * total / 1e9


def format_duration(nanoseconds: int) -> str:
    """A duration as Go prints it.

    >>> format_duration(1_262_245), format_duration(90_500_000_000), format_duration(0), format_duration(12)
    ('1.262245ms', '1m30.5s', '0s', '12ns')
    """
    if not nanoseconds:
        return "0s"
    for unit, digits in (("ns", 0), ("µs", 3), ("ms", 6)):
        if nanoseconds < 10 ** (digits + 3):
            return _fraction(nanoseconds, digits) + unit
    seconds = _fraction(nanoseconds % (60 * 10**9), 9) + "s"
    hours, minutes = divmod(nanoseconds // (60 * 10**9), 60)
    return f"{hours}h{minutes}m{seconds}" if hours else f"{minutes}m{seconds}" if minutes else seconds


def _fraction(number: int, digits: int) -> str:
    whole, part = divmod(number, 10**digits)
    return f"{whole}.{part:0{digits}}".rstrip("0").rstrip(".") if digits else str(whole)


def quote(data: bytes) -> str:
    """Bytes as a Go string literal.

    >>> print(quote(b'a"\\\\\\n\\xff'), quote("é\\u2028".encode()))
    "a\\"\\\\\\n\\xff" "é\\u2028"
    """
    out = []
    for char in data.decode("utf-8", "surrogateescape"):
        code = ord(char)
        if char in _NAMES:
            out.append(_NAMES[char])
        elif 0xDC80 <= code <= 0xDCFF:
            out.append(f"\\x{code - 0xDC00:02x}")
        elif char.isprintable():
            out.append(char)
        elif code < 0x80:
            out.append(f"\\x{code:02x}")
        else:
            out.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return '"' + "".join(out) + '"'


def scan_quoted(text: str) -> tuple[bytes, str]:
    """Take a Go string literal, "…" with escapes or `…` raw, off the front: its bytes, and the text after it.

    >>> scan_quoted('"a\\\\x41\\\\u00e9" rest'), scan_quoted("`raw\\\\n`")
    ((b'aA\\xc3\\xa9', ' rest'), (b'raw\\\\n', ''))

    Raises:
        ValueError: no literal, or not a good one; with Go's words.
    """
    if text[:1] == "`":
        raw, closed, rest = text[1:].partition("`")
        if not closed:
            raise ValueError("unexpected EOF")
        return raw.encode("utf-8", "surrogateescape"), rest
    if text[:1] != '"':
        raise ValueError("expected quoted string")
    out, at = bytearray(), 1
    while at < len(text):
        if text[at] == '"':
            return bytes(out), text[at + 1 :]
        piece, at = _escape(text, at + 1) if text[at] == "\\" else (text[at].encode("utf-8", "surrogateescape"), at + 1)
        out += piece
    raise ValueError("unexpected EOF")


def _escape(text: str, at: int) -> tuple[bytes, int]:
    if text[at : at + 1] and text[at] in _ESCAPES:
        return bytes([_ESCAPES[text[at]]]), at + 1
    match = _NUMERIC.match(text, at)
    if match is None:
        raise ValueError("invalid syntax")
    byte = int(match[1], 16) if match[1] else int(match[2], 8) if match[2] else None
    if byte is not None and byte < 0x100:
        return bytes([byte]), match.end()
    code = int(match[3] or match[4], 16) if byte is None else 0x110000
    if code > 0x10FFFF or 0xD800 <= code < 0xE000:
        raise ValueError("invalid syntax")
    return chr(code).encode(), match.end()


def hexadecimal(data: bytes) -> bytes:
    """Bytes as \\x00 escapes (--hex)."""
    return "".join(f"\\x{byte:02x}" for byte in data).encode()


def humanize(size: int) -> str:
    """A size in bytes with a decimal unit, two digits.

    >>> humanize(9), humanize(20480), humanize(1_500_000), humanize(25_450)
    ('9 B', '20 kB', '1.5 MB', '26 kB')
    """
    if size < 10:
        return f"{size} B"
    unit = 0
    while unit < 6 and size >= 1000 ** (unit + 1):
        unit += 1
    # Rounded to tenths first, halves up, and then once more to what is shown.
    value = int(size / 1000**unit * 10 + 0.5) / 10
    name = ("B", "kB", "MB", "GB", "TB", "PB", "EB")[unit]
    return f"{value:.1f} {name}" if value < 10 else f"{value:.0f} {name}"
