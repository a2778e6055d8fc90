"""put, get and del as requests: their flags, for the commands and for the lines of a txn."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.raftctl import flags, golang
from cli.raftctl.failure import BAD_ARGUMENTS, BAD_FEATURE, Failure

if TYPE_CHECKING:
    from raftkv.pb import rpc_pb2

F = TypeVar("F", bound=Callable[..., Any])

ORDERS = ("NONE", "ASCEND", "DESCEND")
TARGETS = {"": "KEY", "KEY": "KEY", "VERSION": "VERSION", "CREATE": "CREATE", "MODIFY": "MOD", "VALUE": "VALUE"}


def raw(text: str) -> bytes:
    """The bytes of an argument, which need not be text."""
    return text.encode("utf-8", "surrogateescape")


def _switch(name: str, text: str) -> Callable[[F], F]:
    return click.option(name, is_flag=True, help=text)


def _stack(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


put_options = _stack(
    click.argument("words", nargs=-1, metavar="KEY [VALUE]"),
    click.option("--lease", default="0", show_default=True, metavar="ID", help="Lease to attach, in hexadecimal."),
    _switch("--prev-kv", "Print the key as it was before."),
    _switch("--ignore-value", "Keep the value."),
    _switch("--ignore-lease", "Keep the lease."),
)
get_options = _stack(
    click.argument("words", nargs=-1, metavar="KEY [RANGE_END]"),
    click.option("--consistency", default="l", show_default=True, metavar="l|s", help="Linearizable or serializable."),
    click.option("--order", default="", metavar="ORDER", help="ASCEND or DESCEND."),
    click.option("--sort-by", default="", metavar="FIELD", help="CREATE, KEY, MODIFY, VALUE or VERSION."),
    click.option("--limit", type=flags.INT, default=0, metavar="N", help="At most N keys; 0: all."),
    _switch("--prefix", "All keys that begin with KEY."),
    _switch("--from-key", "All keys from KEY on."),
    click.option("--rev", type=flags.INT, default=0, metavar="REVISION", help="As of this revision."),
    _switch("--keys-only", "Without the values."),
    _switch("--count-only", "Only how many (simple and fields)."),
    _switch("--print-value-only", "Only the values (simple)."),
)
del_options = _stack(
    click.argument("words", nargs=-1, metavar="KEY [RANGE_END]"),
    _switch("--prefix", "All keys that begin with KEY."),
    _switch("--from-key", "All keys from KEY on."),
    _switch("--prev-kv", "Print what was deleted."),
)


def put_request(
    read_value: Callable[[], bytes],
    *,
    words: tuple[str, ...],
    lease: str,
    prev_kv: bool,
    ignore_value: bool,
    ignore_lease: bool,
) -> "rpc_pb2.PutRequest":
    """A put; `read_value` gives the value when the words do not.

    Raises:
        Failure: arguments that etcdctl refuses.
    """
    from raftkv.pb import rpc_pb2

    if not words:
        raise Failure("put command needs 1 argument and input from stdin or 2 arguments", BAD_ARGUMENTS)
    if ignore_value and len(words) > 1:
        raise Failure("put command needs only 1 argument when 'ignore-value' is set", BAD_ARGUMENTS)
    try:
        lease_id = golang.parse_int(lease, 16)
    except ValueError as error:
        raise Failure(f"bad lease ID ({error}), expecting ID in Hex", BAD_ARGUMENTS) from error
    request = rpc_pb2.PutRequest(key=raw(words[0]), lease=lease_id, prev_kv=prev_kv)
    request.ignore_value, request.ignore_lease = ignore_value, ignore_lease
    if not ignore_value:
        request.value = raw(words[1]) if len(words) > 1 else read_value()
        if len(words) < 2 and not request.value:
            raise Failure("put command needs 1 argument and input from stdin or 2 arguments", BAD_ARGUMENTS)
    return request


def key_range(words: tuple[str, ...], *, prefix: bool, from_key: bool) -> tuple[bytes, bytes]:
    """Key and range_end of `KEY [RANGE_END]`, --prefix and --from-key.

    Raises:
        Failure: they contradict each other.
    """
    if len(words) > 1:
        if prefix or from_key:
            raise Failure(
                "too many arguments, only accept one argument when `--prefix` or `--from-key` is set", BAD_ARGUMENTS
            )
        return raw(words[0]), raw(words[1])
    key = raw(words[0])
    if prefix:
        from raftkv.client.requests import prefix_end

        return key or b"\0", prefix_end(key)
    return (key or b"\0", b"\0") if from_key else (key, b"")


def _one_of(prefix: bool, from_key: bool) -> None:
    if prefix and from_key:
        raise Failure("`--prefix` and `--from-key` cannot be set at the same time, choose one", BAD_ARGUMENTS)


def range_request(
    *,
    words: tuple[str, ...],
    consistency: str,
    order: str,
    sort_by: str,
    limit: int,
    prefix: bool,
    from_key: bool,
    rev: int,
    keys_only: bool,
    count_only: bool,
    **_printing: object,
) -> "rpc_pb2.RangeRequest":
    """A get.

    Raises:
        Failure: arguments that etcdctl refuses.
    """
    from raftkv.pb import rpc_pb2

    if not words:
        raise Failure("get command needs one argument as key and an optional argument as range_end", BAD_ARGUMENTS)
    _one_of(prefix, from_key)
    if keys_only and count_only:
        raise Failure("`--keys-only` and `--count-only` cannot be set at the same time, choose one", BAD_ARGUMENTS)
    if consistency not in ("l", "s"):
        raise Failure(f"unknown consistency flag {golang.quote(raw(consistency))}", BAD_FEATURE)
    key, range_end = key_range(words, prefix=prefix, from_key=from_key)
    wanted_order = order.upper() or "NONE"
    if wanted_order not in ORDERS or order.upper() == "NONE":
        raise Failure(f"bad sort order {order}", BAD_FEATURE)
    if sort_by.upper() not in TARGETS:
        raise Failure(f"bad sort target {sort_by}", BAD_FEATURE)
    target = TARGETS[sort_by.upper()]
    # By key and ascending is how a range comes anyway.
    plain = target == "KEY" and wanted_order == "ASCEND"
    return rpc_pb2.RangeRequest(
        key=key,
        range_end=range_end,
        limit=limit,
        revision=max(rev, 0),
        sort_order="NONE" if plain else wanted_order,
        sort_target=target,
        serializable=consistency == "s",
        keys_only=keys_only,
        count_only=count_only,
    )


def delete_request(
    *, words: tuple[str, ...], prefix: bool, from_key: bool, prev_kv: bool
) -> "rpc_pb2.DeleteRangeRequest":
    """A del.

    Raises:
        Failure: arguments that etcdctl refuses.
    """
    from raftkv.pb import rpc_pb2

    if not 1 <= len(words) <= 2:
        raise Failure("del command needs one argument as key and an optional argument as range_end", BAD_ARGUMENTS)
    _one_of(prefix, from_key)
    key, range_end = key_range(words, prefix=prefix, from_key=from_key)
    return rpc_pb2.DeleteRangeRequest(key=key, range_end=range_end, prev_kv=prev_kv)
