"""member list."""

import click

from cli.raftctl.flags import Command, Group, help_unless_command
from cli.raftctl.session import global_options, session


@click.group("member", cls=Group)
@global_options
def member() -> None:
    """Look at the cluster's members.

    \b
    Example:
      raftctl member list
    """
    help_unless_command()


@member.command("list", cls=Command)
@click.argument("words", nargs=-1, metavar="")
@global_options
def member_list(words: tuple[str, ...]) -> None:
    """Print id, state, name and addresses of each member, and whether it is a learner.

    \b
    Example:
      raftctl member list -w table
    """
    printer = session().printer().able("members")
    with session().client() as client:
        printer.members(client.member_list())
