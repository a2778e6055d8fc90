"""Health, version and the front, on a server that is as well or as ill as the test wants."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from raftkv import errors
from raftkv.http.asgi import CERTIFICATE_USER
from raftkv.raft import ConfState
from raftkv.web import Checks, Front, client_pages, metrics_pages


class Server:
    """What the checks ask of a server."""

    def __init__(self) -> None:
        self.node = SimpleNamespace(id=1, leader=1, conf_state=ConfState(voters=(1, 2), learners=(3,)))
        self.store = SimpleNamespace(range=lambda request: [])
        self.stuck: Exception | None = None

    async def linearizable(self) -> None:
        if self.stuck is not None:
            raise self.stuck


class Site:
    """A front with its server and its alarms."""

    def __init__(self, *, debug: bool = False, origins: tuple[str, ...] = ("*",)) -> None:
        self.server = Server()
        self.alarms: list[str] = []
        self.checks = Checks(self.server, lambda: self.alarms)  # type: ignore[arg-type]
        self.client = Front(
            client_pages(self.checks, lambda: b"metrics\n", debug=debug), gateway=self._gateway, origins=origins
        )
        self.monitoring = Front(metrics_pages(self.checks, lambda: b"metrics\n"))

    async def _gateway(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    def ask(
        self, target: str, method: str = "GET", front: Front | None = None, origin: str = ""
    ) -> tuple[int, bytes, dict[str, str]]:
        path, _, query = target.partition("?")
        scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": []}
        if origin:
            scope["headers"] = [(b"origin", origin.encode())]
        events: list[dict[str, Any]] = []

        async def send(event: Any) -> None:
            events.append(event)

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        asyncio.run((front or self.client)(scope, receive, send))
        headers = {name.decode(): value.decode() for name, value in events[0]["headers"]}
        return events[0]["status"], events[1]["body"], headers

    def get(self, target: str) -> tuple[int, bytes]:
        return self.ask(target)[:2]


def test_health_is_etcds_json() -> None:
    site = Site()
    status, body, headers = site.ask("/health")
    assert (status, body) == (200, b'{"health":"true","reason":""}')
    assert headers["content-type"] == "text/plain; charset=utf-8"


def test_health_without_a_leader() -> None:
    site = Site()
    site.server.node.leader = 0
    assert site.get("/health") == (503, b'{"health":"false","reason":"RAFT NO LEADER"}\n')
    assert site.get("/health?serializable=true") == (200, b'{"health":"true","reason":""}')
    assert site.get("/health?serializable=TRUE")[0] == 503
    assert (site.checks.health_failures, site.checks.health_successes) == (2, 1)


def test_health_when_reads_do_not_end() -> None:
    site = Site()
    site.server.stuck = errors.Timeout()
    assert site.get("/health") == (503, b'{"health":"false","reason":"RANGE ERROR:etcdserver: request timed out"}\n')
    assert site.get("/health?serializable=true")[0] == 200


def test_alarms_make_a_member_unhealthy_unless_they_are_excluded() -> None:
    site = Site()
    site.alarms.append("NOSPACE")
    site.server.node.leader = 0
    assert site.get("/health") == (503, b'{"health":"false","reason":"ALARM NOSPACE"}\n')
    assert site.get("/health?exclude=nospace")[0] == 503
    assert site.get("/health?exclude=CORRUPT&exclude=NOSPACE&serializable=true")[0] == 200
    assert site.get("/health?exclude=CORRUPT&serializable=true")[0] == 503


def test_live_and_ready() -> None:
    site = Site()
    status, body, headers = site.ask("/readyz")
    assert (status, body, headers["content-type"]) == (200, b"ok\n", "text/plain; charset=utf-8")
    assert headers["x-content-type-options"] == "nosniff"
    assert site.get("/livez") == (200, b"ok\n")
    assert site.get("/livez?verbose") == (200, b"[+]serializable_read ok\nok\n")
    assert site.get("/readyz?verbose=0") == (
        200,
        b"[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n",
    )


def test_each_check_has_a_path_of_its_own() -> None:
    site = Site()
    for name in ("data_corruption", "serializable_read", "linearizable_read", "non_learner"):
        assert site.get(f"/readyz/{name}") == (200, b"ok\n")
        assert site.get(f"/readyz/{name}?verbose") == (200, f"[+]{name} ok\nok\n".encode())
    assert site.get("/livez/serializable_read") == (200, b"ok\n")
    for path in ("/livez/linearizable_read", "/readyz/nosuch", "/readyz/", "/health/", "/version/x", "/nosuch"):
        assert site.get(path) == (404, b"404 page not found\n")


def test_a_member_that_cannot_read_is_not_ready_but_lives() -> None:
    site = Site()
    site.server.stuck = errors.NoLeader()
    failed = b"[-]linearizable_read failed: etcdserver: no leader\n"
    assert site.get("/readyz") == (
        503,
        b"[+]data_corruption ok\n[+]serializable_read ok\n" + failed + b"[+]non_learner ok\n\n",
    )
    assert site.get("/readyz/linearizable_read") == (503, failed + b"\n")
    assert site.get("/livez") == (200, b"ok\n")
    assert site.get("/readyz?exclude=linearizable_read&exclude=nosuch") == (200, b"ok\n")
    assert site.get("/readyz?allowlist=non_learner&allowlist=data_corruption") == (200, b"ok\n")
    assert site.get("/readyz?allowlist=linearizable_read&exclude=linearizable_read&verbose") == (200, b"ok\n")
    assert site.checks.last["readyz", "linearizable_read"] is False
    assert site.checks.results["readyz", "linearizable_read", "error"] == 2


def test_corruption_and_learners_are_not_ready() -> None:
    site = Site()
    site.alarms += ["NOSPACE", "CORRUPT"]
    assert site.get("/readyz/data_corruption") == (503, b"[-]data_corruption failed: alarm activated: CORRUPT\n\n")
    site.alarms.remove("CORRUPT")
    assert site.get("/readyz")[0] == 200
    site.server.node.id = 3
    assert site.get("/readyz/non_learner") == (503, b"[-]non_learner failed: not supported for learner\n\n")


def test_version_has_etcds_keys() -> None:
    status, body, headers = Site().ask("/version")
    versions = json.loads(body)
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert list(versions) == ["etcdserver", "etcdcluster", "storage", "raftkv"]
    assert versions["etcdserver"].startswith("3.")


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz", "/readyz/non_learner", "/version"])
@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT"])
def test_other_methods_are_refused(path: str, method: str) -> None:
    status, body, headers = Site().ask(path, method)
    assert (status, body, headers["allow"]) == (405, b"Method Not Allowed\n", "GET")
    assert headers["x-content-type-options"] == "nosniff"


def test_metrics_take_any_method() -> None:
    status, body, headers = Site().ask("/metrics", "POST")
    assert (status, body) == (200, b"metrics\n")
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_browsers_may_ask_the_client_port() -> None:
    site = Site()
    for path in ("/v3/kv/range", "/nosuch"):
        status, body, headers = site.ask(path, "OPTIONS")
        assert (status, body) == (200, b"")
        assert headers["access-control-allow-origin"] == "*"
    assert site.ask("/health")[2]["access-control-allow-methods"] == "POST, GET, OPTIONS, PUT, DELETE"


def test_the_gateway_has_its_paths_and_those_of_its_beta() -> None:
    site = Site()
    assert site.get("/v3/kv/range") == (200, b"/v3/kv/range")
    assert site.get("/v3beta/kv/range") == (200, b"/v3/kv/range")
    assert site.get("/v3alpha/kv/range")[0] == 404


def test_the_metrics_port_serves_monitoring_and_nothing_else() -> None:
    site = Site(debug=True)
    for path, status in (("/metrics", 200), ("/health", 200), ("/livez", 200), ("/readyz", 200)):
        assert site.ask(path, front=site.monitoring)[0] == status
    for path in ("/version", "/v3/kv/range", "/debug/stacks"):
        assert site.ask(path, front=site.monitoring)[0] == 404
    assert "access-control-allow-origin" not in site.ask("/health", front=site.monitoring)[2]


def test_only_pages_of_allowed_origins_may_use_the_port() -> None:
    site = Site(origins=("http://a.example", "http://b.example"))
    for path in ("/health", "/v3/kv/range", "/nosuch"):
        for method in ("GET", "OPTIONS"):
            headers = site.ask(path, method, origin="http://b.example")[2]
            assert headers["access-control-allow-origin"] == "http://b.example"
            assert headers["access-control-allow-methods"] == "POST, GET, OPTIONS, PUT, DELETE"
            for origin in ("http://c.example", "http://b.example.org", "*", ""):
                assert not any(name.startswith("access") for name in site.ask(path, method, origin=origin)[2])
    assert site.ask("/nosuch", "OPTIONS", origin="http://c.example")[:2] == (200, b"")
    assert Site().ask("/health", origin="http://c.example")[2]["access-control-allow-origin"] == "*"


def test_stacks_show_places_and_no_values() -> None:
    assert Site().get("/debug/stacks")[0] == 404
    secret = "hunter2"
    status, body = Site(debug=True).get("/debug/stacks")
    assert status == 200
    assert b"in stacks" in body
    assert b"Stack for <Task" in body
    assert secret.encode() not in body


def test_the_gateway_refuses_whom_a_certificate_names_while_users_matter() -> None:
    """The name would not count there, so that one who trusts in it is told, on HTTP and on a WebSocket."""
    site, users = Site(), [True]
    front = Front({}, gateway=site._gateway, users_matter=lambda: users[0])

    def events(kind: str, user: str) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []

        async def send(event: Any) -> None:
            sent.append(event)

        async def receive() -> Any:
            return {"type": "websocket.connect" if kind == "websocket" else "http.request", "body": b""}

        scope = {"type": kind, "method": "POST", "path": "/v3/watch", "headers": [], CERTIFICATE_USER: user}
        asyncio.run(front(scope, receive, send))
        return sent

    def refused(kind: str, user: str) -> bool:
        sent = events(kind, user)
        return sent == [{"type": "websocket.close"}] if kind == "websocket" else sent[0]["status"] == 400

    for kind in ("http", "websocket"):
        assert refused(kind, "ann")
        assert not refused(kind, "")
    users[0] = False
    for kind in ("http", "websocket"):
        assert not refused(kind, "ann")
