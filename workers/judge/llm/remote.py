"""Asking a chat model at an OpenAI-compatible address of others: paced, retried, never twice."""

import asyncio
import hashlib
import os
import threading
import time
import uuid
from dataclasses import asdict
from typing import Self

import openai
import orjson
import stamina
from pydantic import TypeAdapter
from sqlalchemy.dialects.postgresql import insert

from shared.db.engine import retry_while_db_down, transaction
from shared.db.tables import JudgeAnswer
from shared.errors import InvalidRequest
from shared.schemas.judge_permissions import key_variable
from shared.schemas.judges import OpenAISpec
from workers.judge.llm.chat_client import Answer, NoChoice, Question, ask, field_of
from workers.leases import StageError

REMOTE_SECONDS = 300.0
PASSING = (408, 409, 429)
"""Statuses below 500 after which another try may succeed."""
ATTEMPTS = 9
FIRST_WAIT = 1.0
"""Seconds before the second attempt, doubled for each one after it: some minutes in all."""
MAX_WAIT = 60.0
"""Longest wait before one retry, whatever `Retry-After` says."""


class RemoteChatClient:
    """An address of others: paced, retried, and asked nothing that the job was answered before.

    Raises:
        StageError: it refuses the key or the model, or fails for minutes.
    """

    def __init__(self, spec: OpenAISpec, job_id: uuid.UUID, limiter: "RateLimiter") -> None:
        self.price_in, self.price_out = spec.price_in, spec.price_out
        self._spec = spec
        self._job_id = job_id
        self._limiter = limiter
        self._free = asyncio.Semaphore(spec.concurrency)
        self._client = openai.AsyncOpenAI(
            base_url=spec.base_url,
            api_key=_key(spec.base_url),
            max_retries=0,
            timeout=REMOTE_SECONDS,
            # Only this address is allowed, and not where it sends us.
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )
        self._once = stamina.retry(
            on=_wait_before,
            attempts=ATTEMPTS,
            timeout=None,
            wait_initial=FIRST_WAIT,
            wait_max=MAX_WAIT,
            wait_jitter=FIRST_WAIT,
        )(self._paced)
        self._answered = 0

    async def ask(self, question: Question) -> Answer:
        whom = (self._spec.base_url, self._spec.model)
        key = hashlib.sha256(orjson.dumps((whom, asdict(question)))).hexdigest()
        known = await asyncio.to_thread(_recall, self._job_id, key)
        if known is not None:
            return known
        async with self._free:
            answered = self._answered
            try:
                answer = await self._once(question)
            except (openai.APIError, NoChoice) as error:
                if _wait_before(error) is not False and self._answered > answered:
                    # The question is at fault and not the address: others were answered meanwhile.
                    return Answer(None, lacking="failed")
                raise _stage_error(self._spec, error) from None
            self._answered += 1
            await asyncio.to_thread(_remember, self._job_id, key, answer)
        return answer

    async def _paced(self, question: Question) -> Answer:
        await self._limiter.acquire()
        return await ask(self._client, self._spec.model, question, self._spec.sends_sampling)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()


class RateLimiter:
    """Spaces the requests of this process evenly, across its event loops."""

    def __init__(self, per_minute: int) -> None:
        self._interval = 60.0 / per_minute
        self._next = 0.0
        self._lock = threading.Lock()

    async def acquire(self) -> None:
        with self._lock:
            at = max(time.monotonic(), self._next)
            self._next = at + self._interval
        await asyncio.sleep(at - time.monotonic())


def _wait_before(error: Exception) -> bool | float:
    """Seconds to wait before the next try; True for the usual wait, False for no further try."""
    if isinstance(error, openai.APIConnectionError | NoChoice):  # time-outs too
        return True
    if not isinstance(error, openai.APIStatusError):
        return False
    if error.status_code not in PASSING and error.status_code < 500:
        return False
    try:
        asked = float(error.response.headers["retry-after"])
    except (KeyError, ValueError):
        return True
    return min(asked, MAX_WAIT) if asked >= 0 else True  # also where it is not a number


def _stage_error(spec: OpenAISpec, error: Exception) -> StageError:
    """Describe an error in our own words: the original may quote the key or the question."""
    where = f"the judge at {spec.base_url}"
    if _wait_before(error) is not False:
        how = field_of(error) if isinstance(error, openai.APIStatusError) else type(error).__name__
        message = f"{where} failed {ATTEMPTS} times in a row ({how})"
        return StageError(message, code="judge_failed", param="judge.base_url", retry=True)
    if not isinstance(error, openai.APIStatusError):
        message = f"{where} answers what is no chat completion ({type(error).__name__})"
        return StageError(message, code="judge_failed", param="judge.base_url")
    if error.status_code in (401, 403):
        variable = key_variable(spec.base_url)
        message = f"{where} refuses the key in {variable or 'no variable'} ({field_of(error)})"
        return StageError(message, code="judge_refused", param="judge.base_url")
    if error.status_code == 404:
        message = f"{where} knows no model {spec.model!r}, or is no such address (status 404)"
        return StageError(message, code="judge_refused", param="judge.model")
    message = (
        f"{where} refuses the request ({field_of(error)}); for a model that takes no temperature "
        "set judge.sends_sampling to false"
    )
    return StageError(message, code="judge_refused", param="judge")


def _key(base_url: str) -> str:
    try:
        variable = key_variable(base_url)
    except InvalidRequest as error:
        raise StageError(error.message, code=error.code, param=error.param) from None
    if variable is None:
        return "none"
    if key := os.environ.get(variable):
        return key
    raise StageError(
        f"the worker's environment has no {variable}; set it where the worker starts",
        code="judge_refused",
        param="judge.base_url",
    )


ANSWER = TypeAdapter(Answer)


@retry_while_db_down
def _recall(job_id: uuid.UUID, key: str) -> Answer | None:
    with transaction() as session:
        row = session.get(JudgeAnswer, (job_id, key))
        return ANSWER.validate_python(row.answer) if row is not None else None


@retry_while_db_down
def _remember(job_id: uuid.UUID, key: str, answer: Answer) -> None:
    row = {"job_id": job_id, "question_sha256": key, "answer": asdict(answer)}
    with transaction() as session:
        session.execute(insert(JudgeAnswer).values(row).on_conflict_do_nothing())
