"""auth enable, disable, status."""

import contextlib

import click

from cli.raftctl.failure import BAD_ARGUMENTS, Failure
from cli.raftctl.flags import Command, Group, help_unless_command
from cli.raftctl.session import global_options, session


@click.group("auth", cls=Group)
@global_options
def auth() -> None:
    """Have callers say who they are, or not.

    \b
    Examples:
      raftctl user add root
      raftctl auth enable
      raftctl auth status
    """
    help_unless_command()


def _none(words: tuple[str, ...], name: str) -> None:
    if words:
        raise Failure(f"auth {name} command does not accept any arguments", BAD_ARGUMENTS)


@auth.command("enable", cls=Command)
@click.argument("words", nargs=-1, metavar="")
@global_options
def enable(words: tuple[str, ...]) -> None:
    """From now on every caller must name a user and a password. There must be a user root; it is given the role root.

    \b
    Example:
      raftctl auth enable
    """
    _none(words, "enable")
    from raftkv import errors
    from raftkv.client import access
    from raftkv.pb import rpc_pb2

    with session().client() as client:
        try:
            client.call(access.AUTH_ENABLE, rpc_pb2.AuthEnableRequest())
        except errors.RootRoleNotExist:
            # As etcdctl does: the user root is made root.
            with contextlib.suppress(errors.RoleAlreadyExist):
                client.call(access.ROLE_ADD, rpc_pb2.AuthRoleAddRequest(name="root"))
            client.call(access.USER_GRANT_ROLE, rpc_pb2.AuthUserGrantRoleRequest(user="root", role="root"))
            client.call(access.AUTH_ENABLE, rpc_pb2.AuthEnableRequest())
    print("Authentication Enabled")


@auth.command("disable", cls=Command)
@click.argument("words", nargs=-1, metavar="")
@global_options
def disable(words: tuple[str, ...]) -> None:
    """From now on everybody may do everything.

    \b
    Example:
      raftctl auth disable --user root
    """
    _none(words, "disable")
    from raftkv.client import access
    from raftkv.pb import rpc_pb2

    with session().client() as client:
        client.call(access.AUTH_DISABLE, rpc_pb2.AuthDisableRequest())
    print("Authentication Disabled")


@auth.command("status", cls=Command)
@click.argument("words", nargs=-1, metavar="")
@global_options
def status(words: tuple[str, ...]) -> None:
    """Print whether callers must say who they are, and how often users and roles were changed.

    \b
    Example:
      raftctl auth status
    """
    _none(words, "status")
    from raftkv.client import access
    from raftkv.pb import rpc_pb2

    printer = session().printer().able("auth_status")
    with session().client() as client:
        printer.auth_status(client.call(access.AUTH_STATUS, rpc_pb2.AuthStatusRequest()))
