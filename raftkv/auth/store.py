"""Users and roles as the log made them, and whether callers must say who they are.

All of it follows from the log, so that every member decides alike. It lies beside the keys, in the backend's flush of
the same moment; what follows for each user is worked out when it is asked for, and forgotten with every change.

The auth revision counts the changes. A caller was found out at some revision; a change makes that void for what touches
keys (`AuthOldRevision`), because the caller's rights may be others by then. What only root may do is refused for that
reason only if the caller itself was changed since.
"""

import hashlib
import struct
from collections.abc import Callable, Iterable, Sequence

from raftkv import errors
from raftkv.auth.caller import Caller
from raftkv.auth.rights import READWRITE, ROOT, Rights, is_valid
from raftkv.mvcc import AUTH, Backend, Store
from raftkv.mvcc.interval import Interval
from raftkv.pb import auth_pb2, rpc_pb2

_ENABLED = b"enabled"
_REVISION = b"revision"
_USER = b"user/"
_ROLE = b"role/"
_NUMBER = struct.Struct(">Q")
_MAX_NAME_BYTES = 400
"""Of names that are keys as they are; LMDB's keys have 511 bytes."""


def _key(kind: bytes, name: bytes) -> bytes:
    return kind + (name if len(name) <= _MAX_NAME_BYTES else b"\xff" + hashlib.sha256(name).digest())


def fill_auth(
    backend: Backend, *, enabled: bool, revision: int, users: Iterable[auth_pb2.User], roles: Iterable[auth_pb2.Role]
) -> None:
    """Store users and roles from elsewhere in a backend that has none and is not open yet; names are UTF-8."""
    for user in users:
        backend.put(AUTH, _key(_USER, user.name), _NUMBER.pack(revision) + user.SerializeToString(deterministic=True))
    for role in roles:
        backend.put(AUTH, _key(_ROLE, role.name), role.SerializeToString(deterministic=True))
    backend.put(AUTH, _REVISION, _NUMBER.pack(revision))
    backend.put(AUTH, _ENABLED, b"\1" if enabled else b"\0")


class AuthStore:
    """The users and roles of one member.

    Invariants:
    1. `_rights` has what follows from users and roles of this moment, of some users.
    2. `revision` grows with every change, and nothing else.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.on_change: Callable[[], None] = lambda: None
        """Called after rights may have changed."""
        self.on_void: Callable[[str | None], None] = lambda user: None
        """Called when the tokens of a user are void; None: of everybody."""
        self.enabled = False
        self.revision = 0
        self._users: dict[str, auth_pb2.User] = {}
        self._roles: dict[str, auth_pb2.Role] = {}
        self._changed: dict[str, int] = {}
        self._rights: dict[str, Rights] = {}

    def load(self) -> None:
        """Take what the store has durably now: at start, and after a snapshot. All tokens are void then."""
        self._users, self._roles, self._changed = {}, {}, {}
        self.enabled, self.revision = False, 1
        for key, value in self._store.backend.scan(AUTH):
            self._load_one(bytes(key), bytes(value))
        self._rights.clear()
        self.on_void(None)
        self.on_change()

    def _load_one(self, key: bytes, value: bytes) -> None:
        if key == _ENABLED:
            self.enabled = value == b"\1"
        elif key == _REVISION:
            (self.revision,) = _NUMBER.unpack(value)
        elif key.startswith(_USER):
            user = auth_pb2.User.FromString(value[_NUMBER.size :])
            self._users[user.name.decode()] = user
            (self._changed[user.name.decode()],) = _NUMBER.unpack_from(value)
        elif key.startswith(_ROLE):
            role = auth_pb2.Role.FromString(value)
            self._roles[role.name.decode()] = role

    # Who may do what

    def rights(self, caller: Caller) -> Rights:
        """What a caller may do now.

        Raises:
            UserEmpty: it did not say who it is.
            AuthOldRevision: something has changed since it was found out.
            PermissionDenied: there is no such user.
        """
        if not caller.user or not caller.revision:
            raise errors.UserEmpty
        if caller.revision < self.revision:
            raise errors.AuthOldRevision
        return self.rights_of(caller.user)

    def rights_of(self, name: str) -> Rights:
        """What a user may do now.

        Raises:
            PermissionDenied: there is no such user.
        """
        rights = self._rights.get(name)
        if rights is None:
            user = self._users.get(name)
            if user is None:
                raise errors.PermissionDenied
            roles = [self._roles[role] for role in user.roles if role in self._roles]
            granted = [permission for role in roles for permission in role.keyPermission]
            rights = self._rights[name] = Rights(granted, root=ROOT in user.roles)
        return rights

    def check_read(self, caller: Caller, span: Interval) -> None:
        """Raises: UserEmpty, AuthOldRevision, PermissionDenied."""
        if not self.rights(caller).may_read(span):
            raise errors.PermissionDenied

    def check_user(self, caller: Caller) -> None:
        """Raises: UserEmpty, AuthOldRevision (the user was changed), PermissionDenied (there is none)."""
        if not caller.user:
            raise errors.UserEmpty
        if caller.user not in self._users:
            raise errors.PermissionDenied
        if caller.revision < self._changed[caller.user]:
            raise errors.AuthOldRevision

    def check_root(self, caller: Caller) -> None:
        """Raises: UserEmpty, AuthOldRevision (the user was changed), PermissionDenied."""
        self.check_user(caller)
        if ROOT not in self._users[caller.user].roles:
            raise errors.PermissionDenied

    def password_hash(self, name: str) -> bytes | None:
        """What a user's password is compared with; None: there is no such user.

        Raises:
            NoPasswordUser: the user has none.
        """
        user = self._users.get(name)
        if user is None:
            return None
        if user.options.no_password:
            raise errors.NoPasswordUser
        return user.password

    # Reads

    @property
    def users(self) -> Sequence[str]:
        """Names, in order."""
        return sorted(self._users)

    @property
    def roles(self) -> Sequence[str]:
        """Names, in order."""
        return sorted(self._roles)

    def user_roles(self, name: str) -> Sequence[str]:
        """The roles of a user.

        Raises:
            UserNotFound
        """
        return self._user(name).roles

    def role_permissions(self, name: str) -> Sequence[auth_pb2.Permission]:
        """The permissions of a role.

        Raises:
            RoleNotFound
        """
        role = self._role(name)
        if name == ROOT:
            return [auth_pb2.Permission(permType=READWRITE, range_end=b"\0")]
        return role.keyPermission

    def has_role(self, user: str, role: str) -> bool:
        found = self._users.get(user)
        return found is not None and role in found.roles

    def _user(self, name: str) -> auth_pb2.User:
        try:
            return self._users[name]
        except KeyError:
            raise errors.UserNotFound from None

    def _role(self, name: str) -> auth_pb2.Role:
        try:
            return self._roles[name]
        except KeyError:
            raise errors.RoleNotFound from None

    # What the log does

    def enable(self) -> None:
        """From now on callers must say who they are.

        Raises:
            RootUserNotExist, RootRoleNotExist: nobody could disable it again.
        """
        if self.enabled:
            return
        root = self._users.get(ROOT)
        if root is None:
            raise errors.RootUserNotExist
        if ROOT not in root.roles:
            raise errors.RootRoleNotExist
        self._switch(on=True)
        self.on_change()

    def disable(self) -> None:
        """Everybody may do everything."""
        if self.enabled:
            self._switch(on=False)
            self.on_void(None)
            self._commit()

    def _switch(self, *, on: bool) -> None:
        self.enabled = on
        self._store.backend.put(AUTH, _ENABLED, b"\1" if on else b"\0")

    def user_add(self, request: rpc_pb2.AuthUserAddRequest, password_hash: bytes) -> None:
        """Raises: UserEmpty, UserAlreadyExist."""
        if not request.name:
            raise errors.UserEmpty
        if request.name in self._users:
            raise errors.UserAlreadyExist
        no_password = request.options.no_password
        user = auth_pb2.User(name=request.name.encode(), password=b"" if no_password else password_hash)
        user.options.no_password = no_password
        self._save_user(user)
        self._commit()

    def user_delete(self, name: str) -> None:
        """Raises: InvalidAuthMgmt (root, while it is needed), UserNotFound."""
        if self.enabled and name == ROOT:
            raise errors.InvalidAuthMgmt
        self._user(name)
        del self._users[name], self._changed[name]
        self._store.backend.delete(AUTH, _key(_USER, name.encode()))
        self.on_void(name)
        self._commit()

    def user_change_password(self, name: str, password_hash: bytes) -> None:
        """A user without a password gets none.

        Raises:
            UserNotFound
        """
        user = self._user(name)
        if not user.options.no_password:
            user.password = password_hash
        self._save_user(user)
        self.on_void(name)
        self._commit()

    def user_grant_role(self, name: str, role: str) -> None:
        """Raises: UserNotFound, RoleNotFound; the role root need not exist."""
        user = self._user(name)
        if role != ROOT:
            self._role(role)
        if role in user.roles:
            return
        user.roles[:] = sorted([*user.roles, role])
        self._save_user(user)
        self._commit()

    def user_revoke_role(self, name: str, role: str) -> None:
        """Raises: InvalidAuthMgmt (root of root, while it is needed), UserNotFound, RoleNotGranted."""
        if self.enabled and name == role == ROOT:
            raise errors.InvalidAuthMgmt
        user = self._user(name)
        if role not in user.roles:
            raise errors.RoleNotGranted
        user.roles.remove(role)
        self._save_user(user)
        self._commit()

    def role_add(self, name: str) -> None:
        """Raises: RoleEmpty, RoleAlreadyExist."""
        if not name:
            raise errors.RoleEmpty
        if name in self._roles:
            raise errors.RoleAlreadyExist
        self._save_role(auth_pb2.Role(name=name.encode()))
        self._commit()

    def role_delete(self, name: str) -> None:
        """Delete a role, and take it from its users.

        Raises:
            InvalidAuthMgmt (root, while it is needed), RoleNotFound
        """
        if self.enabled and name == ROOT:
            raise errors.InvalidAuthMgmt
        self._role(name)
        del self._roles[name]
        self._store.backend.delete(AUTH, _key(_ROLE, name.encode()))
        for user in self._users.values():
            if name in user.roles:
                user.roles.remove(name)
                self._save_user(user)
                self.on_void(user.name.decode())
        self._commit()

    def role_grant_permission(self, request: rpc_pb2.AuthRoleGrantPermissionRequest) -> None:
        """Add a permission, or change that on the same range.

        Raises:
            PermissionNotGiven, InvalidAuthMgmt (a range without keys), RoleNotFound
        """
        if not request.HasField("perm"):
            raise errors.PermissionNotGiven
        wanted = request.perm
        if not is_valid(wanted):
            raise errors.InvalidAuthMgmt
        role = self._role(request.name)
        others = [one for one in role.keyPermission if (one.key, one.range_end) != (wanted.key, wanted.range_end)]
        granted = sorted([*others, wanted], key=lambda one: (one.key, one.range_end))
        self._save_role(auth_pb2.Role(name=role.name, keyPermission=granted))
        self._commit()

    def role_revoke_permission(self, name: str, key: bytes, range_end: bytes) -> None:
        """Raises: RoleNotFound, PermissionNotGranted (on exactly this range)."""
        role = self._role(name)
        kept = [one for one in role.keyPermission if (one.key, one.range_end) != (key, range_end)]
        if len(kept) == len(role.keyPermission):
            raise errors.PermissionNotGranted
        self._save_role(auth_pb2.Role(name=role.name, keyPermission=kept))
        self._commit()

    def _save_user(self, user: auth_pb2.User) -> None:
        """Store a user that the change under way is about."""
        name = user.name.decode()
        self._users[name] = user
        changed = self._changed[name] = self.revision + 1
        record = _NUMBER.pack(changed) + user.SerializeToString(deterministic=True)
        self._store.backend.put(AUTH, _key(_USER, user.name), record)

    def _save_role(self, role: auth_pb2.Role) -> None:
        self._roles[role.name.decode()] = role
        self._store.backend.put(AUTH, _key(_ROLE, role.name), role.SerializeToString(deterministic=True))

    def _commit(self) -> None:
        self.revision += 1
        self._store.backend.put(AUTH, _REVISION, _NUMBER.pack(self.revision))
        self._rights.clear()
        self.on_change()
