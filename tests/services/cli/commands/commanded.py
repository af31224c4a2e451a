"""The command line, pointed at a coordinator in this process."""

import httpx2
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from services.cli.api.client import Client
from services.cli.main import app
from services.coordinator.app import app as coordinator
from tests.support import access


def client() -> Client:
    """With the service key, which may do what an admin may."""
    there = TestClient(coordinator)

    def answer(request: httpx2.Request) -> httpx2.Response:
        path, headers = request.url.raw_path.decode(), dict(request.headers)
        found = there.request(request.method, path, content=request.read(), headers=headers)
        return httpx2.Response(found.status_code, content=found.content, request=request)

    return Client("http://test", access.SERVICE_KEY, httpx2.MockTransport(answer))


def run(*arguments: str, code: int = 0) -> str:
    """What a command prints; all of it where it fails."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.output if code else result.stdout
