"""txn: etcdctl's little language of compares and requests.

Three parts, each ended by an empty line: compares, the requests if all of them hold, the requests if not.

    compare = target '("' key '")' space operator space '"' value '"'
    request = ("put" | "get" | "del") arguments and flags of the command of that name

Keys and values in compares are Go string literals. The words of a request may be "quoted" with Go's escapes, or
'quoted' without any.
"""

import re
import sys
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any

import click

from cli.raftctl import golang, operations
from cli.raftctl.failure import BAD_ARGUMENTS, INVALID_INPUT, Failure, UsageFailure
from cli.raftctl.flags import Command
from cli.raftctl.printers import write_line
from cli.raftctl.session import global_options, session

if TYPE_CHECKING:
    from raftkv.pb import rpc_pb2

_TARGETS = {"ver": "VERSION", "c": "CREATE", "m": "MOD", "val": "VALUE"}
_TARGETS |= {"version": "VERSION", "create": "CREATE", "mod": "MOD", "value": "VALUE", "lease": "LEASE"}
_FIELDS = {"VERSION": "version", "CREATE": "create_revision", "MOD": "mod_revision", "LEASE": "lease"}
_RESULTS = {"=": "EQUAL", "!=": "NOT_EQUAL", "<": "LESS", ">": "GREATER"}
_WORD = re.compile(r""""(?:\\.|[^"\\])*"|'[^']*'|[^\s'"]\S*""")
_OPERATOR = re.compile(r"[ \t]+(\S+)(?:[ \t]+|$)")


@click.command("txn", cls=Command)
@click.argument("words", nargs=-1, metavar="")
@click.option("-i", "--interactive", is_flag=True, help="Ask for each part.")
@global_options
def txn(words: tuple[str, ...], interactive: bool) -> None:
    """Run one transaction, read from standard input.

    First the compares, then the requests to run if all compares hold, then those to run if not: one a line, an empty
    line after each of the three parts, also the last.

    \b
    Compares:  create("k") mod("k") version("k") lease("k") value("k"), then = != < or >, then a "value"
    Requests:  put, get and del, with their flags
    \b
    Examples:
      raftctl txn < transaction.txt
      printf 'mod("k") = "0"\\n\\nput k "first"\\n\\nget k\\n\\n' | raftctl txn
      raftctl txn -i
    """
    if words:
        raise Failure("txn command does not accept argument", BAD_ARGUMENTS)
    from raftkv.pb import rpc_pb2

    printer = session().printer().able("txn")
    client = session().client()

    def part(prompt: str) -> Iterator[str]:
        if interactive:
            write_line(prompt)
            sys.stdout.flush()
        return read_part(sys.stdin.buffer)

    request = rpc_pb2.TxnRequest()
    request.compare.extend(map(parse_compare, part("compares:")))
    request.success.extend(map(parse_request, part("success requests (get, put, del):")))
    request.failure.extend(map(parse_request, part("failure requests (get, put, del):")))
    with client:
        printer.txn(client.txn(request))


def read_part(source: IO[bytes]) -> Iterator[str]:
    """The lines up to an empty one.

    Raises:
        Failure: the input ends before: half a transaction must not run.
    """
    while True:
        line = source.readline()
        if not line.endswith(b"\n"):
            raise Failure("EOF", INVALID_INPUT)
        text = line.decode("utf-8", "surrogateescape").strip()
        if not text:
            return
        yield text


def parse_compare(line: str) -> "rpc_pb2.Compare":
    """Parse `target("key") op "value"`.

    Raises:
        Failure: with the line in it.
    """
    from raftkv.pb import rpc_pb2

    name, opened, rest = line.partition("(")
    if not opened:
        raise Failure(f"malformed comparison: {line}", INVALID_INPUT)
    key, operator, value, complete = _scan(rest)
    if not complete:
        got = f"{name}({golang.quote(key)}) {operator} {golang.quote(value)}"
        raise Failure(f"malformed comparison: {line}; got {got}", INVALID_INPUT)
    if name not in _TARGETS:
        raise Failure(f"malformed comparison: {line} (unknown target {name})", INVALID_INPUT)
    if operator not in _RESULTS:
        raise Failure(f"malformed comparison: {line} (unknown operator {operator})", INVALID_INPUT)
    target = _TARGETS[name]
    compare = rpc_pb2.Compare(
        key=key,
        target=target,
        result=_RESULTS[operator],
    )
    if target == "VALUE":
        compare.value = value
        return compare
    try:
        number = golang.parse_int(value.decode("utf-8", "replace"), 16 if target == "LEASE" else 10)
    except ValueError as error:
        raise Failure(f"invalid txn compare request: {line}", INVALID_INPUT) from error
    setattr(compare, _FIELDS[target], number)
    return compare


def _scan(text: str) -> tuple[bytes, str, bytes, bool]:
    """Key, operator and value as far as they can be read, and whether that was all; what follows is not looked at."""
    key, operator, value = b"", "", b""
    try:
        key, rest = golang.scan_quoted(text.lstrip(" \t"))
        match = _OPERATOR.match(rest.removeprefix(")")) if rest.startswith(")") else None
        if match is None:
            return key, operator, value, False
        operator = match[1]
        value, _ = golang.scan_quoted(rest[1 + match.end() :])
    except ValueError:
        return key, operator, value, False
    return key, operator, value, True


def split_words(line: str) -> list[str]:
    """The words of a request; bytes that are not text are kept as surrogate escapes.

    Raises:
        Failure: a bad escape.
    """
    words = []
    for word in _WORD.findall(line):
        if word[0] == "'":
            words.append(word[1:-1])
        elif word[0] == '"':
            try:
                words.append(golang.scan_quoted(word)[0].decode("utf-8", "surrogateescape"))
            except ValueError as error:
                raise Failure(str(error), INVALID_INPUT) from error
        else:
            words.append(word)
    return words


def _no_input() -> bytes:
    return b""


def _put(arguments: dict[str, Any]) -> "rpc_pb2.RequestOp":
    from raftkv.pb import rpc_pb2

    return rpc_pb2.RequestOp(request_put=operations.put_request(_no_input, **arguments))


def _get(arguments: dict[str, Any]) -> "rpc_pb2.RequestOp":
    from raftkv.pb import rpc_pb2

    return rpc_pb2.RequestOp(request_range=operations.range_request(**arguments))


def _del(arguments: dict[str, Any]) -> "rpc_pb2.RequestOp":
    from raftkv.pb import rpc_pb2

    return rpc_pb2.RequestOp(request_delete_range=operations.delete_request(**arguments))


def _line_command(name: str, options: Callable[[Any], Any]) -> Command:
    def nothing() -> None:
        """Its arguments are all that is wanted of it."""

    return click.command(name, cls=Command, add_help_option=False)(options(nothing))


_REQUESTS = {
    "put": (_line_command("put", operations.put_options), _put),
    "get": (_line_command("get", operations.get_options), _get),
    "del": (_line_command("del", operations.del_options), _del),
}


def parse_request(line: str) -> "rpc_pb2.RequestOp":
    """Parse a put, get or del line.

    Raises:
        Failure: with the line in it, or what the command of that name would say.
    """
    words = split_words(line)
    if len(words) < 2:
        raise Failure(f"invalid txn compare request: {line}", INVALID_INPUT)
    if words[0] not in _REQUESTS:
        raise Failure(f"invalid txn request: {line}", INVALID_INPUT)
    command, build = _REQUESTS[words[0]]
    try:
        context = command.make_context(words[0], words[1:])
    except (UsageFailure, click.UsageError) as error:
        raise Failure(f"invalid txn request: {line}", INVALID_INPUT, notes=(str(error),)) from error
    return build(context.params)
