"""Who judges whom: a model must not be measured by the judge that it was trained to please."""

from typing import Any

from shared.judge_specs import AnySpec, MixtureSpec, VerifierSpec
from shared.schemas import IterationRequest

WARNING = (
    "The judge that scores validation is the one that chose the training pairs: a model trained "
    "to please a judge is flattered by it. Set validation.judge to another one for a fair "
    "comparison."
)


def judges(config: IterationRequest) -> dict[str, Any]:
    evaluating = config.evaluating_judge
    same = evaluating == config.judge
    # The verifier's checks are the task itself, not an opinion of it.
    flattering = same and not isinstance(config.judge, VerifierSpec)
    return {
        "judges": {"training": _label(config.judge), "validation": _label(evaluating)},
        "same_judge": same,
        "warning": WARNING if flattering else None,
    }


def _label(spec: AnySpec) -> str:
    if isinstance(spec, MixtureSpec):
        return "mixture of " + ", ".join(_label(weighted.judge) for weighted in spec.judges)
    model = getattr(spec, "model", None)
    return spec.kind if model is None else f"{spec.kind} {model}"
