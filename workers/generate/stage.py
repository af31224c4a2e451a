"""Stage: prompts -> completions, a shard committed at a time.

`python -m workers.generate.stage --job ID --engine-url URL`. The engine is kept full: the next
shard is claimed as soon as fewer sequences are under way than it can decode at once, not when the
shard before has ended. All K samples of a prompt go in one request, so its prompt is cached once.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import insert
from sqlalchemy.orm import Session

from shared.db.engine import retry_while_db_down, transaction
from shared.db.tables import Completion, Json
from shared.jobs.shards import Claim, LeaseLost
from shared.settings import get_settings
from shared.thinking.formats import ThoughtFormat
from shared.thinking.generation import Output, think_then_respond
from shared.thinking.sampling import Sampling
from shared.vllm.answers import EngineFailed, EngineRefused
from shared.vllm.client import EngineClient, gather_or_cancel
from workers.generate.context import Room
from workers.generate.prompts import ShardPrompt, load_prompts
from workers.generate.token_split import TokenSplitter
from workers.job_spec import JobSpec
from workers.leases import Leases, StageError, bound, leases
from workers.stage import arguments, start

log = logging.getLogger(__name__)


async def main(job: JobSpec, worker: str, engine_url: str) -> None:
    assert job.weights is not None
    with leases(job.id, worker) as held:
        async with EngineClient(engine_url) as client:
            await Generation(held, client, job.params, job.weights.path).run()


@retry_while_db_down
def _prompts(claim: Claim) -> list[ShardPrompt]:
    with transaction() as session:
        return load_prompts(session, claim.payload)


class Generation:
    """A job's generation in one process: which shards are under way, and how full the engine is."""

    def __init__(self, held: Leases, client: EngineClient, params: Json, model: Path) -> None:
        self._held = held
        self._client = client
        self._format = ThoughtFormat.model_validate(params["thought_format"])
        self._sampling = Sampling.model_validate(params["sampling"])
        self._splitter = TokenSplitter(model)
        self._target = 2 * get_settings().max_num_seqs
        self._under_way = 0
        self._freed = asyncio.Event()
        self._engine_error: EngineFailed | None = None
        self._versions: dict[str, str] = {}
        self._room = Room(client, self._format, self._sampling)

    async def run(self) -> None:
        """Until no shard can be taken. Raises `EngineFailed`, and leaves shards, when the engine
        has failed."""
        self._versions = {"vllm": await self._client.version()}
        await self._room.check(self._held.job_id)
        tasks: set[asyncio.Task[None]] = set()
        more = True
        while more or tasks:
            while more and self._under_way < self._target:
                claim = await self._claim(tasks)
                more = claim is not None and self._engine_error is None
            self._freed.clear()
            if tasks:
                freed = asyncio.create_task(self._freed.wait())
                done, _ = await asyncio.wait({*tasks, freed}, return_when=asyncio.FIRST_COMPLETED)
                freed.cancel()
                for task in done & tasks:
                    tasks.discard(task)
                    task.result()
            more = more and self._engine_error is None
        if self._engine_error is not None:
            raise self._engine_error

    async def _claim(self, tasks: set[asyncio.Task[None]]) -> Claim | None:
        loop, task = asyncio.get_running_loop(), None

        def on_lost() -> None:
            if task is not None:
                loop.call_soon_threadsafe(task.cancel)

        claim = await asyncio.to_thread(self._held.claim, on_lost)
        if claim is not None:
            prompts = await asyncio.to_thread(_prompts, claim)
            self._under_way += len(prompts) * self._sampling.samples
            with bound(claim):  # the task keeps what is bound when it is made
                task = asyncio.create_task(self._shard(claim, prompts))
            tasks.add(task)
        return claim

    async def _shard(self, claim: Claim, prompts: list[ShardPrompt]) -> None:
        so_far = {"share": 0.0, "tokens": 0}

        async def counted(prompt: ShardPrompt) -> list[Output]:
            outputs = await self._prompt(prompt)
            so_far["share"] += 1 / len(prompts)
            so_far["tokens"] += sum(o.thought_tokens + o.response_tokens for o in outputs)
            self._held.report(claim, dict(so_far))
            return outputs

        try:
            groups = await gather_or_cancel(counted(p) for p in prompts)
            rows = [
                _row(claim, prompt, k, output)
                for prompt, group in zip(prompts, groups, strict=True)
                for k, output in enumerate(group)
            ]
            result = _result(len(prompts), rows) | {"versions": self._versions}
            await asyncio.to_thread(self._held.finish, claim, result, _insert(rows))
        except (LeaseLost, asyncio.CancelledError):
            log.warning("dropped a shard whose lease was lost")
        except EngineRefused as error:
            await asyncio.to_thread(
                self._held.fail, claim, StageError(error.message, code=error.code)
            )
        except EngineFailed as error:
            # Other shards would fail alike. The worker gives back what this process holds, and
            # looks after its engine before it runs this stage again.
            self._engine_error = error
        except StageError as error:
            await asyncio.to_thread(self._held.fail, claim, error)

    async def _prompt(self, prompt: ShardPrompt) -> list[Output]:
        try:
            return await think_then_respond(
                self._client,
                await self._room.rendered(prompt),
                self._format,
                self._sampling,
                seed=seed_of(self._sampling.seed, prompt),
                split=self._splitter,
            )
        finally:
            self._under_way -= self._sampling.samples
            self._freed.set()


def seed_of(seed: int, prompt: ShardPrompt) -> int:
    """The seed of a prompt's request, from which the engine derives that of each sample.

    It depends on what is asked and on nothing of the run, so a shard done again, or by another
    worker, gives the same rows. In [0, 2**31).
    """
    digest = hashlib.sha256(f"{seed}:{prompt.index}:{prompt.text}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _row(claim: Claim, prompt: ShardPrompt, k: int, output: Output) -> Json:
    return {
        "job_id": claim.job_id,
        "shard_id": claim.shard_id,
        "prompt_id": prompt.prompt_id,
        "prompt_index": prompt.index,
        "sample_index": k,
        # Postgres stores no NUL; one character for one keeps the offsets.
        "output": output.text.replace("\x00", "\ufffd"),
        "response_start": output.response_start,
        "prompt_tokens": output.prompt_tokens,
        "thought_tokens": output.thought_tokens,
        "response_tokens": output.response_tokens,
        "truncated": output.truncated,
        "forced": output.forced,
        "seed": output.seed,
    }


def _result(prompts: int, rows: list[Json]) -> Json:
    thought = sum(row["thought_tokens"] for row in rows)
    response = sum(row["response_tokens"] for row in rows)
    return {
        "prompts": prompts,
        "completions": len(rows),
        "parsed": sum(row["response_start"] is not None for row in rows),
        "truncated": sum(row["truncated"] for row in rows),
        "forced": sum(row["forced"] for row in rows),
        "thought_tokens": thought,
        "response_tokens": response,
        "tokens": thought + response,
    }


def _insert(rows: list[Json]) -> Callable[[Session], None]:
    def write(session: Session) -> None:
        session.execute(insert(Completion), rows)

    return write


if __name__ == "__main__":
    args = arguments(__doc__, "--engine-url")
    start(args, lambda job: asyncio.run(main(job, args.worker, args.engine_url)))
