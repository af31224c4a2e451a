"""Rows and counts that a finished generate shard commits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import insert
from sqlalchemy.orm import Session

from shared.db.tables import Completion, Json, SampledPrompt
from shared.jobs.shards import Claim
from shared.thinking.generation import Output
from workers.generate.prompts import ShardPrompt


@dataclass(frozen=True)
class Samples:
    """A prompt, its tokens, and the outputs that were sampled behind exactly these."""

    prompt: ShardPrompt
    prompt_ids: list[int]
    outputs: list[Output]


def write(claim: Claim, shard: Sequence[Samples]) -> Callable[[Session], None]:
    """A function that inserts the shard's prompts and completions."""
    prompts = [
        {"job_id": claim.job_id, "prompt_index": s.prompt.index, "ids": s.prompt_ids} for s in shard
    ]
    completions = [
        _completion(claim, s.prompt, k, output) for s in shard for k, output in enumerate(s.outputs)
    ]

    def insert_rows(session: Session) -> None:
        session.execute(insert(SampledPrompt), prompts)
        session.execute(insert(Completion), completions)

    return insert_rows


def _completion(claim: Claim, prompt: ShardPrompt, k: int, output: Output) -> Json:
    return {
        "job_id": claim.job_id,
        "shard_id": claim.shard_id,
        "prompt_id": prompt.prompt_id,
        "prompt_index": prompt.index,
        "sample_index": k,
        # Postgres stores no NUL; one character for one keeps the offsets.
        "output": output.text.replace("\x00", "\ufffd"),
        "output_ids": output.ids,
        "response_start": output.response_start,
        "prompt_tokens": output.prompt_tokens,
        "thought_tokens": output.thought_tokens,
        "response_tokens": output.response_tokens,
        "truncated": output.truncated,
        "forced": output.forced,
        "seed": output.seed,
    }


def result(shard: Sequence[Samples]) -> Json:
    """The counts that the shard's row keeps."""
    outputs = [output for samples in shard for output in samples.outputs]
    thought = sum(output.thought_tokens for output in outputs)
    response = sum(output.response_tokens for output in outputs)
    return {
        "prompts": len(shard),
        "completions": len(outputs),
        "parsed": sum(output.response_start is not None for output in outputs),
        "truncated": sum(output.truncated for output in outputs),
        "forced": sum(output.forced for output in outputs),
        "thought_tokens": thought,
        "response_tokens": response,
        "tokens": thought + response,
    }
