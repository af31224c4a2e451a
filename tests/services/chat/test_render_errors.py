"""What the engine answers instead of a rendered conversation, and whose fault that is."""

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from tests.services.chat.served import post, script
from tests.support.scripted_engine import ScriptedEngine


def error(param: str | None) -> dict[str, object]:
    return {"error": {"message": "secret", "type": "BadRequestError", "param": param}}


@pytest.mark.parametrize(
    ("answer", "status", "param"),
    [
        (JSONResponse(error(None), 400), 400, "messages"),
        (JSONResponse({"detail": "Not Found"}, 404), 503, None),
        (JSONResponse(error(None), 404), 503, None),
        (JSONResponse(error("body.model"), 400), 503, None),
        (PlainTextResponse("a proxy's own: secret", 400), 503, None),
        (PlainTextResponse("a proxy's own: secret", 401), 503, None),
    ],
    ids=["a template", "a wrong address", "a wrong model", "a field of ours", "a proxy", "a key"],
)
def test_only_a_template_that_refuses_is_the_fault_of_the_messages(
    served: str,
    scripted: ScriptedEngine,
    monkeypatch: pytest.MonkeyPatch,
    answer: Response,
    status: int,
    param: str | None,
) -> None:
    scripted.script = script("Forty two.")
    monkeypatch.setattr(scripted, "render_answer", answer)
    refused = post(served)
    assert (refused.status_code, refused.json()["error"]["param"]) == (status, param)
    assert "secret" not in refused.text
