"""The request of OpenAI's chat completions, with the fields that apply here.

Unknown fields are ignored, since clients add some every month. A field that would change the answer
and is not supported is refused by name.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from shared.base import checked
from shared.schemas.requests import Effort

MAX_MESSAGES = 1000
UNSUPPORTED = ("functions", "audio", "web_search_options", "prediction", "moderation")
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
JsonObject = dict[str, Any]


def as_text(content: Any) -> Any:
    """The text of a message, which may be a list of parts."""
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, dict) or part.get("type") not in TEXT_PARTS:
            raise ValueError("only parts of type text are supported")
        if not isinstance(part.get("text"), str):
            raise ValueError("a part of type text needs a text")
    return "".join(part["text"] for part in content)


TEXT_PARTS = ("text", "input_text", "output_text")
MIN_TOP_P = 1e-6
"""The engine takes no 0, which OpenAI's clients may send: the likeliest token alone, either way."""


class Lenient(BaseModel):
    """Unknown fields are ignored, and a null means that a field is absent: clients send back the
    messages that they got, with a null for all that these are not."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if value is not None}

    @field_validator("*", mode="after")
    @classmethod
    def _can_be_passed_on(cls, value: Any) -> Any:
        return checked(value, allows_nul=True)


class CalledFunction(Lenient):
    name: Name
    arguments: str


class ToolCall(Lenient):
    """A call that an earlier answer asked for."""

    id: str = Field(max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Lenient):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, BeforeValidator(as_text)] | None = None
    tool_calls: list[ToolCall] = Field(default_factory=list, max_length=128)
    tool_call_id: str | None = Field(default=None, max_length=256)

    @model_validator(mode="after")
    def _has_content(self) -> "Message":
        if self.content is None and self.role != "assistant":
            raise ValueError("content: is required")
        return self

    def for_template(self) -> JsonObject:
        """As a template knows it: `developer` is today's name of `system`."""
        role = "system" if self.role == "developer" else self.role
        message: JsonObject = {"role": role, "content": self.content or ""}
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        if self.tool_call_id:
            message["tool_call_id"] = self.tool_call_id
        return message


class Function(Lenient):
    name: Name
    description: str = Field(default="", max_length=20_000)
    parameters: JsonObject = Field(default_factory=lambda: {"type": "object", "properties": {}})


class Tool(Lenient):
    type: Literal["function"]
    function: Function


class NamedFunction(Lenient):
    name: Name


class NamedTool(Lenient):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Lenient):
    name: Name
    schema_: JsonObject = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Lenient):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> "ResponseFormat":
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema: is required with this type")
        return self


class StreamOptions(Lenient):
    include_usage: bool = False


class ChatRequest(Lenient):
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
    """Name of a served model: `name@v1`, or `name` for the version promoted last."""
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    """The conversation so far. The model thinks about the newest message of the user."""
    max_completion_tokens: int | None = Field(default=None, ge=1, le=10**6)
    """Maximum tokens of the thought and the answer together."""
    max_tokens: int | None = Field(default=None, ge=1, le=10**6)
    """Older name of `max_completion_tokens`, which takes precedence."""
    max_thought_tokens: int | None = Field(default=None, ge=0, le=10**6)
    """Budget of the thought in tokens, in place of `reasoning_effort`. OpenAI has no such field."""
    reasoning_effort: Effort | None = None
    """Budget of the thought as a share of the one in training; `none` answers at once."""
    n: int = Field(default=1, ge=1, le=8)
    """Number of answers, each with a thought of its own."""
    stop: list[Annotated[str, Field(min_length=1, max_length=200)]] | str | None = None
    """Up to four texts that end the answer. They are not looked for in the thought."""
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    """Seed of the thought and the answer: the same seed repeats both, as far as the engine can."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: Annotated[float, AfterValidator(lambda p: max(p, MIN_TOP_P))] = Field(
        default=1.0, ge=0, le=1
    )
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    logit_bias: (
        dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Annotated[float, Field(ge=-100, le=100)]]
        | None
    ) = Field(default=None, max_length=300)
    """Biases by token id. They apply to the answer only."""
    logprobs: bool = False
    """Return the log-probability of each token of the answer."""
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    """Number of likeliest tokens to return beside each token; needs `logprobs`."""
    response_format: ResponseFormat = Field(default_factory=ResponseFormat)
    tools: list[Tool] = Field(default_factory=list, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True
    stream: bool = False
    stream_options: StreamOptions = Field(default_factory=StreamOptions)

    @model_validator(mode="before")
    @classmethod
    def _unsupported(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for field in UNSUPPORTED:
                if data.get(field):
                    raise ValueError(f"{field}: is not supported")
        return data

    @model_validator(mode="after")
    def _usable(self) -> "ChatRequest":
        if all(message.role in ("assistant", "tool") for message in self.messages):
            raise ValueError("messages: one must be from the user or the system")
        if len(self.stops) > 4:
            raise ValueError("stop: takes at most 4 strings")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: needs logprobs")
        self._check_tools()
        return self

    def _check_tools(self) -> None:
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise ValueError("tools: two functions have the same name")
        if isinstance(self.tool_choice, NamedTool):
            if self.tool_choice.function.name not in names:
                raise ValueError("tool_choice: names a function that is not among the tools")
        elif self.tool_choice == "required" and not names:
            raise ValueError("tool_choice: needs tools")
        if self.callable_tools and self.response_format.type != "text":
            raise ValueError("response_format: cannot be combined with tools")

    @property
    def callable_tools(self) -> list[Tool]:
        """Those that this answer may call."""
        if isinstance(self.tool_choice, NamedTool):
            named = self.tool_choice.function.name
            return [tool for tool in self.tools if tool.function.name == named]
        return [] if self.tool_choice == "none" else self.tools

    @property
    def must_call(self) -> bool:
        return self.tool_choice not in ("none", "auto")

    @property
    def stops(self) -> list[str]:
        if isinstance(self.stop, str):
            return [self.stop] if self.stop else []
        return self.stop or []

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens
