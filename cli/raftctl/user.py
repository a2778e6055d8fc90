"""user add, delete, get, list, passwd, grant-role, revoke-role."""

import sys

import click

from cli.raftctl.failure import BAD_ARGUMENTS, Failure
from cli.raftctl.flags import Command, Group, help_unless_command
from cli.raftctl.passwords import ask
from cli.raftctl.session import global_options, session


@click.group("user", cls=Group)
@global_options
def user() -> None:
    """Make users and give them roles.

    \b
    Examples:
      raftctl user add ann
      raftctl user grant-role ann readers
      raftctl user get ann --detail
    """
    help_unless_command()


def _interactive(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    # A flag that is on when nobody names it: `=false` is told here before the default.
    interactive: bool = context.meta.setdefault("raftctl.interactive", value)
    return interactive


INTERACTIVE = click.option(
    "--interactive",
    is_flag=True,
    default=True,
    callback=_interactive,
    help="Ask for the password (default); with =false it is the first line of stdin.",
)


def _one(words: tuple[str, ...], name: str) -> str:
    if len(words) != 1:
        raise Failure(f"user {name} command requires user name as its argument", BAD_ARGUMENTS)
    return words[0]


def _password(name: str, *, interactive: bool) -> str:
    """Ask twice; or, without asking, the first line of what is piped in."""
    if not interactive:
        return sys.stdin.readline().rstrip("\n")
    password = ask(f"Password of {name}: ")
    if not password:
        raise Failure("empty password", BAD_ARGUMENTS)
    if ask(f"Type password of {name} again for confirmation: ") != password:
        raise Failure("given passwords are different.", BAD_ARGUMENTS)
    return password


@user.command("add", cls=Command)
@click.argument("words", nargs=-1, metavar="NAME[:PASSWORD]")
@INTERACTIVE
@click.option("--new-user-password", metavar="TEXT", default="", help="The password.")
@click.option("--no-password", is_flag=True, help="The user never comes by password.")
@global_options
def user_add(words: tuple[str, ...], interactive: bool, new_user_password: str, no_password: bool) -> None:
    """Make a user.

    \b
    Examples:
      raftctl user add ann
      echo secret | raftctl user add ann --interactive=false
      raftctl user add machine --no-password
    """
    name = _one(words, "add")
    password = new_user_password
    if not no_password and not password:
        name, given, password = name.partition(":")
        if given and not name:
            raise Failure("empty user name is not allowed", BAD_ARGUMENTS)
        if not given:
            password = _password(name, interactive=interactive)
    from raftkv.client import access
    from raftkv.pb import rpc_pb2

    printer = session().printer().able("changed")
    request = rpc_pb2.AuthUserAddRequest(name=name, password=password)
    if no_password:
        request.password, request.options.no_password = "", True
    with session().client() as client:
        printer.changed(client.call(access.USER_ADD, request), f"User {name} created")


@user.command("delete", cls=Command)
@click.argument("words", nargs=-1, metavar="NAME")
@global_options
def user_delete(words: tuple[str, ...]) -> None:
    """Delete a user.

    \b
    Example:
      raftctl user delete ann
    """
    name = _one(words, "delete")
    from raftkv.client import access
    from raftkv.pb import rpc_pb2

    printer = session().printer().able("changed")
    with session().client() as client:
        response = client.call(access.USER_DELETE, rpc_pb2.AuthUserDeleteRequest(name=name))
        printer.changed(response, f"User {name} deleted")


@user.command("get", cls=Command)
@click.argument("words", nargs=-1, metavar="NAME")
@click.option("--detail", is_flag=True, help="Print what the roles permit, too.")
@global_options
def user_get(words: tuple[str, ...], detail: bool) -> None:
    """Print the roles of a user.

    \b
    Example:
      raftctl user get ann --detail
    """
    name = _one(words, "get")
    from raftkv.client import access
    from raftkv.pb import rpc_pb2

    printer = session().printer().able("role_get" if detail else "user_get")
    with session().client() as client:
        response = client.call(access.USER_GET, rpc_pb2.AuthUserGetRequest(name=name))
        if not detail:
            printer.user_get(name, response)
            return
        print(f"User: {name}")
        for role in response.roles:
            print(flush=True)
            printer.role_get(role, client.call(access.ROLE_GET, rpc_pb2.AuthRoleGetRequest(role=role)))


@user.command("list", cls=Command)
@click.argument("words", nargs=-1, metavar="")
@global_options
def user_list(words: tuple[str, ...]) -> None:
    """Print the names of all users.

    \b
    Example:
      raftctl user list
    """
    if words:
        raise Failure("user list command requires no arguments", BAD_ARGUMENTS)
    from raftkv.client import access
    from raftkv.pb import rpc_pb2

    printer = session().printer().able("user_list")
    with session().client() as client:
        printer.user_list(client.call(access.USER_LIST, rpc_pb2.AuthUserListRequest()))


@user.command("passwd", cls=Command)
@click.argument("words", nargs=-1, metavar="NAME")
@INTERACTIVE
@global_options
def user_passwd(words: tuple[str, ...], interactive: bool) -> None:
    """Give a user another password.

    \b
    Example:
      raftctl user passwd ann
    """
    name = _one(words, "passwd")
    password = _password(name, interactive=interactive)
    from raftkv.client import access
    from raftkv.pb import rpc_pb2

    printer = session().printer().able("changed")
    request = rpc_pb2.AuthUserChangePasswordRequest(name=name, password=password)
    with session().client() as client:
        printer.changed(client.call(access.USER_CHANGE_PASSWORD, request), "Password updated")


@user.command("grant-role", cls=Command)
@click.argument("words", nargs=-1, metavar="NAME ROLE")
@global_options
def user_grant_role(words: tuple[str, ...]) -> None:
    """Give a role to a user.

    \b
    Example:
      raftctl user grant-role ann readers
    """
    if len(words) != 2:
        raise Failure("user grant command requires user name and role name as its argument", BAD_ARGUMENTS)
    name, role = words
    from raftkv.client import access
    from raftkv.pb import rpc_pb2

    printer = session().printer().able("changed")
    request = rpc_pb2.AuthUserGrantRoleRequest(user=name, role=role)
    with session().client() as client:
        printer.changed(client.call(access.USER_GRANT_ROLE, request), f"Role {role} is granted to user {name}")


@user.command("revoke-role", cls=Command)
@click.argument("words", nargs=-1, metavar="NAME ROLE")
@global_options
def user_revoke_role(words: tuple[str, ...]) -> None:
    """Take a role from a user.

    \b
    Example:
      raftctl user revoke-role ann readers
    """
    if len(words) != 2:
        raise Failure("user revoke-role requires user name and role name as its argument", BAD_ARGUMENTS)
    name, role = words
    from raftkv.client import access
    from raftkv.pb import rpc_pb2

    printer = session().printer().able("changed")
    request = rpc_pb2.AuthUserRevokeRoleRequest(name=name, role=role)
    with session().client() as client:
        printer.changed(client.call(access.USER_REVOKE_ROLE, request), f"Role {role} is revoked from user {name}")
