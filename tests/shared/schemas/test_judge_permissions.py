"""What of a judge a request may not choose, and which field says so."""

from typing import Any

import pytest

from shared.errors import InvalidRequest
from shared.schemas.judge_permissions import check
from shared.schemas.judges import judge_spec
from shared.settings import Settings

METADATA = "http://169.254.169.254/latest/meta-data"
ELSEWHERE = {"kind": "openai", "model": "m", "pointwise": {}, "base_url": METADATA}
ALLOWED = ELSEWHERE | {"base_url": "http://judge:8000/v1/"}
CODE = {"kind": "reward_model", "model": "some/model", "trust_remote_code": True}


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        judge_addresses="http://judge:8000/v1=KEY http://Other:80/v1/=",
        remote_code="some/pinned@abc some/other",
    )
    monkeypatch.setattr("shared.schemas.judge_permissions.get_settings", lambda: settings)


def mixture(*judges: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "mixture", "judges": [{"judge": judge} for judge in judges]}


@pytest.mark.parametrize(
    ("judge", "field"),
    [
        (ELSEWHERE, "base_url"),
        (ELSEWHERE | {"base_url": "http://judge:8000/v1/../admin"}, "base_url"),
        (ELSEWHERE | {"base_url": "http://judge:8000@evil/v1"}, "base_url"),
        (mixture(ALLOWED, ELSEWHERE), "judges.1.judge.base_url"),
        (CODE, "trust_remote_code"),
        (CODE | {"model": "some/pinned"}, "trust_remote_code"),
        (CODE | {"model": "some/pinned", "revision": "abd"}, "trust_remote_code"),
        (mixture({"kind": "verifier"}, CODE), "judges.1.judge.trust_remote_code"),
    ],
)
@pytest.mark.parametrize("where", ["judge", "validation.judge"])
def test_what_the_operator_does_not_allow_is_refused_by_its_field(
    judge: dict[str, Any], field: str, where: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check(judge_spec(judge), where)
    assert refused.value.param == f"{where}.{field}"
    assert refused.value.message.startswith(f"{where}.{field}: ")


@pytest.mark.parametrize(
    "judge",
    [
        ALLOWED,
        ALLOWED | {"base_url": "http://other/v1"},
        mixture(ALLOWED, {"kind": "verifier"}),
        CODE | {"trust_remote_code": False},
        CODE | {"model": "some/pinned", "revision": "abc"},
        CODE | {"model": "some/other", "revision": "any"},
    ],
)
def test_what_the_operator_allows_passes(judge: dict[str, Any]) -> None:
    check(judge_spec(judge), "judge")
