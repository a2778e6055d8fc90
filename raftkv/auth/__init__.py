"""Users, roles and permissions: the third replicated store, and who may do what.

`store` keeps what the log says, `rights` is what follows from it for one user, `rules` applies that to requests.
`passwords` and `tokens` are how callers prove who they are.
"""

from raftkv.auth.caller import MEMBER, Caller
from raftkv.auth.rights import RangeSet, Rights
from raftkv.auth.store import AuthStore, fill_auth

__all__ = ["MEMBER", "AuthStore", "Caller", "RangeSet", "Rights", "fill_auth"]
