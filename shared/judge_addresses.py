"""Which addresses a judge of the kind `openai` may be at, and which key goes there.

Both are the operator's to say: a request that could name any address would have a worker call
what only it can reach, and one that could name any key would have it sent anywhere.
"""

from shared.errors import InvalidRequest
from shared.judge_specs import AnySpec, MixtureSpec, OpenAISpec
from shared.settings import get_settings


def key_variable(base_url: str) -> str | None:
    """The environment variable of a worker that holds the address's key; None where it has none.

    Raises `InvalidRequest` for an address that is not allowed.
    """
    allowed = _allowed()
    if base_url not in allowed:
        known = ", ".join(allowed) or "none"
        message = (
            f"judge.base_url: {base_url} is not among the addresses that "
            f"FORETHOUGHT_JUDGE_ADDRESSES allows ({known})"
        )
        raise InvalidRequest(message, param="judge.base_url", code="address_not_allowed")
    return allowed[base_url] or None


def check(spec: AnySpec) -> None:
    """Raises `InvalidRequest` where a judge, or one in a mixture, is at no allowed address."""
    match spec:
        case OpenAISpec():
            key_variable(spec.base_url)
        case MixtureSpec():
            for weighted in spec.judges:
                check(weighted.judge)


def _allowed() -> dict[str, str]:
    entries = (entry.partition("=") for entry in get_settings().judge_addresses.split())
    return {url.rstrip("/"): variable for url, _, variable in entries}
