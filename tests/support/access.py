"""Keys for tests. The service key needs no row, and may do all but show thoughts."""

from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient

from shared.auth.keys import EVERY_SCOPE, digest, new_key
from shared.db.engine import transaction
from shared.db.tables import ApiKey, Scope

SERVICE_KEY = "the-service-key-of-all-tests-together"


def bearer(key: str | None) -> dict[str, str]:
    """The headers that carry a key, if there is one."""
    return {"Authorization": f"Bearer {key}"} if key else {}


HEADERS = bearer(SERVICE_KEY)


def client(app: FastAPI, key: str = SERVICE_KEY) -> TestClient:
    """Errors that the application does not handle are answers, as over the network."""
    return TestClient(app, raise_server_exceptions=False, headers=bearer(key))


def made_key(*scopes: Scope, **given: Any) -> str:
    """A key with a row of its own; every scope where none is named."""
    key = new_key()
    row = {"name": "test", "prefix": key[:12], "sha256": digest(key.encode())}
    with transaction() as session:
        session.add(ApiKey(**row, scopes=[*(scopes or EVERY_SCOPE)], **given))
    return key
