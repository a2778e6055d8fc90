"""put, get, del, compaction."""

import sys

import click

from cli.raftctl.failure import BAD_ARGUMENTS, BAD_FEATURE, Failure
from cli.raftctl.session import global_options, session

PAGE = 1000
ORDERS = {"": 0, "ASCEND": 1, "DESCEND": 2}
TARGETS = {"": 0, "KEY": 0, "VERSION": 1, "CREATE": 2, "MODIFY": 3, "VALUE": 4}


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


@click.command("put")
@click.argument("words", nargs=-1, metavar="KEY [VALUE]")
@click.option("--lease", default="0", show_default=True, help="Lease to attach, in hexadecimal.")
@click.option("--prev-kv", is_flag=True, help="Print the previous version.")
@click.option("--ignore-value", is_flag=True, help="Keep the value, change the rest.")
@click.option("--ignore-lease", is_flag=True, help="Keep the lease.")
@global_options
def put(words: tuple[str, ...], lease: str, prev_kv: bool, ignore_value: bool, ignore_lease: bool) -> None:
    """Write KEY. Without VALUE it is read from standard input.

    \b
    Examples:
      raftctl put /registry/pods/default/web "$(cat pod.bin)"
      raftctl put big < file
    """
    if not words or len(words) > 2 or (ignore_value and len(words) == 2):
        if ignore_value:
            raise Failure("put command needs only 1 argument when 'ignore-value' is set", BAD_ARGUMENTS)
        raise Failure("put command needs 1 argument and input from stdin or 2 arguments", BAD_ARGUMENTS)
    try:
        lease_id = int(lease, 16)
    except ValueError as error:
        raise Failure(f"bad lease ID ({lease}), expecting ID in Hex", BAD_ARGUMENTS) from error
    value = b""
    if not ignore_value:
        value = _raw(words[1]) if len(words) == 2 else sys.stdin.buffer.read()
    from raftkv.client.requests import PUT
    from raftkv.pb import rpc_pb2

    request = rpc_pb2.PutRequest(
        key=_raw(words[0]),
        value=value,
        lease=lease_id,
        prev_kv=prev_kv,
        ignore_value=ignore_value,
        ignore_lease=ignore_lease,
    )
    with session().client() as client:
        session().printer().put(client.call(PUT, request))


def key_range(words: tuple[str, ...], name: str, *, prefix: bool, from_key: bool) -> tuple[bytes, bytes]:
    """Key and range_end of `KEY [RANGE_END]`, --prefix and --from-key.

    Raises:
        Failure: they contradict each other.
    """
    if prefix and from_key:
        raise Failure("`--prefix` and `--from-key` cannot be set at the same time, choose one", BAD_ARGUMENTS)
    if not 1 <= len(words) <= 2:
        raise Failure(f"{name} command needs one argument as key and an optional argument as range_end", BAD_ARGUMENTS)
    key = _raw(words[0])
    if len(words) == 2:
        if prefix or from_key:
            raise Failure(
                "too many arguments, only accept one argument when `--prefix` or `--from-key` is set", BAD_ARGUMENTS
            )
        return key, _raw(words[1])
    if prefix:
        from raftkv.client.requests import prefix_end

        return key or b"\0", prefix_end(key)
    return (key or b"\0", b"\0") if from_key else (key, b"")


@click.command("get")
@click.argument("words", nargs=-1, metavar="KEY [RANGE_END]")
@click.option("--consistency", default="l", show_default=True, help="l(inearizable) or s(erializable).")
@click.option("--order", default="", help="ASCEND or DESCEND.")
@click.option("--sort-by", default="", help="CREATE, KEY, MODIFY, VALUE or VERSION.")
@click.option("--limit", type=click.IntRange(0), default=0, help="Most keys to print; 0: all.")
@click.option("--prefix", is_flag=True, help="All keys that begin with KEY.")
@click.option("--from-key", is_flag=True, help="All keys from KEY on.")
@click.option("--rev", type=int, default=0, help="Read at this revision.")
@click.option("--keys-only", is_flag=True, help="Leave the values out.")
@click.option("--count-only", is_flag=True, help="Only count.")
@click.option("--print-value-only", is_flag=True, help="Leave the keys out.")
@global_options
def get(
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
    print_value_only: bool,
) -> None:
    """Print KEY, the keys of [KEY, RANGE_END), or those with a prefix.

    \b
    Examples:
      raftctl get /registry --prefix --keys-only
      raftctl get a z --limit 10 -w json
    """
    if consistency not in ("l", "s"):
        raise Failure(f'unknown consistency flag "{consistency}"', BAD_FEATURE)
    if order.upper() not in ORDERS:
        raise Failure(f'bad sort order "{order}"', BAD_FEATURE)
    if sort_by.upper() not in TARGETS:
        raise Failure(f'bad sort target "{sort_by}"', BAD_FEATURE)
    if keys_only and count_only:
        raise Failure("`--keys-only` and `--count-only` cannot be set at the same time, choose one", BAD_ARGUMENTS)
    key, range_end = key_range(words, "get", prefix=prefix, from_key=from_key)
    from raftkv.client.requests import RANGE
    from raftkv.pb import rpc_pb2

    request = rpc_pb2.RangeRequest(
        key=key,
        range_end=range_end,
        limit=limit,
        revision=rev,
        sort_order=rpc_pb2.RangeRequest.SortOrder.Name(ORDERS[order.upper()]),
        sort_target=rpc_pb2.RangeRequest.SortTarget.Name(TARGETS[sort_by.upper()]),
        serializable=consistency == "s",
        keys_only=keys_only,
        count_only=count_only,
    )
    printer = session().printer()
    plain = not order and not sort_by and not count_only
    with session().client() as client:
        pages = client.pages(request) if printer.streams and plain else iter([client.call(RANGE, request)])
        for response in pages:
            printer.range(response, value_only=print_value_only, count_only=count_only)


@click.command("del")
@click.argument("words", nargs=-1, metavar="KEY [RANGE_END]")
@click.option("--prefix", is_flag=True, help="All keys that begin with KEY.")
@click.option("--from-key", is_flag=True, help="All keys from KEY on.")
@click.option("--prev-kv", is_flag=True, help="Print what was deleted.")
@global_options
def delete(words: tuple[str, ...], prefix: bool, from_key: bool, prev_kv: bool) -> None:
    """Delete KEY, the keys of [KEY, RANGE_END), or those with a prefix; prints how many.

    \b
    Examples:
      raftctl del /registry/pods/default/web
      raftctl del /registry/events --prefix
    """
    key, range_end = key_range(words, "del", prefix=prefix, from_key=from_key)
    from raftkv.client.requests import DELETE_RANGE
    from raftkv.pb import rpc_pb2

    request = rpc_pb2.DeleteRangeRequest(key=key, range_end=range_end, prev_kv=prev_kv)
    with session().client() as client:
        session().printer().delete(client.call(DELETE_RANGE, request))


@click.command("compaction")
@click.argument("words", nargs=-1, metavar="REVISION")
@click.option("--physical", is_flag=True, help="Wait until the member has removed the history.")
@global_options
def compaction(words: tuple[str, ...], physical: bool) -> None:
    """Give up history below REVISION.

    \b
    Example:
      raftctl compaction 1234
    """
    if len(words) != 1:
        raise Failure("compaction command needs 1 argument", BAD_ARGUMENTS)
    try:
        revision = int(words[0])
    except ValueError as error:
        raise Failure(f'strconv.ParseInt: parsing "{words[0]}": invalid syntax') from error
    with session().client() as client:
        session().printer().compaction(client.compact(revision, physical=physical), revision)
