"""Texts as Go programs write and read them: durations, quoted bytes, sizes."""

import re

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_ESCAPES = {0x07: "\\a", 0x08: "\\b", 0x09: "\\t", 0x0A: "\\n", 0x0B: "\\v", 0x0C: "\\f", 0x0D: "\\r"}


def parse_duration(text: str) -> float:
    """Seconds of a duration such as 5s, 1m30s or 300ms.

    Raises:
        ValueError: not a duration.
    """
    parts = _PART.findall(text)
    if text == "0":
        return 0.0
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration such as 5s, 1m30s or 300ms")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def format_duration(seconds: float) -> str:
    """A duration below a minute, as Go prints it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.6f}".rstrip("0").rstrip(".") + unit
    return f"{round(seconds * 1e9)}ns"


def quote(data: bytes) -> str:
    """Bytes in double quotes, as Go's %q."""
    out = []
    for char in data.decode("utf-8", "surrogateescape"):
        code = ord(char)
        if char in '"\\':
            out.append("\\" + char)
        elif 0xDC80 <= code <= 0xDCFF:
            out.append(f"\\x{code - 0xDC00:02x}")
        elif code in _ESCAPES:
            out.append(_ESCAPES[code])
        elif char.isprintable():
            out.append(char)
        elif code < 0x80:
            out.append(f"\\x{code:02x}")
        else:
            out.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return '"' + "".join(out) + '"'


def hexadecimal(data: bytes) -> bytes:
    """Bytes as \\x00 escapes (--hex)."""
    return "".join(f"\\x{byte:02x}" for byte in data).encode()


def humanize(size: int) -> str:
    """A size in bytes with a decimal unit, two digits."""
    if size < 10:
        return f"{size} B"
    value, unit = float(size), 0
    while value >= 1000 and unit < 6:
        value /= 1000
        unit += 1
    name = ("B", "kB", "MB", "GB", "TB", "PB", "EB")[unit]
    return f"{value:.1f} {name}" if value < 10 else f"{value:.0f} {name}"
