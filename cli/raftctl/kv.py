"""put, get, del, compaction."""

import sys
from typing import Any

import click

from cli.raftctl import golang, operations
from cli.raftctl.failure import BAD_ARGUMENTS, Failure
from cli.raftctl.flags import Command
from cli.raftctl.progress import waiting
from cli.raftctl.session import global_options, session


@click.command("put", cls=Command)
@operations.put_options
@global_options
def put(**arguments: Any) -> None:
    """Write KEY. Without VALUE, the value is read from standard input.

    A VALUE that begins with a dash needs a -- before it.

    \b
    Examples:
      raftctl put /registry/hello world
      raftctl put /registry/config < config.json
      raftctl put level -- -3
    """
    request = operations.put_request(sys.stdin.buffer.read, **arguments)
    from raftkv.client.requests import PUT

    printer = session().printer().able("put")
    with session().client() as client:
        printer.put(client.call(PUT, request))


@click.command("get", cls=Command)
@operations.get_options
@global_options
def get(count_only: bool, print_value_only: bool, **arguments: Any) -> None:
    """Print KEY, the keys from KEY up to RANGE_END, or those that begin with a prefix.

    In the simple form a range is fetched and printed page by page, all at one revision.

    \b
    Examples:
      raftctl get /registry/hello
      raftctl get /registry --prefix --keys-only
      raftctl get a c --sort-by MODIFY --order DESCEND --limit 10 -w json
      raftctl get /registry --prefix --count-only
    """
    request = operations.range_request(count_only=count_only, **arguments)
    from raftkv.client.requests import range_rpc
    from raftkv.pb.rpc_pb2 import RangeRequest

    printer = session().printer().able("range")
    printer.choose(value_only=print_value_only, count_only=count_only)
    in_order = (request.sort_target, request.sort_order) == (RangeRequest.KEY, RangeRequest.NONE)
    with session().client() as client:
        if not (printer.streams and in_order and request.range_end and not count_only):
            printer.range(client.call(range_rpc(request), request))
            return
        for response in client.pages(request):
            printer.range(response)


@click.command("del", cls=Command)
@operations.del_options
@global_options
def delete(**arguments: Any) -> None:
    """Delete KEY, the keys from KEY up to RANGE_END, or those that begin with a prefix. Prints how many.

    \b
    Examples:
      raftctl del /registry/hello
      raftctl del /registry/events --prefix
    """
    request = operations.delete_request(**arguments)
    from raftkv.client.requests import DELETE_RANGE

    printer = session().printer().able("delete")
    with session().client() as client:
        printer.delete(client.call(DELETE_RANGE, request))


@click.command("compaction", cls=Command)
@click.argument("words", nargs=-1, metavar="REVISION")
@click.option("--physical", is_flag=True, help="Return when the member has removed the history from its store.")
@global_options
def compaction(words: tuple[str, ...], physical: bool) -> None:
    """Forget what keys were before REVISION. What they are stays.

    \b
    Example:
      raftctl compaction 1234
    """
    if len(words) != 1:
        raise Failure("compaction command needs 1 argument", BAD_ARGUMENTS)
    try:
        revision = golang.parse_int(words[0])
    except ValueError as error:
        raise Failure(str(error)) from error
    printer = session().printer()
    with session().client() as client, waiting(f"compacting to revision {revision}"):
        client.compact(revision, physical=physical)
    printer.compaction(revision)
