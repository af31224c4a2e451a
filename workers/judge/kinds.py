"""Judges by kind. A new one is a file here, a line below and its spec in `shared.schemas.judges`.

Imported when first used: a reward model needs torch, a verifier does not.
"""

from collections.abc import Callable
from importlib import import_module
from operator import attrgetter
from typing import Any

from shared.schemas.judges import AnySpec, MixtureSpec
from workers.judge.base import CannotJudge, Judge, JudgeContext, Score
from workers.judge.mixture import Mixture

__all__ = ["JUDGES", "CannotJudge", "Judge", "JudgeContext", "Score", "make_judge"]

JUDGES = {
    "verifier": "checks.verifier:Verifier",
    "reward_model": "reward.model:RewardModel",
    "pairwise": "llm.pairwise:PairwiseJudge.on_engine",
    "pointwise_llm": "llm.pointwise:PointwiseJudge.on_engine",
    "openai": "llm.openai_api:make",
}


def make_judge(spec: AnySpec, context: JudgeContext) -> Judge:
    if isinstance(spec, MixtureSpec):
        return Mixture(spec, [make_judge(weighted.judge, context) for weighted in spec.judges])
    module, _, name = JUDGES[spec.kind].partition(":")
    make: Callable[[Any, JudgeContext], Judge] = attrgetter(name)(
        import_module(f"workers.judge.{module}")
    )
    return make(spec, context)
