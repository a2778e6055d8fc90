"""Users and roles: every precondition, in etcd's words, and what a restart finds."""

from collections.abc import Callable
from pathlib import Path

import pytest

from raftkv import errors
from raftkv.auth import AuthStore, Caller
from raftkv.mvcc import LmdbBackend, Store
from raftkv.mvcc.interval import interval
from raftkv.offline.memory import MemoryBackend
from raftkv.pb import auth_pb2
from raftkv.pb import rpc_pb2 as pb

READ, WRITE, READWRITE = auth_pb2.Permission.READ, auth_pb2.Permission.WRITE, auth_pb2.Permission.READWRITE


def made(backend: MemoryBackend | None = None) -> AuthStore:
    store = AuthStore(Store(backend or MemoryBackend()))
    store.load()
    return store


def add(store: AuthStore, name: str, *roles: str, no_password: bool = False) -> None:
    request = pb.AuthUserAddRequest(name=name)
    request.options.no_password = no_password
    store.user_add(request, b"hash of " + name.encode())
    for role in roles:
        store.user_grant_role(name, role)


def grant(store: AuthStore, role: str, kind: "auth_pb2.Permission.Type", key: bytes, range_end: bytes = b"") -> None:
    permission = auth_pb2.Permission(permType=kind, key=key, range_end=range_end)
    store.role_grant_permission(pb.AuthRoleGrantPermissionRequest(name=role, perm=permission))


def populated() -> AuthStore:
    store = made()
    add(store, "root", "root")
    store.role_add("root")
    store.role_add("r")
    grant(store, "r", READ, b"a", b"c")
    add(store, "u", "r")
    return store


REFUSALS: list[tuple[type[errors.EtcdError], Callable[[AuthStore], object]]] = [
    (errors.UserEmpty, lambda store: add(store, "")),
    (errors.UserAlreadyExist, lambda store: add(store, "u")),
    (errors.UserNotFound, lambda store: store.user_delete("x")),
    (errors.UserNotFound, lambda store: store.user_change_password("x", b"")),
    (errors.UserNotFound, lambda store: store.user_grant_role("x", "r")),
    (errors.UserNotFound, lambda store: store.user_revoke_role("x", "r")),
    (errors.UserNotFound, lambda store: store.user_roles("x")),
    (errors.RoleNotFound, lambda store: store.user_grant_role("u", "x")),
    (errors.RoleNotGranted, lambda store: store.user_revoke_role("u", "x")),
    (errors.RoleEmpty, lambda store: store.role_add("")),
    (errors.RoleAlreadyExist, lambda store: store.role_add("r")),
    (errors.RoleNotFound, lambda store: store.role_delete("x")),
    (errors.RoleNotFound, lambda store: store.role_permissions("x")),
    (errors.RoleNotFound, lambda store: grant(store, "x", READ, b"a")),
    (errors.RoleNotFound, lambda store: store.role_revoke_permission("x", b"a", b"")),
    (errors.PermissionNotGranted, lambda store: store.role_revoke_permission("r", b"a", b"b")),
    (
        errors.PermissionNotGiven,
        lambda store: store.role_grant_permission(pb.AuthRoleGrantPermissionRequest(name="r")),
    ),
    (errors.InvalidAuthMgmt, lambda store: grant(store, "r", READ, b"")),
    (errors.InvalidAuthMgmt, lambda store: grant(store, "r", READ, b"b", b"a")),
    (errors.InvalidAuthMgmt, lambda store: grant(store, "r", READ, b"b", b"b")),
]
WHILE_ENABLED: list[tuple[type[errors.EtcdError], Callable[[AuthStore], object]]] = [
    (errors.InvalidAuthMgmt, lambda store: store.user_delete("root")),
    (errors.InvalidAuthMgmt, lambda store: store.user_revoke_role("root", "root")),
    (errors.InvalidAuthMgmt, lambda store: store.role_delete("root")),
]


def dump(store: AuthStore) -> object:
    users = {name: list(store.user_roles(name)) for name in store.users}
    roles = {name: [str(one) for one in store.role_permissions(name)] for name in store.roles}
    return users, roles, store.enabled, store.revision


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("case", range(len(REFUSALS)))
def test_what_is_refused_changes_nothing(case: int, enabled: bool) -> None:
    store = populated()
    if enabled:
        store.enable()
    before = dump(store)
    error, act = REFUSALS[case]
    with pytest.raises(error):
        act(store)
    assert dump(store) == before


@pytest.mark.parametrize("case", range(len(WHILE_ENABLED)))
def test_root_stays_while_it_is_needed(case: int) -> None:
    error, act = WHILE_ENABLED[case]
    store = populated()
    store.enable()
    with pytest.raises(error):
        act(store)
    store.disable()
    act(store)


def test_enabling_needs_a_root_who_is_root() -> None:
    store = made()
    with pytest.raises(errors.RootUserNotExist):
        store.enable()
    add(store, "root")
    with pytest.raises(errors.RootRoleNotExist):
        store.enable()
    # The role need not exist to be granted.
    store.user_grant_role("root", "root")
    store.enable()
    assert store.enabled


def test_every_change_counts_and_nothing_else_does() -> None:
    store = made()
    assert store.revision == 1
    changes: list[Callable[[], object]] = [
        lambda: add(store, "root"),
        lambda: store.user_grant_role("root", "root"),
        lambda: store.role_add("r"),
        lambda: grant(store, "r", READ, b"a"),
        lambda: grant(store, "r", WRITE, b"a"),
        lambda: store.role_revoke_permission("r", b"a", b""),
        lambda: store.user_change_password("root", b"other"),
    ]
    for count, change in enumerate(changes, 2):
        change()
        assert store.revision == count
    before = store.revision
    store.user_grant_role("root", "root")
    store.enable()
    store.enable()
    assert store.revision == before
    store.disable()
    store.disable()
    assert store.revision == before + 1


def test_a_second_permission_on_a_range_replaces_the_first() -> None:
    store = populated()
    grant(store, "r", READWRITE, b"a", b"c")
    grant(store, "r", READ, b"a")
    assert [(one.permType, one.key, one.range_end) for one in store.role_permissions("r")] == [
        (READ, b"a", b""),
        (READWRITE, b"a", b"c"),
    ]


def test_a_role_that_is_deleted_is_taken_from_its_users() -> None:
    store = populated()
    voided: list[str | None] = []
    store.on_void = voided.append
    store.role_delete("r")
    assert list(store.user_roles("u")) == []
    assert voided == ["u"]
    store.role_add("r")
    assert list(store.user_roles("u")) == []


def test_tokens_are_void_when_a_user_or_its_password_goes() -> None:
    store = populated()
    voided: list[str | None] = []
    store.on_void = voided.append
    store.user_change_password("u", b"other")
    store.user_delete("u")
    store.enable()
    store.disable()
    assert voided == ["u", "u", None]


def test_a_user_without_a_password_never_has_one() -> None:
    store = made()
    add(store, "n", no_password=True)
    store.user_change_password("n", b"hash")
    with pytest.raises(errors.NoPasswordUser):
        store.password_hash("n")
    assert store.password_hash("nobody") is None


def test_root_s_role_is_shown_as_everything() -> None:
    (permission,) = populated().role_permissions("root")
    assert (permission.permType, permission.key, permission.range_end) == (READWRITE, b"", b"\0")


def test_a_caller_found_out_before_a_change_is_asked_again() -> None:
    store = populated()
    caller = Caller("u", store.revision)
    store.check_read(caller, interval(b"a", b""))
    store.role_add("another")
    with pytest.raises(errors.AuthOldRevision):
        store.check_read(caller, interval(b"a", b""))
    # What only root may do looks at the caller alone.
    root = Caller("root", store.revision)
    store.role_add("and another")
    store.check_root(root)
    store.user_change_password("root", b"other")
    with pytest.raises(errors.AuthOldRevision):
        store.check_root(root)


@pytest.mark.parametrize(
    ("caller", "error"),
    [
        (Caller(), errors.UserEmpty),
        (Caller("", 99), errors.UserEmpty),
        (Caller("nobody", 99), errors.PermissionDenied),
        (Caller("u", 99), errors.PermissionDenied),
    ],
)
def test_only_root_is_root(caller: Caller, error: type[errors.EtcdError]) -> None:
    with pytest.raises(error):
        populated().check_root(caller)


def test_a_restart_finds_what_was_flushed(tmp_path: Path) -> None:
    backend = LmdbBackend(str(tmp_path), map_bytes=1 << 30)
    store = AuthStore(Store(backend))
    store.load()
    add(store, "root", "root")
    store.role_add("r")
    grant(store, "r", READ, b"\0", b"\0")
    # LMDB's keys are shorter than such a name.
    add(store, "é" * 1000, "r")
    add(store, "gone")
    store.user_delete("gone")
    store.enable()
    caller = Caller("root", store.revision)
    store.user_change_password("root", b"other")
    flush = backend.begin_flush()
    assert flush is not None
    flush.write()
    backend.end_flush(flush)
    before = dump(store)
    again = AuthStore(Store(backend))
    again.load()
    assert dump(again) == before
    assert again.password_hash("root") == b"other"
    again.check_read(Caller("é" * 1000, again.revision), (b"", None))
    with pytest.raises(errors.AuthOldRevision):
        again.check_root(caller)
    backend.close()


def test_loading_again_forgets_what_followed_from_the_old() -> None:
    backend = MemoryBackend()
    store = made(backend)
    store.role_add("r")
    grant(store, "r", READ, b"a")
    add(store, "u", "r")
    assert store.rights_of("u").may_read(interval(b"a", b""))
    other = made(backend)
    other.role_revoke_permission("r", b"a", b"")
    changed: list[bool] = []
    voided: list[str | None] = []
    store.on_change, store.on_void = lambda: changed.append(True), voided.append
    store.load()
    assert not store.rights_of("u").may_read(interval(b"a", b""))
    assert changed == [True]
    assert voided == [None]


def test_a_right_holds_and_ends_with_the_change_itself() -> None:
    store = populated()

    def may_read(key: bytes) -> bool:
        return store.rights_of("u").may_read(interval(key, b""))

    assert not may_read(b"x")
    grant(store, "r", READ, b"x")
    assert may_read(b"x")
    store.role_revoke_permission("r", b"x", b"")
    assert not may_read(b"x")
    assert may_read(b"a")
    store.user_revoke_role("u", "r")
    assert not may_read(b"a")
    store.user_grant_role("u", "r")
    assert may_read(b"a")
    store.role_delete("r")
    assert not may_read(b"a")
    store.user_grant_role("u", "root")
    assert may_read(b"anything")
    store.user_delete("u")
    with pytest.raises(errors.PermissionDenied):
        may_read(b"a")
