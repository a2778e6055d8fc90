"""Spans of time as etcd's flags write them: `500ms`, `5s`, `1m30s` (Go's time.ParseDuration)."""

import re

_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)"


def parse_duration(text: str) -> float:
    """Seconds of a duration.

    Raises:
        ValueError: it is none, or negative.

    >>> parse_duration("1m30s"), parse_duration("250ms"), parse_duration("0")
    (90.0, 0.25, 0.0)
    """
    if text == "0":
        return 0.0
    if not re.fullmatch(f"(?:{_PART})+", text):
        raise ValueError(f"{text} is not a duration such as 500ms, 5s or 1m30s")
    return sum(float(number) * _SECONDS[unit] for number, unit in re.findall(_PART, text))
