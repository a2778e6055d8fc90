"""txn: etcdctl's little language of compares and requests."""

import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from cli.raftctl.failure import BAD_ARGUMENTS, INVALID_INPUT, Failure
from cli.raftctl.kv import key_range
from cli.raftctl.session import global_options, session

if TYPE_CHECKING:
    from raftkv.pb import rpc_pb2

_COMPARE = re.compile(r"^\s*(\w+)\s*\(\s*(.*?)\s*\)\s*(=|!=|<|>)\s*(.+?)\s*$")
_TARGETS = {"ver": "VERSION", "version": "VERSION", "c": "CREATE", "create": "CREATE", "m": "MOD", "mod": "MOD"} | {
    "val": "VALUE",
    "value": "VALUE",
    "lease": "LEASE",
}
_RESULTS = {"=": "EQUAL", "!=": "NOT_EQUAL", "<": "LESS", ">": "GREATER"}


@click.command("txn")
@click.option("-i", "--interactive", is_flag=True, help="Prompt for each part.")
@global_options
def txn(interactive: bool) -> None:
    """Run one transaction, read from standard input: compares, an empty line, the requests if they hold, an empty
    line, the requests if not, an empty line.

    \b
    Compares: mod("k") > "0", create, version, value and lease alike, with = != < >
    Requests: get, put, del with their flags
    \b
    Example:
      printf 'mod("k") = "0"\\n\\nput k v\\n\\nget k\\n\\n' | raftctl txn
    """
    from raftkv.pb import rpc_pb2

    lines = iter(sys.stdin)
    parts = []
    for prompt in ("compares:", "success requests (get, put, del):", "failure requests (get, put, del):"):
        if interactive:
            print(prompt, flush=True)
        parts.append(list(_part(lines)))
    request = rpc_pb2.TxnRequest(
        compare=map(parse_compare, parts[0]), success=map(parse_request, parts[1]), failure=map(parse_request, parts[2])
    )
    with session().client() as client:
        session().printer().txn(client.txn(request))


def _part(lines: Iterator[str]) -> Iterable[str]:
    for line in lines:
        if not line.strip():
            return
        yield line.strip()


def parse_compare(line: str) -> "rpc_pb2.Compare":
    """Parse `target("key") op "value"`.

    Raises:
        Failure: with the line in it.
    """
    from raftkv.pb import rpc_pb2

    match = _COMPARE.match(line)
    if match is None or match[1].lower() not in _TARGETS:
        raise Failure(f"malformed comparison: {line}; got {line}", INVALID_INPUT)
    target = _TARGETS[match[1].lower()]
    key, value = _unquote(match[2], line), _unquote(match[4], line)
    compare = rpc_pb2.Compare(
        key=key.encode("utf-8", "surrogateescape"),
        target=rpc_pb2.Compare.CompareTarget.Value(target),  # type: ignore[arg-type]
        result=rpc_pb2.Compare.CompareResult.Value(_RESULTS[match[3]]),  # type: ignore[arg-type]
    )
    if target == "VALUE":
        compare.value = value.encode("utf-8", "surrogateescape")
        return compare
    try:
        number = int(value, 16 if target == "LEASE" else 10)
    except ValueError as error:
        raise Failure(f"invalid txn compare request: {line}", INVALID_INPUT) from error
    field = {"VERSION": "version", "CREATE": "create_revision", "MOD": "mod_revision", "LEASE": "lease"}[target]
    setattr(compare, field, number)
    return compare


def _unquote(text: str, line: str) -> str:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise Failure(f"malformed comparison: {line}", INVALID_INPUT) from error
    return words[0] if words else ""


def parse_request(line: str) -> "rpc_pb2.RequestOp":
    """Parse a get, put or del line.

    Raises:
        Failure: with the line in it.
    """
    from raftkv.pb import rpc_pb2

    try:
        name, *words = shlex.split(line)
    except ValueError as error:
        raise Failure(f"invalid txn request: {line}", INVALID_INPUT) from error
    flags = {word for word in words if word.startswith("--")}
    plain = tuple(word for word in words if not word.startswith("--"))
    if name == "put" and len(plain) == 2:
        key, value = (word.encode("utf-8", "surrogateescape") for word in plain)
        return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value, prev_kv="--prev-kv" in flags))
    if name not in ("get", "del") or not plain:
        raise Failure(f"invalid txn request: {line}", BAD_ARGUMENTS)
    key, end = key_range(plain, name, prefix="--prefix" in flags, from_key="--from-key" in flags)
    if name == "get":
        return rpc_pb2.RequestOp(
            request_range=rpc_pb2.RangeRequest(key=key, range_end=end, keys_only="--keys-only" in flags)
        )
    return rpc_pb2.RequestOp(
        request_delete_range=rpc_pb2.DeleteRangeRequest(key=key, range_end=end, prev_kv="--prev-kv" in flags)
    )
