"""Stage: prompts -> completions, a shard committed at a time.

`python -m workers.generate.stage --job ID --engine-url URL`. The engine is kept full: the next
shard is claimed as soon as fewer sequences are under way than it can decode at once, not when the
shard before has ended. All K samples of a prompt go in one request, so its prompt is cached once.
"""

import asyncio
import hashlib
import logging
from pathlib import Path

from shared.db.engine import retry_while_db_down, transaction
from shared.db.tables import Json
from shared.jobs.shards import Claim, LeaseLost
from shared.settings import get_settings
from shared.thinking.formats import ThoughtFormat
from shared.thinking.generation import think_then_respond
from shared.thinking.sampling import Sampling
from shared.vllm.answers import EngineFailed, EngineRefused
from shared.vllm.client import EngineClient, gather_or_cancel
from workers.generate import rows
from workers.generate.context import Room
from workers.generate.prompts import ShardPrompt, load_prompts
from workers.generate.rows import Samples
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
        loop = asyncio.get_running_loop()
        task: asyncio.Task[None] | None = None
        is_lost = False

        def drop() -> None:
            nonlocal is_lost
            is_lost = True  # the task may not be there yet
            if task is not None:
                task.cancel()

        def on_lost() -> None:
            loop.call_soon_threadsafe(drop)  # the heartbeat's thread calls

        claim = await asyncio.to_thread(self._held.claim, on_lost)
        if claim is None:
            return None
        prompts = await asyncio.to_thread(_prompts, claim)
        if is_lost:
            return claim
        self._under_way += len(prompts) * self._sampling.samples
        with bound(claim):  # the task keeps what is bound when it is made
            task = asyncio.create_task(self._shard(claim, prompts))
        tasks.add(task)
        return claim

    async def _shard(self, claim: Claim, prompts: list[ShardPrompt]) -> None:
        so_far = {"share": 0.0, "tokens": 0}

        async def counted(prompt: ShardPrompt) -> Samples:
            samples = await self._prompt(prompt)
            so_far["share"] += 1 / len(prompts)
            so_far["tokens"] += sum(o.thought_tokens + o.response_tokens for o in samples.outputs)
            self._held.report(claim, dict(so_far))
            return samples

        try:
            shard = await gather_or_cancel(counted(p) for p in prompts)
            result = rows.result(shard) | {"versions": self._versions}
            await asyncio.to_thread(self._held.finish, claim, result, rows.write(claim, shard))
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

    async def _prompt(self, prompt: ShardPrompt) -> Samples:
        try:
            prompt_ids = await self._room.rendered(prompt)
            outputs = await think_then_respond(
                self._client,
                prompt_ids,
                self._format,
                self._sampling,
                seed=seed_of(self._sampling.seed, prompt),
                split=self._splitter,
            )
            return Samples(prompt, prompt_ids, outputs)
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


if __name__ == "__main__":
    args = arguments(__doc__, "--engine-url")
    start(args, lambda job: asyncio.run(main(job, args.worker, args.engine_url)))
