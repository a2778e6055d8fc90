"""Who asks."""

from typing import NamedTuple


class Caller(NamedTuple):
    """A user, as a member found out when the auth revision was `revision`; or a member that asks by itself."""

    user: str = ""
    revision: int = 0
    member: bool = False


MEMBER = Caller(member=True)
NOBODY = Caller()
"""A caller that did not say who it is."""
