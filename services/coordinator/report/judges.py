"""Judges of a run: a model must not be measured by the judge that it was trained to please."""

from typing import Any

from shared.schemas.judges import AnySpec, MixtureSpec
from shared.schemas.requests import IterationRequest

WARNING = (
    "The judge that scores validation is the one that chose the training pairs: a model trained "
    "to please a judge is flattered by it. Set validation.judge to another one for a fair "
    "comparison."
)


def judges(config: IterationRequest) -> dict[str, Any]:
    evaluating = config.evaluating_judge
    shared = _models(config.judge) & _models(evaluating)
    return {
        "judges": {"training": _label(config.judge), "validation": _label(evaluating)},
        "same_judge": bool(shared) or evaluating == config.judge,
        "warning": WARNING if shared else None,
    }


def _models(spec: AnySpec) -> set[str]:
    """Name the models whose opinion a judge gives. The verifier's checks are the task itself."""
    if isinstance(spec, MixtureSpec):
        return set().union(*(_models(weighted.judge) for weighted in spec.judges))
    model = getattr(spec, "model", None)
    return set() if model is None else {model}


def _label(spec: AnySpec) -> str:
    if isinstance(spec, MixtureSpec):
        return "mixture of " + ", ".join(_label(weighted.judge) for weighted in spec.judges)
    model = getattr(spec, "model", None)
    return spec.kind if model is None else f"{spec.kind} {model}"
