"""The base of the judges that ask a chat model."""

from typing import Any, Generic, Self, TypeVar

from shared.schemas.judges import Pairwise, Pointwise
from workers.judge.base import Judge, JudgeContext
from workers.judge.llm.chat_client import EngineChatClient, MakeChatClient

Spec = TypeVar("Spec", bound=Pairwise | Pointwise)


class ChatJudge(Judge, Generic[Spec]):
    shards_at_once = 2

    def __init__(self, spec: Spec, make_client: MakeChatClient) -> None:
        self._spec = spec
        self._make_client = make_client

    @classmethod
    def on_engine(cls, spec: Any, context: JudgeContext) -> Self:
        judge = cls(spec, lambda: EngineChatClient(context.engine_url))
        judge.model = spec.model
        return judge
