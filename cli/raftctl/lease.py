"""lease grant, revoke, timetolive, list, keep-alive."""

import contextlib
import sys
from collections.abc import Iterator

import click

from cli.raftctl import golang
from cli.raftctl.failure import BAD_ARGUMENTS, BAD_CONNECTION, ERROR, Failure, failure
from cli.raftctl.flags import Command, Group, help_unless_command
from cli.raftctl.session import global_options, session


@click.group("lease", cls=Group)
@global_options
def lease() -> None:
    """Make leases, keep them alive, look at them, end them. A key put with --lease goes when its lease does.

    \b
    Examples:
      raftctl lease grant 60
      raftctl put --lease 32695410dcc0ca06 /registry/worker 10.0.0.1
      raftctl lease keep-alive 32695410dcc0ca06
    """
    help_unless_command()


def _lease_id(words: tuple[str, ...], wanted: str) -> int:
    if len(words) != 1:
        raise Failure(wanted, BAD_ARGUMENTS)
    try:
        return golang.parse_int(words[0], 16)
    except ValueError as error:
        raise Failure(f"bad lease ID arg ({error}), expecting ID in Hex", BAD_ARGUMENTS) from error


@contextlib.contextmanager
def _failing(status: int, form: str = "{}") -> Iterator[None]:
    """End with this status, and the error in these words."""
    from raftkv.client import ClientError

    try:
        yield
    except ClientError as error:
        plain = failure(error)
        raise Failure(form.format(plain), status, notes=plain.notes) from error


@lease.command("grant", cls=Command)
@click.argument("words", nargs=-1, metavar="TTL")
@global_options
def grant(words: tuple[str, ...]) -> None:
    """Make a lease of TTL seconds, or as many as the servers grant at least, and print its id.

    \b
    Example:
      raftctl lease grant 60
    """
    if len(words) != 1:
        raise Failure("lease grant command needs TTL argument", BAD_ARGUMENTS)
    try:
        ttl = golang.parse_int(words[0])
    except ValueError as error:
        raise Failure(f"bad TTL ({error})", BAD_ARGUMENTS) from error
    printer = session().printer().able("lease_grant")
    with session().client() as client, _failing(ERROR, "failed to grant lease ({})"):
        printer.lease_grant(client.lease_grant(ttl))


@lease.command("revoke", cls=Command)
@click.argument("words", nargs=-1, metavar="ID")
@global_options
def revoke(words: tuple[str, ...]) -> None:
    """End a lease and delete its keys, in one revision.

    \b
    Example:
      raftctl lease revoke 32695410dcc0ca06
    """
    lease_id = _lease_id(words, "lease revoke command needs 1 argument")
    printer = session().printer().able("lease_revoke")
    with session().client() as client, _failing(ERROR, "failed to revoke lease ({})"):
        printer.lease_revoke(lease_id, client.lease_revoke(lease_id))


@lease.command("timetolive", cls=Command)
@click.argument("words", nargs=-1, metavar="ID")
@click.option("--keys", is_flag=True, help="Print the keys that go with it, too.")
@global_options
def timetolive(words: tuple[str, ...], keys: bool) -> None:
    """Print how many seconds were granted and how many are left.

    \b
    Example:
      raftctl lease timetolive 32695410dcc0ca06 --keys
    """
    lease_id = _lease_id(words, "lease timetolive command needs lease ID as argument")
    printer = session().printer().able("lease_time_to_live")
    with session().client() as client, _failing(BAD_CONNECTION):
        printer.lease_time_to_live(client.lease_time_to_live(lease_id, keys=keys), keys=keys)


@lease.command("list", cls=Command)
@click.argument("words", nargs=-1, metavar="")
@global_options
def lease_list(words: tuple[str, ...]) -> None:
    """Print the ids of all leases.

    \b
    Example:
      raftctl lease list
    """
    printer = session().printer().able("leases")
    with session().client() as client, _failing(BAD_CONNECTION):
        printer.leases(client.leases())


@lease.command("keep-alive", cls=Command)
@click.argument("words", nargs=-1, metavar="ID")
@click.option("--once", is_flag=True, help="Renew it once; fail if there is no such lease.")
@global_options
def keep_alive(words: tuple[str, ...], once: bool) -> None:
    """Renew a lease again and again, until it is gone or this command is stopped.

    \b
    Examples:
      raftctl lease keep-alive 32695410dcc0ca06
      raftctl lease keep-alive --once 32695410dcc0ca06
    """
    lease_id = _lease_id(words, "lease keep-alive command needs lease ID as argument")
    printer = session().printer().able("lease_keep_alive")
    with session().client() as client, _failing(BAD_CONNECTION):
        if once:
            printer.lease_keep_alive(client.lease_keep_alive_once(lease_id))
            return
        for response in client.lease_keep_alive(lease_id):
            printer.lease_keep_alive(response)
            sys.stdout.flush()
    printer.lease_gone(lease_id)
