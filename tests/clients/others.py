"""Chat through LangChain and LiteLLM, in their own environment; prints what they make of it.

.venv-clients/bin/python tests/clients/others.py URL KEY
"""

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks the internet at its import

import litellm
from langchain_openai import ChatOpenAI

QUESTION = "Name a fruit."


def main(url: str, key: str) -> None:
    print(json.dumps({"langchain": langchain(url, key), "litellm": through_litellm(url, key)}))


def langchain(url: str, key: str) -> dict[str, object]:
    chat = ChatOpenAI(
        model="thinker", base_url=url, api_key=key, seed=1, max_tokens=48, stream_usage=True
    )
    whole = chat.invoke(QUESTION)
    pieces = list(chat.stream(QUESTION))
    return {
        "whole": whole.content,
        "streamed": "".join(piece.content for piece in pieces),
        "reasoning": whole.usage_metadata["output_token_details"]["reasoning"],
        "everything": repr((whole, pieces)),
    }


def through_litellm(url: str, key: str) -> dict[str, object]:
    request = {
        "model": "openai/thinker",
        "api_base": url,
        "api_key": key,
        "messages": [{"role": "user", "content": QUESTION}],
        "seed": 1,
        "max_tokens": 48,
    }
    whole = litellm.completion(**request)
    pieces = list(litellm.completion(**request, stream=True))
    return {
        "whole": whole.choices[0].message.content,
        "streamed": "".join(p.choices[0].delta.content or "" for p in pieces if p.choices),
        "reasoning": whole.usage.completion_tokens_details.reasoning_tokens,
        "everything": repr((whole, pieces)),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
