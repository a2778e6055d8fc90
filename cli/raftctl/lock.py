"""lock: hold a lock until told to stop, or while a command runs."""

import click

from cli.raftctl import flags
from cli.raftctl.failure import BAD_ARGUMENTS, Failure
from cli.raftctl.flags import Command
from cli.raftctl.session import global_options, session


@click.command("lock", cls=Command)
@click.argument("words", nargs=-1, metavar="NAME [-- COMMAND...]")
@click.option("--ttl", type=flags.INT, default=10, help="Seconds until others get it if we vanish.  [default: 10]")
@global_options
def lock(words: tuple[str, ...], ttl: int) -> None:
    """Wait for a lock and hold it until told to stop, or while COMMAND runs, and exit as that did.

    It is released however raftctl ends; if that is not given the time, when --ttl has passed. COMMAND has
    ETCD_LOCK_KEY and ETCD_LOCK_REV in its environment. It is told to terminate when the lock is lost, or we are.

    \b
    Examples:
      raftctl lock /locks/backup
      raftctl lock /locks/backup -- sh -c 'pg_dump shop > shop.sql'
    """
    if not words:
        raise Failure("lock takes a lock name argument and an optional command to execute", BAD_ARGUMENTS)
    printer = session().printer()
    if len(words) == 1:
        printer.able("range")
    # asyncio comes with it, and costs the start of every other command.
    from cli.raftctl import locking

    locking.lock(session().async_client(), words[0], words[1:], ttl, printer)
