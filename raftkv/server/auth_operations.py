"""What the log does to users and roles: one function for each operation of `raftkvpb.Proposal`."""

from collections.abc import Callable

from raftkv.auth import AuthStore
from raftkv.auth.passwords import decode_hash
from raftkv.pb import log_pb2

Apply = Callable[[log_pb2.Proposal], None]


def auth_operations(store: AuthStore) -> dict[str, Apply]:
    """Each raises what the store raises, with nothing changed."""
    return {
        "auth_enable": lambda proposal: store.enable(),
        "auth_disable": lambda proposal: store.disable(),
        "user_add": lambda proposal: store.user_add(proposal.user_add, decode_hash(proposal.user_add.hashedPassword)),
        "user_delete": lambda proposal: store.user_delete(proposal.user_delete.name),
        "user_change_password": lambda proposal: store.user_change_password(
            proposal.user_change_password.name, decode_hash(proposal.user_change_password.hashedPassword)
        ),
        "user_grant_role": lambda proposal: store.user_grant_role(
            proposal.user_grant_role.user, proposal.user_grant_role.role
        ),
        "user_revoke_role": lambda proposal: store.user_revoke_role(
            proposal.user_revoke_role.name, proposal.user_revoke_role.role
        ),
        "role_add": lambda proposal: store.role_add(proposal.role_add.name),
        "role_delete": lambda proposal: store.role_delete(proposal.role_delete.role),
        "role_grant_permission": lambda proposal: store.role_grant_permission(proposal.role_grant_permission),
        "role_revoke_permission": lambda proposal: store.role_revoke_permission(
            proposal.role_revoke_permission.role,
            proposal.role_revoke_permission.key,
            proposal.role_revoke_permission.range_end,
        ),
    }
