"""endpoint status, endpoint health, member list."""

import sys
import time

import click

from cli.raftctl.failure import Failure
from cli.raftctl.session import global_options, session


@click.group("endpoint")
def endpoint() -> None:
    """Ask each endpoint about itself."""


def _endpoints(cluster: bool) -> list[str]:
    if not cluster:
        return [one.strip() for one in session().endpoints.split(",") if one.strip()]
    with session().client() as client:
        return [url for member in client.member_list().members for url in member.clientURLs]


@endpoint.command("status")
@click.option("--cluster", is_flag=True, help="Ask every member of the cluster.")
@global_options
def status(cluster: bool) -> None:
    """Print version, size, leader and log position of each endpoint.

    \b
    Example:
      raftctl endpoint status --cluster -w table
    """
    from raftkv.client import ClientError

    found, failed = [], False
    for one in _endpoints(cluster):
        try:
            with session().client(one) as client:
                found.append((one, client.status()))
        except ClientError as error:
            print(f"Failed to get the status of endpoint {one} ({error.message})", file=sys.stderr)
            failed = True
    session().printer().statuses(found)
    if failed:
        sys.exit(1)


@endpoint.command("health")
@click.option("--cluster", is_flag=True, help="Ask every member of the cluster.")
@global_options
def health(cluster: bool) -> None:
    """Check that each endpoint can answer a linearizable read; exit status 1 when one cannot.

    \b
    Example:
      raftctl endpoint health --cluster
    """
    from raftkv.client import ClientError

    found = []
    for one in _endpoints(cluster):
        started = time.monotonic()
        problem = ""
        try:
            with session().client(one) as client:
                client.get("health")
        except ClientError as error:
            problem = error.message
        found.append((one, not problem, time.monotonic() - started, problem))
    session().printer().healths(found)
    if not all(healthy for _, healthy, _, _ in found):
        raise Failure("unhealthy cluster")


@click.group("member")
def member() -> None:
    """Look at the cluster's members."""


@member.command("list")
@global_options
def member_list() -> None:
    """Print id, state, name and addresses of each member.

    \b
    Example:
      raftctl member list -w table
    """
    with session().client() as client:
        session().printer().members(client.member_list())
