"""elect: lead, or hear who does."""

import os
from typing import TYPE_CHECKING

import click

from cli.raftctl.failure import BAD_ARGUMENTS, Failure
from cli.raftctl.flags import Command
from cli.raftctl.session import global_options, session

if TYPE_CHECKING:
    pass


@click.command("elect", cls=Command)
@click.argument("words", nargs=-1, metavar="NAME [VALUE]")
@click.option("-l", "--listen", is_flag=True, help="Do not stand; print who leads, and again at every change.")
@global_options
def elect(words: tuple[str, ...], listen: bool) -> None:
    """Stand in an election with VALUE, print the key when elected, and lead until told to stop.

    \b
    Examples:
      raftctl elect /elections/scheduler 10.0.0.1
      raftctl elect -l /elections/scheduler
    """
    if len(words) not in (1, 2):
        message = "elect takes one election name argument and an optional proposal argument"
        raise Failure(message, BAD_ARGUMENTS)
    if len(words) == 1 and not listen:
        raise Failure("no proposal argument but -l not set", BAD_ARGUMENTS)
    if len(words) == 2 and listen:
        raise Failure("proposal given but -l is set", BAD_ARGUMENTS)
    printer = session().printer().able("range")
    name, *value = map(os.fsencode, words)
    client = session().async_client()
    # asyncio comes with it, and costs the start of every other command.
    from cli.raftctl import electing

    if listen:
        electing.observe(client, name, printer)
    else:
        electing.campaign(client, name, value[0], printer)
