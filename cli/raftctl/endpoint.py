"""endpoint status, endpoint health, endpoint hashkv."""

import sys
import threading
import time

import click

from cli.raftctl import flags
from cli.raftctl.failure import ERROR, Failure, text
from cli.raftctl.flags import Command, Group, help_unless_command
from cli.raftctl.printers import HashKV, Health, Status
from cli.raftctl.progress import at
from cli.raftctl.session import global_options, session


@click.group("endpoint", cls=Group)
@global_options
def endpoint() -> None:
    """Ask each endpoint about itself.

    \b
    Example:
      raftctl endpoint status -w table
    """
    help_unless_command()


def endpoints(cluster: bool) -> list[str]:
    """The endpoints of this run, or those that the members advertise."""
    if not cluster:
        return session().endpoints
    from raftkv.client import ClientError

    with session().client() as client:
        try:
            members = client.member_list().members
        except ClientError as error:
            raise Failure(f"failed to fetch endpoints from etcd cluster member list: {text(error)}") from error
    return [url for member in members for url in member.clientURLs]


@endpoint.command("status", cls=Command)
@click.argument("words", nargs=-1, metavar="")
@click.option("--cluster", is_flag=True, help="All members of the cluster, at the addresses they advertise.")
@global_options
def status(words: tuple[str, ...], cluster: bool) -> None:
    """Print id, version, size, leadership and log position of each endpoint.

    \b
    Examples:
      raftctl endpoint status --cluster -w table
      raftctl --endpoints localhost:2379,localhost:22379 endpoint status
    """
    printer = session().printer().able("statuses")
    from raftkv.client import ClientError

    found, failed = [], False
    with session().client() as client:
        for one in endpoints(cluster):
            try:
                found.append(Status(one, client.status(one)))
            except ClientError as error:
                print(f"Failed to get the status of endpoint {one} ({text(error)})", file=sys.stderr)
                failed = True
    printer.statuses(found)
    if failed:
        sys.stdout.flush()
        sys.exit(ERROR)


@endpoint.command("hashkv", cls=Command)
@click.argument("words", nargs=-1, metavar="")
@click.option("--cluster", is_flag=True, help="All members of the cluster, at the addresses they advertise.")
@click.option("--rev", type=flags.INT, default=0, metavar="REVISION", help="Up to this revision; 0: the newest.")
@global_options
def hashkv(words: tuple[str, ...], cluster: bool, rev: int) -> None:
    """Print a hash of each endpoint's history; equal at equal revision and compaction, or the members differ.

    \b
    Examples:
      raftctl endpoint hashkv --cluster
      raftctl endpoint hashkv --cluster --rev 1000 -w table
    """
    printer = session().printer().able("hashes")
    from raftkv.client import ClientError
    from raftkv.client.requests import HASH_KV
    from raftkv.pb.rpc_pb2 import HashKVRequest

    found, failed = [], ""
    with session().client() as client:
        targets = endpoints(cluster)
        for one in targets:
            try:
                with at("hashing", one, targets):
                    answer = client.call(HASH_KV, HashKVRequest(revision=rev), endpoint=one)
                found.append(HashKV(one, answer))
            except ClientError as error:
                failed = text(error)
                print(f"Failed to get the hash of endpoint {one} ({failed})", file=sys.stderr)
    printer.hashes(found)
    if failed:
        raise Failure(failed)


@endpoint.command("health", cls=Command)
@click.argument("words", nargs=-1, metavar="")
@click.option("--cluster", is_flag=True, help="All members of the cluster, at the addresses they advertise.")
@global_options
def health(words: tuple[str, ...], cluster: bool) -> None:
    """Try a linearizable read at each endpoint, at all of them at once; exit status 1 when one fails.

    \b
    Examples:
      raftctl endpoint health --cluster
      raftctl endpoint health -w json
    """
    printer = session().printer().able("healths")
    found = _check_all(endpoints(cluster))
    printer.healths(found)
    if any(one.error for one in found):
        raise Failure("unhealthy cluster")


def _check_all(endpoints: list[str]) -> list[Health]:
    """In the order of the endpoints."""
    found: dict[int, Health] = {}
    with session().client(endpoints or None) as client:
        from raftkv.client import ClientError

        def check(number: int, one: str) -> None:
            started, error = time.perf_counter_ns(), ""
            try:
                client.health(one)
            except ClientError as caught:
                error = text(caught)
            found[number] = Health(one, time.perf_counter_ns() - started, error)

        threads = [threading.Thread(target=check, args=each) for each in enumerate(endpoints)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return [found[number] for number in range(len(endpoints))]
