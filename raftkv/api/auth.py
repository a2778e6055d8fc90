"""etcdserverpb.Auth: users, roles, permissions, and logging in. Passwords are hashed here, before the log."""

from collections.abc import Awaitable, Callable

from google.protobuf.message import Message

from raftkv import errors
from raftkv.api.access import caller
from raftkv.api.guard import Limits
from raftkv.api.kv import decode
from raftkv.pb import rpc_pb2
from raftkv.rpc import Context, Method
from raftkv.server import proposals
from raftkv.server.proposals import Operation
from raftkv.server.server import Server

_CHANGES: dict[str, tuple[Operation, type[Message]]] = {
    "AuthEnable": (proposals.AUTH_ENABLE, rpc_pb2.AuthEnableRequest),
    "AuthDisable": (proposals.AUTH_DISABLE, rpc_pb2.AuthDisableRequest),
    "UserDelete": (proposals.USER_DELETE, rpc_pb2.AuthUserDeleteRequest),
    "UserGrantRole": (proposals.USER_GRANT_ROLE, rpc_pb2.AuthUserGrantRoleRequest),
    "UserRevokeRole": (proposals.USER_REVOKE_ROLE, rpc_pb2.AuthUserRevokeRoleRequest),
    "RoleAdd": (proposals.ROLE_ADD, rpc_pb2.AuthRoleAddRequest),
    "RoleDelete": (proposals.ROLE_DELETE, rpc_pb2.AuthRoleDeleteRequest),
    "RoleGrantPermission": (proposals.ROLE_GRANT_PERMISSION, rpc_pb2.AuthRoleGrantPermissionRequest),
    "RoleRevokePermission": (proposals.ROLE_REVOKE_PERMISSION, rpc_pb2.AuthRoleRevokePermissionRequest),
}
"""RPCs that go to the log as they come."""


class AuthService:
    """All of Auth."""

    def __init__(self, server: Server, limits: Limits) -> None:
        self._server = server
        self._auth = server.auth
        self._max_request_bytes = limits.max_request_bytes

    def methods(self) -> dict[str, Method]:
        """The service's method table."""
        prefix = "/etcdserverpb.Auth/"
        changes = {prefix + name: self._change(operation, kind) for name, (operation, kind) in _CHANGES.items()}
        return {
            **changes,
            prefix + "Authenticate": Method.unary(self.authenticate),
            prefix + "AuthStatus": Method.unary(self.status),
            prefix + "UserAdd": Method.unary(self.user_add),
            prefix + "UserChangePassword": Method.unary(self.user_change_password),
            prefix + "UserGet": Method.unary(self.user_get),
            prefix + "UserList": Method.unary(self.user_list),
            prefix + "RoleGet": Method.unary(self.role_get),
            prefix + "RoleList": Method.unary(self.role_list),
        }

    def _change(self, operation: Operation, kind: type[Message]) -> Method:
        def change(request: bytes, context: Context) -> Awaitable[list[bytes]]:
            decode(kind, request)
            return self._propose(operation, request, context)

        return Method.unary(change)

    def _propose(self, operation: Operation, request: bytes, context: Context) -> Awaitable[list[bytes]]:
        if len(request) > self._max_request_bytes:
            raise errors.RequestTooLarge
        return self._server.propose(operation, request, context.caller)

    async def authenticate(self, request: bytes, context: Context) -> list[bytes]:
        """Give a token for a password."""
        wanted = decode(rpc_pb2.AuthenticateRequest, request)
        token = await self._server.authority.log_in(wanted.name, wanted.password)
        return [self._server.header(), rpc_pb2.AuthenticateResponse(token=token).SerializeToString()]

    async def user_add(self, request: bytes, context: Context) -> list[bytes]:
        """Make a user; the log gets a hash, never the password."""
        wanted = decode(rpc_pb2.AuthUserAddRequest, request)
        await self._refuse_early(context)
        wanted.hashedPassword = ""
        if not wanted.options.no_password:
            wanted.hashedPassword = await self._server.authority.hash_password(wanted.password)
        wanted.password = ""
        return await self._propose(proposals.USER_ADD, wanted.SerializeToString(), context)

    async def user_change_password(self, request: bytes, context: Context) -> list[bytes]:
        """Give a user another password."""
        wanted = decode(rpc_pb2.AuthUserChangePasswordRequest, request)
        await self._refuse_early(context)
        wanted.hashedPassword = await self._server.authority.hash_password(wanted.password)
        wanted.password = ""
        return await self._propose(proposals.USER_CHANGE_PASSWORD, wanted.SerializeToString(), context)

    async def _refuse_early(self, context: Context) -> None:
        """Who will be refused anyway does not keep the processor busy with a hash."""
        if self._auth.enabled:
            await self._server.linearizable()
            self._auth.check_root(caller(context))

    async def status(self, request: bytes, context: Context) -> list[bytes]:
        """Tell anybody, but with no bad token, whether callers must say who they are, and the auth revision."""
        await self._server.linearizable()
        auth = self._auth
        if auth.enabled:
            context.caller = await self._server.authority.identify(context.metadata, context.certificate_user)
        response = rpc_pb2.AuthStatusResponse(enabled=auth.enabled, authRevision=auth.revision)
        return self._answer(response)

    async def user_list(self, request: bytes, context: Context) -> list[bytes]:
        """Tell the names of all users."""
        await self._current(context)
        return self._answer(rpc_pb2.AuthUserListResponse(users=self._auth.users))

    async def role_list(self, request: bytes, context: Context) -> list[bytes]:
        """Tell the names of all roles."""
        await self._current(context)
        return self._answer(rpc_pb2.AuthRoleListResponse(roles=self._auth.roles))

    async def user_get(self, request: bytes, context: Context) -> list[bytes]:
        """Tell the roles of a user, to root or to the user."""
        wanted = decode(rpc_pb2.AuthUserGetRequest, request)
        await self._current(context, own=lambda user: user == wanted.name)
        return self._answer(rpc_pb2.AuthUserGetResponse(roles=self._auth.user_roles(wanted.name)))

    async def role_get(self, request: bytes, context: Context) -> list[bytes]:
        """Tell the permissions of a role, to root or to users who have it."""
        wanted = decode(rpc_pb2.AuthRoleGetRequest, request)
        await self._current(context, own=lambda user: self._auth.has_role(user, wanted.role))
        return self._answer(rpc_pb2.AuthRoleGetResponse(perm=self._auth.role_permissions(wanted.role)))

    async def _current(self, context: Context, own: Callable[[str], bool] = lambda user: False) -> None:
        """Wait until this member knows all; then refuse whom it does not concern."""
        await self._server.linearizable()
        if self._auth.enabled:
            asking = caller(context)
            self._auth.check_user(asking)
            if not own(asking.user):
                self._auth.check_root(asking)

    def _answer(self, response: Message) -> list[bytes]:
        return [self._server.header(), response.SerializeToString()]
