"""Private parts of libraries that we use: these tests fail where an upgrade changes one."""

import inspect

import pytest
from starlette.routing import Match, Route
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from shared.web.guard import route_path


@pytest.mark.parametrize(
    ("path", "root", "expected"),
    [
        ("/keys", "", "/keys"),
        ("/api/keys", "/api", "/keys"),
        ("/apikeys", "/api", "/apikeys"),
        ("/keys", "/api", "/keys"),
    ],
)
def test_the_guard_sees_the_path_that_starlette_routes_by(
    path: str, root: str, expected: str
) -> None:
    scope = {"type": "http", "method": "GET", "path": path, "root_path": root}
    assert route_path(scope) == expected
    route = Route(expected, lambda _: None)
    assert route.matches(scope)[0] is Match.FULL, f"Starlette does not route {path} as {expected}"


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("connection_made", ["transport"]),
        ("connection_lost", ["exc"]),
        ("data_received", ["data"]),
        ("on_message_begin", []),
        ("on_header", ["name", "value"]),
        ("on_headers_complete", []),
        ("on_body", ["body"]),
        ("on_message_complete", []),
    ],
)
def test_uvicorn_calls_the_methods_that_our_protocol_overrides(
    method: str, parameters: list[str]
) -> None:
    function = getattr(HttpToolsProtocol, method, None)
    assert function is not None, f"uvicorn's HttpToolsProtocol has no {method} any more"
    assert list(inspect.signature(function).parameters)[1:] == parameters
    source = inspect.getsource(HttpToolsProtocol.__init__)
    for attribute in ("self.loop", "self.cycle", "self.transport"):
        assert attribute in source, f"uvicorn's HttpToolsProtocol has no {attribute} any more"
