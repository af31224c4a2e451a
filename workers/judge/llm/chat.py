"""What the judges that ask a chat model have in common: whom they ask."""

from typing import Any, Generic, Self, TypeVar

from shared.schemas.judges import Pairwise, Pointwise
from workers.judge.base import Judge, JudgeContext
from workers.judge.llm.chat_client import AskWith, EngineAsker

Spec = TypeVar("Spec", bound=Pairwise | Pointwise)


class ChatJudge(Judge, Generic[Spec]):
    shards_at_once = 2

    def __init__(self, spec: Spec, ask_with: AskWith) -> None:
        self._spec = spec
        self._ask_with = ask_with

    @classmethod
    def on_engine(cls, spec: Any, context: JudgeContext) -> Self:
        judge = cls(spec, lambda: EngineAsker(context.engine_url))
        judge.model = spec.model
        return judge
