"""Every error of the etcd v3 API: name, gRPC code, exact text.

Clients match on code and text, so both are part of the protocol (etcd api/v3/v3rpc/rpctypes). Each is a class, so that
`raise Compacted()` carries its own traceback and `except Compacted` works.
"""

from typing import ClassVar

from raftkv.status import Code, StatusError


class EtcdError(StatusError):
    """An error with etcd's code and text; subclasses fix both."""

    CODE: ClassVar[Code] = Code.UNKNOWN
    TEXT: ClassVar[str] = ""

    def __init__(self) -> None:
        super().__init__(self.CODE, self.TEXT)


class EmptyKey(EtcdError):
    CODE = Code.INVALID_ARGUMENT
    TEXT = "etcdserver: key is not provided"


class KeyNotFound(EtcdError):
    CODE = Code.INVALID_ARGUMENT
    TEXT = "etcdserver: key not found"


class ValueProvided(EtcdError):
    CODE = Code.INVALID_ARGUMENT
    TEXT = "etcdserver: value is provided"


class LeaseProvided(EtcdError):
    CODE = Code.INVALID_ARGUMENT
    TEXT = "etcdserver: lease is provided"


class TooManyOps(EtcdError):
    CODE = Code.INVALID_ARGUMENT
    TEXT = "etcdserver: too many operations in txn request"


class DuplicateKey(EtcdError):
    CODE = Code.INVALID_ARGUMENT
    TEXT = "etcdserver: duplicate key given in txn request"


class InvalidClientAPIVersion(EtcdError):
    CODE = Code.INVALID_ARGUMENT
    TEXT = "etcdserver: invalid client api version"


class InvalidSortOption(EtcdError):
    CODE = Code.INVALID_ARGUMENT
    TEXT = "etcdserver: invalid sort option"


class Compacted(EtcdError):
    CODE = Code.OUT_OF_RANGE
    TEXT = "etcdserver: mvcc: required revision has been compacted"


class FutureRev(EtcdError):
    CODE = Code.OUT_OF_RANGE
    TEXT = "etcdserver: mvcc: required revision is a future revision"


class NoSpace(EtcdError):
    CODE = Code.RESOURCE_EXHAUSTED
    TEXT = "etcdserver: mvcc: database space exceeded"


class LeaseNotFound(EtcdError):
    CODE = Code.NOT_FOUND
    TEXT = "etcdserver: requested lease not found"


class LeaseExist(EtcdError):
    CODE = Code.FAILED_PRECONDITION
    TEXT = "etcdserver: lease already exists"


class LeaseTTLTooLarge(EtcdError):
    CODE = Code.OUT_OF_RANGE
    TEXT = "etcdserver: too large lease TTL"


class WatchCanceled(EtcdError):
    CODE = Code.CANCELED
    TEXT = "etcdserver: watch canceled"


class MemberExist(EtcdError):
    CODE = Code.FAILED_PRECONDITION
    TEXT = "etcdserver: member ID already exist"


class PeerURLExist(EtcdError):
    CODE = Code.FAILED_PRECONDITION
    TEXT = "etcdserver: Peer URLs already exists"


class MemberNotEnoughStarted(EtcdError):
    CODE = Code.FAILED_PRECONDITION
    TEXT = "etcdserver: re-configuration failed due to not enough started members"


class MemberBadURLs(EtcdError):
    CODE = Code.INVALID_ARGUMENT
    TEXT = "etcdserver: given member URLs are invalid"


class MemberNotFound(EtcdError):
    CODE = Code.NOT_FOUND
    TEXT = "etcdserver: member not found"


class MemberNotLearner(EtcdError):
    CODE = Code.FAILED_PRECONDITION
    TEXT = "etcdserver: can only promote a learner member"


class LearnerNotReady(EtcdError):
    CODE = Code.FAILED_PRECONDITION
    TEXT = "etcdserver: can only promote a learner member which is in sync with leader"


class TooManyLearners(EtcdError):
    CODE = Code.FAILED_PRECONDITION
    TEXT = "etcdserver: too many learner members in cluster"


class ClusterIDMismatch(EtcdError):
    CODE = Code.FAILED_PRECONDITION
    TEXT = "etcdserver: cluster ID mismatch"


class RequestTooLarge(EtcdError):
    CODE = Code.INVALID_ARGUMENT
    TEXT = "etcdserver: request is too large"


class RequestTooManyRequests(EtcdError):
    CODE = Code.RESOURCE_EXHAUSTED
    TEXT = "etcdserver: too many requests"


class RootUserNotExist(EtcdError):
    CODE = Code.FAILED_PRECONDITION
    TEXT = "etcdserver: root user does not exist"


class RootRoleNotExist(EtcdError):
    CODE = Code.FAILED_PRECONDITION
    TEXT = "etcdserver: root user does not have root role"


class UserAlreadyExist(EtcdError):
    CODE = Code.FAILED_PRECONDITION
    TEXT = "etcdserver: user name already exists"


class UserEmpty(EtcdError):
    CODE = Code.INVALID_ARGUMENT
    TEXT = "etcdserver: user name is empty"


class UserNotFound(EtcdError):
    CODE = Code.FAILED_PRECONDITION
    TEXT = "etcdserver: user name not found"


class RoleAlreadyExist(EtcdError):
    CODE = Code.FAILED_PRECONDITION
    TEXT = "etcdserver: role name already exists"


class RoleNotFound(EtcdError):
    CODE = Code.FAILED_PRECONDITION
    TEXT = "etcdserver: role name not found"


class RoleEmpty(EtcdError):
    CODE = Code.INVALID_ARGUMENT
    TEXT = "etcdserver: role name is empty"


class AuthFailed(EtcdError):
    CODE = Code.INVALID_ARGUMENT
    TEXT = "etcdserver: authentication failed, invalid user ID or password"


class NoPasswordUser(EtcdError):
    # etcd has no code of its own for it.
    CODE = Code.UNKNOWN
    TEXT = "auth: authentication failed, password was given for no password user"


class PermissionNotGiven(EtcdError):
    CODE = Code.INVALID_ARGUMENT
    TEXT = "etcdserver: permission not given"


class PermissionDenied(EtcdError):
    CODE = Code.PERMISSION_DENIED
    TEXT = "etcdserver: permission denied"


class RoleNotGranted(EtcdError):
    CODE = Code.FAILED_PRECONDITION
    TEXT = "etcdserver: role is not granted to the user"


class PermissionNotGranted(EtcdError):
    CODE = Code.FAILED_PRECONDITION
    TEXT = "etcdserver: permission is not granted to the role"


class AuthNotEnabled(EtcdError):
    CODE = Code.FAILED_PRECONDITION
    TEXT = "etcdserver: authentication is not enabled"


class InvalidAuthToken(EtcdError):
    CODE = Code.UNAUTHENTICATED
    TEXT = "etcdserver: invalid auth token"


class InvalidAuthMgmt(EtcdError):
    CODE = Code.INVALID_ARGUMENT
    TEXT = "etcdserver: invalid auth management"


class AuthOldRevision(EtcdError):
    CODE = Code.INVALID_ARGUMENT
    TEXT = "etcdserver: revision of auth store is old"


class NoLeader(EtcdError):
    CODE = Code.UNAVAILABLE
    TEXT = "etcdserver: no leader"


class NotLeader(EtcdError):
    CODE = Code.FAILED_PRECONDITION
    TEXT = "etcdserver: not leader"


class LeaderChanged(EtcdError):
    CODE = Code.UNAVAILABLE
    TEXT = "etcdserver: leader changed"


class NotCapable(EtcdError):
    CODE = Code.FAILED_PRECONDITION
    TEXT = "etcdserver: not capable"


class Stopped(EtcdError):
    CODE = Code.UNAVAILABLE
    TEXT = "etcdserver: server stopped"


class Timeout(EtcdError):
    CODE = Code.UNAVAILABLE
    TEXT = "etcdserver: request timed out"


class TimeoutDueToLeaderFail(EtcdError):
    CODE = Code.UNAVAILABLE
    TEXT = "etcdserver: request timed out, possibly due to previous leader failure"


class TimeoutDueToConnectionLost(EtcdError):
    CODE = Code.UNAVAILABLE
    TEXT = "etcdserver: request timed out, possibly due to connection lost"


class TimeoutWaitAppliedIndex(EtcdError):
    CODE = Code.UNAVAILABLE
    TEXT = "etcdserver: request timed out, waiting for the applied index took too long"


class Unhealthy(EtcdError):
    CODE = Code.UNAVAILABLE
    TEXT = "etcdserver: unhealthy cluster"


class Corrupt(EtcdError):
    CODE = Code.DATA_LOSS
    TEXT = "etcdserver: corrupt cluster"


class NotSupportedForLearner(EtcdError):
    CODE = Code.FAILED_PRECONDITION
    TEXT = "etcdserver: rpc not supported for learner"


class BadLeaderTransferee(EtcdError):
    CODE = Code.FAILED_PRECONDITION
    TEXT = "etcdserver: bad leader transferee"


class TimeoutLeaderTransfer(EtcdError):
    # etcd has no code of its own for it.
    CODE = Code.UNKNOWN
    TEXT = "etcdserver: request timed out, leader transfer took too long"


class WrongDowngradeVersionFormat(EtcdError):
    CODE = Code.INVALID_ARGUMENT
    TEXT = "etcdserver: wrong downgrade target version format"


class InvalidDowngradeTargetVersion(EtcdError):
    CODE = Code.INVALID_ARGUMENT
    TEXT = "etcdserver: invalid downgrade target version"


class ClusterVersionUnavailable(EtcdError):
    CODE = Code.FAILED_PRECONDITION
    TEXT = "etcdserver: cluster version not found during downgrade"


class DowngradeInProcess(EtcdError):
    CODE = Code.FAILED_PRECONDITION
    TEXT = "etcdserver: cluster has a downgrade job in progress"


class NoInflightDowngrade(EtcdError):
    CODE = Code.FAILED_PRECONDITION
    TEXT = "etcdserver: no inflight downgrade job"


class Canceled(EtcdError):
    CODE = Code.CANCELED
    TEXT = "etcdserver: request canceled"


class DeadlineExceeded(EtcdError):
    CODE = Code.DEADLINE_EXCEEDED
    TEXT = "etcdserver: context deadline exceeded"
