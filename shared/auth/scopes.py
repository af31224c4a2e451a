"""Scope that each route needs. A route that is not listed here is closed to every key."""

from collections.abc import Iterator

from starlette.routing import compile_path

from shared.db.tables import Scope

OPEN = frozenset(
    {
        *("/healthz", "/readyz", "/metrics"),
        *("/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"),
    }
)
"""Paths that ask for no key."""

ROUTES = {
    Scope.chat: """
        GET  /v1/models
        GET  /v1/models/{name}
        POST /v1/chat/completions
        POST /v1/responses
    """,
    Scope.iterate: """
        POST /iterations
        GET  /iterations
        GET  /iterations/{iteration_id}
        POST /iterations/{iteration_id}/cancel
        POST /iterations/{iteration_id}/resume
        GET  /iterations/{iteration_id}/answers
        GET  /iterations/{iteration_id}/completions
        GET  /iterations/{iteration_id}/events
        GET  /iterations/{iteration_id}/manifest
        GET  /iterations/{iteration_id}/pairs
        GET  /iterations/{iteration_id}/report
        GET  /iterations/{iteration_id}/report.html
        GET  /runs/{run_id}/report
        GET  /runs/{run_id}/report.html
        POST /datasets
        GET  /datasets
        POST /datasets/upload
        GET  /datasets/{name}
        POST /models
        GET  /models
        GET  /models/{reference}
        POST /models/{reference}/promote
        PUT  /models/{model_id}/release
        POST /prune
        PUT  /prune/{job_id}
        POST /generate
        POST /judge
        POST /train
        GET  /jobs
        PUT  /jobs/{job_id}
        GET  /jobs/{job_id}
        POST /jobs/{job_id}/cancel
        POST /jobs/{job_id}/resume
        GET  /jobs/{job_id}/completions
        GET  /jobs/{job_id}/judgments
    """,
    Scope.admin: """
        POST /keys
        GET  /keys
        POST /keys/{key_id}/revoke
        GET  /audit
    """,
}
"""Routes of all services by scope. `thoughts` opens no route: it adds thoughts to the answers of
`iterate`."""


def _listed() -> Iterator[tuple[tuple[str, str], Scope]]:
    for scope, lines in ROUTES.items():
        words = iter(lines.split())
        for method, path in zip(words, words, strict=True):
            yield (method, path), scope


LISTED = dict(_listed())
_TEMPLATES = [
    (method, compile_path(path)[0], scope)
    for (method, path), scope in LISTED.items()
    if "{" in path
]


def scope_of(method: str, path: str) -> Scope | None:
    """Return the scope that a request needs; None where no listed route takes it."""
    exact = LISTED.get((method, path))
    if exact is not None:
        return exact
    matching = (s for m, regex, s in _TEMPLATES if m == method and regex.match(path))
    return next(matching, None)
