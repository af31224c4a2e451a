"""Checks that the operator allows a judge's address, and the key sent there, or its own code.

A request that could name any address would have a worker call what only it can reach, one that
could name any key would have it sent anywhere, and one that could name any code would run it.
"""

from shared.base import normalized_url
from shared.errors import InvalidRequest
from shared.schemas.judges import AnySpec, MixtureSpec, OpenAISpec, RewardModelSpec
from shared.settings import get_settings


def check(spec: AnySpec, param: str) -> None:
    """Raises `InvalidRequest` where a judge, or one in a mixture, takes what is not allowed.

    `param` is the field that holds the judge.
    """
    match spec:
        case OpenAISpec():
            key_variable(spec.base_url, f"{param}.base_url")
        case RewardModelSpec():
            check_code(spec, param)
        case MixtureSpec():
            for at, weighted in enumerate(spec.judges):
                check(weighted.judge, f"{param}.judges.{at}.judge")


def key_variable(base_url: str, param: str = "judge.base_url") -> str | None:
    """The environment variable of a worker that holds the address's key; None where it has none.

    Raises `InvalidRequest` for an address that is not allowed.
    """
    allowed = _addresses()
    if base_url not in allowed:
        known = ", ".join(allowed) or "none"
        message = (
            f"{param}: {base_url} is not among the addresses that "
            f"FORETHOUGHT_JUDGE_ADDRESSES allows ({known})"
        )
        raise InvalidRequest(message, param=param, code="address_not_allowed")
    return allowed[base_url] or None


def check_code(spec: RewardModelSpec, param: str = "judge") -> None:
    """Raises `InvalidRequest` where it wants its own code run and the operator does not."""
    if not spec.trust_remote_code:
        return
    allowed = get_settings().remote_code.split()
    if {spec.model, f"{spec.model}@{spec.revision}"}.isdisjoint(allowed):
        known = ", ".join(allowed) or "none"
        field = f"{param}.trust_remote_code"
        message = (
            f"{field}: {spec.model} at {spec.revision or 'its newest commit'} is not among the "
            f"models whose code FORETHOUGHT_REMOTE_CODE allows ({known})"
        )
        raise InvalidRequest(message, param=field, code="code_not_allowed")


def _addresses() -> dict[str, str]:
    entries = (entry.partition("=") for entry in get_settings().judge_addresses.split())
    return {normalized_url(url): variable for url, _, variable in entries}
