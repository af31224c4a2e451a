"""What chat takes: OpenAI's chat-completions request, its fields that apply here.

Unknown fields are ignored, since clients add some every month; those that would change the answer
and are not supported are refused by name.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
EFFORT_SHARE: dict[Effort, float] = {
    "none": 0, "minimal": 0.125, "low": 0.25, "medium": 1, "high": 2, "xhigh": 4, "max": 4,
}  # fmt: skip
"""Thought budget as a share of the one that the model was trained with."""
UNSUPPORTED = ("tools", "functions", "logprobs", "top_logprobs", "logit_bias", "audio")


def _as_text(content: Any) -> Any:
    """The text of a message, which may be a list of parts."""
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise ValueError("only parts of type text are supported")
        if not isinstance(part.get("text"), str):
            raise ValueError("a part of type text needs a text")
    return "".join(part["text"] for part in content)


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_as_text)]

    def as_system(self) -> dict[str, str]:
        """As a template knows it: `developer` is today's name of `system`."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": self.content}


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "example": {
                "model": "demo",
                "messages": [{"role": "user", "content": "What is 17 + 25?"}],
            }
        },
    )

    model: str = Field(max_length=256)
    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=10**6)
    """Most tokens of thought and answer together."""
    max_tokens: int | None = Field(default=None, ge=1, le=10**6)
    n: int = Field(default=1, ge=1, le=8)
    stop: list[Annotated[str, Field(min_length=1, max_length=200)]] | str | None = None
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    reasoning_effort: Effort | None = None
    response_format: dict[str, Any] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _unsupported(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for field in UNSUPPORTED:
                if data.get(field):
                    raise ValueError(f"{field}: is not supported yet")
            # A null means that the field is absent.
            return {key: value for key, value in data.items() if value is not None}
        return data

    @model_validator(mode="after")
    def _usable(self) -> "ChatRequest":
        if self.messages[-1].role != "user":
            raise ValueError("messages: the last one must be from the user")
        if (self.response_format or {"type": "text"}).get("type") != "text":
            raise ValueError("response_format: only text is supported yet")
        if len(self.stops) > 4:
            raise ValueError("stop: takes at most 4 strings")
        return self

    @property
    def stops(self) -> list[str]:
        if isinstance(self.stop, str):
            return [self.stop] if self.stop else []
        return self.stop or []

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens
