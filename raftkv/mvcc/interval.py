"""Intervals of keys as requests write them: key and range_end (etcd's KV API)."""

Interval = tuple[bytes, bytes | None]
"""Half open [first, end); no end: everything from first on."""

EVERYTHING = b"\0"


def interval(key: bytes, range_end: bytes) -> Interval:
    """The interval a request means.

    >>> interval(b"a", b"")
    (b'a', b'a\\x00')
    >>> interval(b"a", b"b")
    (b'a', b'b')
    >>> interval(b"a", b"\\0")
    (b'a', None)
    """
    if not range_end:
        return key, key + b"\0"
    if range_end == EVERYTHING:
        return (b"" if key == EVERYTHING else key), None
    return key, range_end


def contains(span: Interval, key: bytes) -> bool:
    """Whether the key lies in the interval."""
    first, end = span
    return first <= key and (end is None or key < end)
