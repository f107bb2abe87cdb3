"""Requests that a browser sends for pages of other sites, and for names that do not belong to the server."""

import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from fake_engine import FakeEngine
from fake_server import client_of
from roost.server.app import create_app
from roost.server.generation.service import Service
from roost.server.http.auth import Access, ApiKeys
from roost.server.http.origins import LOCAL_APPS, AllowedHosts, AllowedOrigins, BrowserPolicy, browser_policy
from roost.server.settings import load_settings
from starlette.routing import Route
from starlette.types import ASGIApp, Message

OWN = "http://localhost:8000"
CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}

FROM_OTHER_PAGES = {
    "another site": {"sec-fetch-site": "cross-site"},
    "another port": {"sec-fetch-site": "same-site", "origin": "http://localhost:3000"},
    "a sandboxed frame": {"origin": "null"},
    "another origin": {"origin": "https://evil.example"},
}
"""Headers by which a browser tells of other pages; the first kind is of a form without `origin`."""


@pytest.fixture
def local_app(service: Service) -> ASGIApp:
    """The application with all routes, as a server on a loopback address has it."""
    policy = browser_policy(load_settings({}), on_loopback=True)
    return create_app(service, Access(ApiKeys(), ApiKeys(["admin"]), browsers=policy))


async def ask(app: ASGIApp, method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes, dict[str, Any]]:
    """Sends a request whose body must not be read; returns the status, the body, and the request's scope."""
    raw = [(name.encode(), value.encode()) for name, value in {"host": "localhost:8000", **headers}.items()]
    scope = {"type": "http", "http_version": "1.1", "method": method, "scheme": "http", "path": path, "headers": raw}
    scope |= {"raw_path": path.encode(), "query_string": b"", "root_path": "", "client": None, "server": None}
    sent = list[Message]()

    async def receive() -> Message:
        raise AssertionError("the body was read")

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], sent[1]["body"], scope


def requests_to_all_routes(app: Any) -> Iterator[tuple[str, str]]:
    """Yields method and path of each route of the application."""
    routes: Sequence[Route] = next(layer.kwargs["routes"] for layer in app.user_middleware if "routes" in layer.kwargs)
    for route in routes:
        path = re.sub(r"{[^}]*}", "x", route.path)
        yield from ((method, path) for method in sorted(route.methods or ()))


async def refused(app: ASGIApp, method: str, path: str, headers: dict[str, str]) -> bool:
    status, body, scope = await ask(app, method, path, headers)
    return (
        status == 403 and b"start it with --allow-" in body and not {"endpoint", "route", "path_params"} & scope.keys()
    )


async def status_with(service: Service, headers: dict[str, str]) -> int:
    """Returns the status of a chat with some headers, on a server that allows a page and all extensions."""
    origins = AllowedOrigins(["https://good.example/", "chrome-extension://*"])
    async with client_of(create_app(service, Access(browsers=BrowserPolicy(origins)))) as client:
        response = await client.post(CHAT, json=BODY, headers={"host": "localhost:8000", **headers})
        return response.status_code


async def test_no_route_can_be_changed_from_another_page_or_read_under_another_name(
    local_app: ASGIApp, service: Service, engine: FakeEngine
) -> None:
    """No handler runs, and nothing is read, charged or stored. A new route is covered without being named here."""
    requests = [*requests_to_all_routes(local_app), ("HEAD", "/health_generate")]
    assert len(requests) > 60
    for method, path in requests:
        assert await refused(local_app, method, path, {"host": "evil.example"}), (method, path)
        if method in ("GET", "HEAD") and path != "/health_generate":
            continue
        for headers in FROM_OTHER_PAGES.values():
            assert await refused(local_app, method, path, headers), (method, path, headers)
    assert not engine.requests
    assert not service.states.of("")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "same-origin", "origin": OWN},
        {"sec-fetch-site": "none"},
        {"origin": OWN},
        {"origin": "http://example.org:80", "host": "example.org"},
        {"origin": "https://example.org", "host": "example.org:443"},
        {"origin": "http://[::1]:8000", "host": "[::1]:8000"},
        {"sec-fetch-site": "cross-site", "origin": "https://good.example"},
        {"sec-fetch-site": "cross-site", "origin": "chrome-extension://abcdef"},
    ],
    ids=str,
)
async def test_own_pages_allowed_pages_and_other_clients_pass(service: Service, headers: dict[str, str]) -> None:
    assert await status_with(service, headers) == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://localhost:8001"},
        {"origin": "http://example.org:8000", "host": "example.org"},
        {"origin": "https://good.example.evil.example"},
        {"origin": "chrome-extensions://abcdef"},
        {"sec-fetch-site": "same-site", "origin": "https://other.good.example"},
        {"sec-fetch-site": "something-new"},
        {"origin": "http://localhost:8000", "x-forwarded-host": "evil.example", "host": "evil.example"},
    ],
    ids=str,
)
async def test_pages_that_only_look_like_allowed_ones_are_refused(service: Service, headers: dict[str, str]) -> None:
    assert await status_with(service, headers) == 403


async def test_any_origin_includes_that_of_sandboxed_frames(service: Service) -> None:
    async with client_of(create_app(service, Access(browsers=BrowserPolicy(AllowedOrigins("*"))))) as client:
        for origin in ("null", "https://evil.example"):
            headers = {"origin": origin, "sec-fetch-site": "cross-site"}
            response = await client.post(CHAT, json=BODY, headers=headers)
            assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, "*")


@pytest.mark.parametrize("origin", [app.replace("*", "x") for app in LOCAL_APPS])
async def test_apps_on_this_machine_may_use_a_server_on_a_loopback_address(service: Service, origin: str) -> None:
    for on_loopback in (True, False):
        policy = browser_policy(load_settings({}), on_loopback=on_loopback)
        async with client_of(create_app(service, Access(browsers=policy)), OWN) as client:
            preflight = {"origin": origin, "access-control-request-method": "POST"}
            answers = [
                await client.options(CHAT, headers=preflight),
                await client.post(CHAT, json=BODY, headers={"origin": origin, "sec-fetch-site": "cross-site"}),
            ]
            allowed = [answer.headers.get("access-control-allow-origin") == origin for answer in answers]
            assert allowed == [on_loopback] * 2
            assert answers[1].status_code == (200 if on_loopback else 403)


async def test_the_refusal_and_one_line_a_minute_name_the_flag(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    policy = browser_policy(load_settings({}), on_loopback=True)
    async with client_of(create_app(service, Access(browsers=policy)), OWN) as client:
        with caplog.at_level(logging.WARNING, "roost.server.http.origins"):
            requests: Sequence[dict[bytes, bytes]] = (
                {b"origin": b"http://a.example:3000"},
                {b"origin": b"http://a.example:3000"},
                {b"origin": b"http://a.example\x85forged"},
                {b"host": b"Chat.Example.org:8000"},
            )
            messages = [
                (await client.post(CHAT, json=BODY, headers=headers)).json()["error"]["message"] for headers in requests
            ]
    assert messages[0] == messages[1]
    assert "start it with --allow-origin http://a.example:3000" in messages[0]
    assert messages[2].isprintable()
    assert messages[3].endswith("start it with --allow-host chat.example.org")
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition("--")[2].partition(" ")[2].partition(" ")[0] for line in lines] == [
        "http://a.example:3000",
        "http://a.example?forged",
        "chat.example.org",
    ]


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost:8000", "LOCALHOST.", "x.localhost:1", "10.0.0.5:80", "[::1]:8000", "::1"),
        *("host.docker.internal:8000", "my-name:8000", "page.example", "given.example.:80"),
    ],
)
def test_a_local_server_knows_its_names(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "my-name")
    settings = load_settings({"allow_origin": ["https://page.example:3000"], "allow_host": ["Given.Example"]})
    hosts = browser_policy(settings, on_loopback=True).hosts
    assert hosts is not None
    assert host in hosts


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "127.0.0.1.evil.example", "x" * 70_000])
def test_a_local_server_refuses_other_names_unless_all_are_allowed(host: str) -> None:
    assert host not in AllowedHosts(["localhost"])
    assert len(host) > 1000 or host in AllowedHosts(["*"])


async def test_a_server_for_other_machines_answers_under_any_name(service: Service) -> None:
    policy = browser_policy(load_settings({}), on_loopback=False)
    async with client_of(create_app(service, Access(browsers=policy)), "http://anything.example") as client:
        assert (await client.post(CHAT, json=BODY)).status_code == 200
