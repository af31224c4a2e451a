"""Check that a job's prompts and budgets fit the model's context, before anything is sampled."""

import asyncio
import uuid

from shared.db.engine import retry_while_db_down, transaction
from shared.thinking.formats import ThoughtFormat
from shared.thinking.sampling import Sampling
from shared.vllm.client import EngineClient
from workers.generate.prompts import ShardPrompt, longer_prompts, place_of
from workers.leases import StageError

CODE = "context_length_exceeded"


class Room:
    """Raises `StageError` for what does not fit. All lengths are in tokens of the model."""

    def __init__(self, client: EngineClient, fmt: ThoughtFormat, sampling: Sampling) -> None:
        self._client = client
        self._format = fmt
        self._thought = sampling.max_thought_tokens if fmt.thinks else 0
        self._response = sampling.max_response_tokens
        self._output = self._thought + self._response

    async def check(self, job_id: uuid.UUID) -> None:
        """The budgets, and all prompts of the job and of its iteration: one that is too long would
        fail it after hours, when its turn comes. A token is a byte or more, so the engine counts
        few of them."""
        longest = await self._client.max_model_len()
        if self._output >= longest:
            more = "max_thought_tokens" if self._thought > self._response else "max_response_tokens"
            raise StageError(
                f"up to {self._thought} tokens of thought and {self._response} of response leave "
                f"no room for a prompt in the model's context of {longest}",
                code=CODE,
                param=f"sampling.{more}",
            )
        left = longest - self._output - len(await self._render("x"))
        for prompt in await asyncio.to_thread(_longer_prompts, job_id, left):
            await self.rendered(prompt)

    async def rendered(self, prompt: ShardPrompt) -> list[int]:
        """Ids of the prompt in the model's template, with the thought prompt."""
        ids, longest = await self._render(prompt.text), await self._client.max_model_len()
        if len(ids) + self._output > longest:
            place, field = await asyncio.to_thread(_place_of, prompt)
            raise StageError(
                f"{place} has {len(ids)} tokens; with up to {self._output} for the output "
                f"that exceeds the model's context of {longest}",
                code=CODE,
                param=field,
            )
        return ids

    async def _render(self, text: str) -> list[int]:
        return await self._client.render([{"role": "user", "content": self._format.prompt(text)}])


@retry_while_db_down
def _longer_prompts(job_id: uuid.UUID, most_bytes: int) -> list[ShardPrompt]:
    with transaction() as session:
        return longer_prompts(session, job_id, most_bytes)


@retry_while_db_down
def _place_of(prompt: ShardPrompt) -> tuple[str, str]:
    with transaction() as session:
        return place_of(session, prompt)
