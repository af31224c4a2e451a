"""The conversation that a request puts to the model, rendered by the engine."""

from dataclasses import dataclass

from services.chat.schema import ChatRequest, JsonObject
from services.chat.serving import Served
from shared.errors import InvalidRequest, PlatformError, Unavailable
from shared.vllm.answers import EngineAway, EngineFailed, EngineRefused


@dataclass(frozen=True)
class Conversation:
    """The messages of a request, for the model that answers it."""

    served: Served
    longest: int
    """The model's context in tokens."""
    messages: list[JsonObject]
    tools: list[JsonObject]

    @classmethod
    async def of(cls, request: ChatRequest, served: Served) -> "Conversation":
        """The thought prompt goes around the newest question only, or around what the system asks
        where no user does. Earlier answers stand there without the thoughts that led to them."""
        messages = [message.for_template() for message in request.messages]
        by_role = {message["role"]: message for message in messages}  # the newest of each
        question = by_role.get("user") or by_role["system"]
        question["content"] = served.model.format.prompt(question["content"])
        try:
            async with served.phase():
                longest = await served.engine.max_model_len()
        except EngineFailed as error:
            raise without_detail(error) from None
        shown = [] if request.tool_choice == "none" else request.tools
        return cls(served, longest, messages, [tool.model_dump() for tool in shown])

    async def render(self) -> list[int]:
        """Raises `InvalidRequest`: too long, or not what the model's template can render."""
        try:
            async with self.served.phase():
                if self.tools:
                    await self.served.check_takes_tools()
                prompt_ids = await self.served.engine.render(self.messages, self.tools)
        except EngineFailed as error:
            # vLLM names the field that it refuses, but none when a template raises an error.
            if not isinstance(error, EngineRefused) or error.field:
                raise without_detail(error) from None
            raise InvalidRequest(
                "messages: the model's chat template refuses this order of roles", param="messages"
            ) from None
        if len(prompt_ids) >= self.longest:
            raise InvalidRequest(
                f"messages: {len(prompt_ids)} tokens with the thought prompt, and the model's "
                f"context is {self.longest} tokens",
                param="messages",
                code="context_length_exceeded",
            )
        return prompt_ids


def without_detail(error: EngineFailed) -> PlatformError:
    """The engine's own words may hold what a model wrote."""
    if isinstance(error, EngineAway):
        return Unavailable("the model is not ready; retry shortly", retry_after=5)
    # Most often it is about to end, with all that it has under way.
    return Unavailable("the model failed to answer; retry", code="engine_failed", retry_after=5)
