"""The pairwise or the pointwise judge at an OpenAI-compatible address."""

from shared.schemas.judges import OpenAISpec
from workers.judge.base import Judge, JudgeContext
from workers.judge.llm.pairwise import PairwiseJudge
from workers.judge.llm.pointwise import PointwiseJudge
from workers.judge.llm.remote import RateLimiter, RemoteChatClient


def make(spec: OpenAISpec, context: JudgeContext) -> Judge:
    limiter = RateLimiter(spec.requests_per_minute)

    def make_client() -> RemoteChatClient:
        return RemoteChatClient(spec, context.job_id, limiter)

    judge: Judge
    if spec.pairwise is not None:
        judge = PairwiseJudge(spec.pairwise, make_client)
    else:
        assert spec.pointwise is not None
        judge = PointwiseJudge(spec.pointwise, make_client)
    judge.name = f"openai/{judge.name}"
    # A shard has questions enough for the concurrency that the address allows.
    judge.shards_at_once = 1
    judge.model = spec.model
    return judge
