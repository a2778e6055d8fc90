"""The paths of etcd's gateway, written out."""

import pytest

from raftkv.gateway.routes import paths_of, routes

PATHS = """
/v3/kv/range KV/Range
/v3/kv/put KV/Put
/v3/kv/deleterange KV/DeleteRange
/v3/kv/txn KV/Txn
/v3/kv/compaction KV/Compact
/v3/watch Watch/Watch
/v3/lease/grant Lease/LeaseGrant
/v3/lease/revoke Lease/LeaseRevoke
/v3/kv/lease/revoke Lease/LeaseRevoke
/v3/lease/keepalive Lease/LeaseKeepAlive
/v3/lease/timetolive Lease/LeaseTimeToLive
/v3/kv/lease/timetolive Lease/LeaseTimeToLive
/v3/lease/leases Lease/LeaseLeases
/v3/kv/lease/leases Lease/LeaseLeases
/v3/cluster/member/add Cluster/MemberAdd
/v3/cluster/member/remove Cluster/MemberRemove
/v3/cluster/member/update Cluster/MemberUpdate
/v3/cluster/member/list Cluster/MemberList
/v3/cluster/member/promote Cluster/MemberPromote
/v3/maintenance/alarm Maintenance/Alarm
/v3/maintenance/status Maintenance/Status
/v3/maintenance/defragment Maintenance/Defragment
/v3/maintenance/hash Maintenance/Hash
/v3/maintenance/hashkv Maintenance/HashKV
/v3/maintenance/snapshot Maintenance/Snapshot
/v3/maintenance/transfer-leadership Maintenance/MoveLeader
/v3/maintenance/downgrade Maintenance/Downgrade
/v3/auth/enable Auth/AuthEnable
/v3/auth/disable Auth/AuthDisable
/v3/auth/status Auth/AuthStatus
/v3/auth/authenticate Auth/Authenticate
/v3/auth/user/add Auth/UserAdd
/v3/auth/user/get Auth/UserGet
/v3/auth/user/list Auth/UserList
/v3/auth/user/delete Auth/UserDelete
/v3/auth/user/changepw Auth/UserChangePassword
/v3/auth/user/grant Auth/UserGrantRole
/v3/auth/user/revoke Auth/UserRevokeRole
/v3/auth/role/add Auth/RoleAdd
/v3/auth/role/get Auth/RoleGet
/v3/auth/role/list Auth/RoleList
/v3/auth/role/delete Auth/RoleDelete
/v3/auth/role/grant Auth/RoleGrantPermission
/v3/auth/role/revoke Auth/RoleRevokePermission
/v3/lock/lock Lock/Lock
/v3/lock/unlock Lock/Unlock
/v3/election/campaign Election/Campaign
/v3/election/proclaim Election/Proclaim
/v3/election/leader Election/Leader
/v3/election/observe Election/Observe
/v3/election/resign Election/Resign
"""


def test_every_path_of_etcd_leads_to_its_method_and_there_is_no_other() -> None:
    packages = {"Lock": "v3lockpb", "Election": "v3electionpb"}
    expected = {}
    for line in PATHS.split("\n"):
        if line:
            path, method = line.split()
            expected[path] = f"/{packages.get(method.split('/')[0], 'etcdserverpb')}.{method}"
    assert {path: route.call for path, route in routes().items()} == expected


@pytest.mark.parametrize(
    ("path", "request_streams", "response_streams"),
    [
        ("/v3/kv/put", False, False),
        ("/v3/watch", True, True),
        ("/v3/lease/keepalive", True, True),
        ("/v3/maintenance/snapshot", False, True),
        ("/v3/election/observe", False, True),
    ],
)
def test_the_streaming_sides_come_from_the_descriptors(
    path: str, request_streams: bool, response_streams: bool
) -> None:
    route = routes()[path]
    assert (route.request_streams, route.response_streams) == (request_streams, response_streams)


def test_a_method_is_found_by_all_of_its_paths() -> None:
    assert paths_of(["/etcdserverpb.Lease/LeaseRevoke"]) == {"/v3/lease/revoke", "/v3/kv/lease/revoke"}
