"""The RPCs that manage users, roles and permissions."""

from typing import TypeVar

from google.protobuf.message import Message

from raftkv.client.requests import Rpc
from raftkv.pb import rpc_pb2 as pb

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)


def _rpc(name: str, request: type[Q], response: type[A], *, read: bool = False) -> Rpc[Q, A]:
    return Rpc(f"/etcdserverpb.Auth/{name}", request, response, read)


AUTH_ENABLE = _rpc("AuthEnable", pb.AuthEnableRequest, pb.AuthEnableResponse)
AUTH_DISABLE = _rpc("AuthDisable", pb.AuthDisableRequest, pb.AuthDisableResponse)
AUTH_STATUS = _rpc("AuthStatus", pb.AuthStatusRequest, pb.AuthStatusResponse, read=True)
USER_ADD = _rpc("UserAdd", pb.AuthUserAddRequest, pb.AuthUserAddResponse)
USER_DELETE = _rpc("UserDelete", pb.AuthUserDeleteRequest, pb.AuthUserDeleteResponse)
USER_GET = _rpc("UserGet", pb.AuthUserGetRequest, pb.AuthUserGetResponse, read=True)
USER_LIST = _rpc("UserList", pb.AuthUserListRequest, pb.AuthUserListResponse, read=True)
USER_CHANGE_PASSWORD = _rpc("UserChangePassword", pb.AuthUserChangePasswordRequest, pb.AuthUserChangePasswordResponse)
USER_GRANT_ROLE = _rpc("UserGrantRole", pb.AuthUserGrantRoleRequest, pb.AuthUserGrantRoleResponse)
USER_REVOKE_ROLE = _rpc("UserRevokeRole", pb.AuthUserRevokeRoleRequest, pb.AuthUserRevokeRoleResponse)
ROLE_ADD = _rpc("RoleAdd", pb.AuthRoleAddRequest, pb.AuthRoleAddResponse)
ROLE_DELETE = _rpc("RoleDelete", pb.AuthRoleDeleteRequest, pb.AuthRoleDeleteResponse)
ROLE_GET = _rpc("RoleGet", pb.AuthRoleGetRequest, pb.AuthRoleGetResponse, read=True)
ROLE_LIST = _rpc("RoleList", pb.AuthRoleListRequest, pb.AuthRoleListResponse, read=True)
ROLE_GRANT_PERMISSION = _rpc(
    "RoleGrantPermission", pb.AuthRoleGrantPermissionRequest, pb.AuthRoleGrantPermissionResponse
)
ROLE_REVOKE_PERMISSION = _rpc(
    "RoleRevokePermission", pb.AuthRoleRevokePermissionRequest, pb.AuthRoleRevokePermissionResponse
)
