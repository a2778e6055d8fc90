"""When a client asks for a token, and when it does not."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from raftkv import errors
from raftkv.client.errors import ClientError, classify
from raftkv.client.login import Login, metadata


def refused(kind: type[errors.EtcdError]) -> ClientError:
    return classify(kind.CODE, kind.TEXT, read=False)


def numbered(*answers: str | ClientError) -> tuple[list[int], Callable[[], Awaitable[str]]]:
    """Log-ins with these outcomes, and how many there were."""
    asked: list[int] = []

    async def log_in() -> str:
        asked.append(len(asked))
        await asyncio.sleep(0)
        answer = answers[asked[-1]]
        if isinstance(answer, ClientError):
            raise answer
        return answer

    return asked, log_in


def test_who_has_no_user_has_no_token() -> None:
    asked, log_in = numbered()
    login = Login("", log_in)
    assert asyncio.run(login.token()) == ""
    assert not login.forget("", refused(errors.UserEmpty))
    assert metadata("") == ()
    assert not asked


def test_calls_at_once_share_a_log_in() -> None:
    asked, log_in = numbered("t")

    async def main() -> list[str]:
        login = Login("u", log_in)
        return await asyncio.gather(*(login.token() for _ in range(5)))

    assert asyncio.run(main()) == ["t"] * 5
    assert len(asked) == 1


@pytest.mark.parametrize("kind", [errors.InvalidAuthToken, errors.AuthOldRevision, errors.UserEmpty])
def test_a_void_token_is_replaced_once_however_many_find_that(kind: type[errors.EtcdError]) -> None:
    asked, log_in = numbered("first", "second")

    async def main() -> None:
        login = Login("u", log_in)
        first = await login.token()
        assert login.forget(first, refused(kind))
        assert await login.token() == "second"
        # A call that went out with the first token before that.
        assert login.forget(first, refused(kind))
        assert await login.token() == "second"

    asyncio.run(main())
    assert len(asked) == 2


def test_other_errors_are_no_reason_to_log_in_again() -> None:
    _, log_in = numbered("t")
    login = Login("u", log_in)
    for kind in (errors.PermissionDenied, errors.AuthFailed, errors.NoLeader, errors.Timeout):
        assert not login.forget("t", refused(kind))


def test_where_nobody_need_log_in_there_is_no_token_until_they_must() -> None:
    asked, log_in = numbered(refused(errors.AuthNotEnabled), "t")

    async def main() -> None:
        login = Login("u", log_in)
        assert await login.token() == ""
        assert await login.token() == ""
        assert login.forget("", refused(errors.UserEmpty))
        assert await login.token() == "t"

    asyncio.run(main())
    assert len(asked) == 2


def test_a_wrong_password_is_said_every_time() -> None:
    asked, log_in = numbered(refused(errors.AuthFailed), "t")

    async def main() -> None:
        login = Login("u", log_in)
        with pytest.raises(errors.AuthFailed):
            await login.token()
        assert await login.token() == "t"

    asyncio.run(main())
    assert len(asked) == 2
