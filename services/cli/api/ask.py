"""Questions to the chat endpoint, through the official `openai` client."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import openai
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

from services.cli.errors import CliError

Messages = list[ChatCompletionMessageParam]
LOADING_SECONDS = 600.0
MAX_WAIT_SECONDS = 5.0


def chat_client(url: str, key: str | None) -> openai.OpenAI:
    """Make a client of the platform at `url`. It does not retry; `ask` does."""
    return openai.OpenAI(
        base_url=f"{url}/v1",
        api_key=key or "none",
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )


def ask(
    client: openai.OpenAI,
    model: str,
    messages: Messages,
    max_tokens: int,
    waiting: Callable[[], None],
) -> ChatCompletion:
    """Ask for a greedy answer of at most `max_tokens` tokens, its thought included.

    Waits while the model is being loaded, and calls `waiting` before each retry.
    """
    deadline = time.monotonic() + LOADING_SECONDS
    with _readable_errors():
        while True:
            try:
                return client.chat.completions.create(
                    model=model,
                    messages=messages,
                    max_completion_tokens=max_tokens,
                    temperature=0,
                )
            except openai.InternalServerError as error:
                if error.status_code != 503 or time.monotonic() > deadline:
                    raise
                waiting()
                time.sleep(_retry_after(error))


def stream(client: openai.OpenAI, model: str, messages: Messages) -> Iterator[str]:
    """Yield the pieces of an answer as they arrive. Raises `CliError` on an error."""
    with _readable_errors():
        chunks = client.chat.completions.create(model=model, messages=messages, stream=True)
        for chunk in chunks:
            if chunk.choices and (text := chunk.choices[0].delta.content):
                yield text


def default_model(client: openai.OpenAI) -> str:
    """Return the model that chat serves. Raises `CliError` when there is none."""
    with _readable_errors():
        for model in client.models.list():
            return model.id
    raise CliError(
        "no model is served. A model that was just promoted may still be loading: try again in a "
        "minute. Otherwise run an iteration, or promote a model with POST /models/{id}/promote"
    )


def _retry_after(error: openai.APIStatusError) -> float:
    try:
        wait = float(error.response.headers.get("Retry-After", ""))
    except ValueError:
        wait = MAX_WAIT_SECONDS
    return min(max(wait, 0.2), MAX_WAIT_SECONDS)


@contextmanager
def _readable_errors() -> Iterator[None]:
    try:
        yield
    except openai.APIConnectionError as error:
        raise CliError(f"no platform answers at {error.request.url}: {error}") from None
    except openai.APIStatusError as error:
        body = error.body if isinstance(error.body, dict) else {}
        raise CliError(f"chat: {body.get('message') or error.message}") from None
