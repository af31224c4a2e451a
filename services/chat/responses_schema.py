"""The request of OpenAI's Responses, as far as it is stateless text."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from services.chat.schema import (
    MAX_MESSAGES,
    ChatRequest,
    JsonObject,
    Lenient,
    Message,
    Name,
    ResponseFormat,
    as_text,
)
from shared.errors import InvalidRequest
from shared.schemas.requests import Effort

UNSUPPORTED = (
    *("tools", "top_logprobs", "previous_response_id", "conversation", "background", "prompt"),
    "moderation",
)
OF_CHAT = (
    *("messages", "max_tokens", "max_completion_tokens", "max_thought_tokens", "reasoning_effort"),
    *("n", "stop", "seed", "frequency_penalty", "presence_penalty", "logit_bias", "logprobs"),
    "response_format",
)
"""Fields of chat completions that responses take by another name, or not at all."""
RENAMED = {"messages": "input", "response_format": "text.format"}
"""Fields of chat completions that are refused once a turn has begun."""


class InputMessage(Lenient):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(as_text)]


class ReasoningItem(Lenient):
    """The thought of an earlier answer. It is ignored: thoughts are never fed back."""

    type: Literal["reasoning"]


class Reasoning(Lenient):
    effort: Effort | None = None


class TextFormat(Lenient):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Name = "answer"
    schema_: JsonObject | None = Field(default=None, alias="schema")


class TextOptions(Lenient):
    format: TextFormat = Field(default_factory=TextFormat)


class ResponsesRequest(Lenient):
    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={"example": {"model": "demo", "input": "What is 17 + 25?"}},
    )

    model: str = Field(max_length=256)
    input: (
        str
        | Annotated[
            list[InputMessage | ReasoningItem], Field(min_length=1, max_length=MAX_MESSAGES)
        ]
    )
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1, le=10**6)
    """Maximum tokens of the thought and the answer together."""
    reasoning: Reasoning = Field(default_factory=Reasoning)
    text: TextOptions = Field(default_factory=TextOptions)
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    tool_choice: Literal["none", "auto"] = "auto"
    include: list[str] = Field(default_factory=list, max_length=100)
    """Ignored, except that log-probabilities are refused: nothing else could be included."""
    metadata: dict[str, str] = Field(default_factory=dict, max_length=16)
    stream: bool = False

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        of_chat = ChatRequest.model_fields
        asked = [name for name in UNSUPPORTED if data.get(name)]
        asked += [n for n in OF_CHAT if data.get(n) not in (None, of_chat[n].default)]
        if asked:
            hint = "; use chat completions" if asked[0] in of_chat else ""
            raise ValueError(f"{asked[0]}: is not supported{hint}")
        return data

    @model_validator(mode="after")
    def _usable(self) -> "ResponsesRequest":
        if not self.messages or self.messages[-1].role != "user":
            raise ValueError("input: the last message must be from the user")
        if len(self.messages) + bool(self.instructions) > MAX_MESSAGES:
            raise ValueError(f"input: holds more than {MAX_MESSAGES} messages with instructions")
        if self.text.format.type == "json_schema" and self.text.format.schema_ is None:
            raise ValueError("text.format.schema: is required with this type")
        if "message.output_text.logprobs" in self.include:
            raise ValueError("include: logprobs are not supported; use chat completions")
        return self

    @property
    def messages(self) -> list[Message]:
        if isinstance(self.input, str):
            return [Message(role="user", content=self.input)]
        said = (item for item in self.input if isinstance(item, InputMessage))
        return [Message(role=item.role, content=item.content) for item in said]

    def as_chat(self) -> ChatRequest:
        system = [Message(role="system", content=self.instructions)] if self.instructions else []
        messages = [*system, *self.messages]
        wanted = self.text.format
        schema = None
        if wanted.schema_ is not None:
            schema = {"name": wanted.name, "schema": wanted.schema_}
        return ChatRequest(
            model=self.model,
            messages=messages,
            max_completion_tokens=self.max_output_tokens,
            reasoning_effort=self.reasoning.effort,
            response_format=ResponseFormat.model_validate(
                {"type": wanted.type, "json_schema": schema}
            ),
            temperature=self.temperature,
            top_p=self.top_p,
            stream=self.stream,
        )


def in_its_names(error: InvalidRequest) -> InvalidRequest:
    """Turn an error about a field of `as_chat` into one about the field that the caller sent."""
    name = error.param
    if name not in RENAMED:
        return error
    message = RENAMED[name] + error.message.removeprefix(name)
    return InvalidRequest(message, param=RENAMED[name], code=error.code)
