"""Verifies by log-probabilities that an engine serves the weights that it was given."""

import json
from collections.abc import Sequence
from pathlib import Path

from workers.engine.admin import EngineAdmin, SwapError
from workers.models.weights import PROBE_FILE, ModelWeights

PROBE_TEXT = (
    "The quick brown fox jumps over the lazy dog. 17 + 25 = 42. Think, then answer: which of the "
    "planets is the largest? Jupiter, since it has more mass than all others together."
)
SAME_TOLERANCE = 1e-3
"""Largest difference of a log-probability, in nats, between two probes of the same weights."""
TRAINED_TOLERANCE = 0.15
"""Largest mean difference to the trainer's probe, in nats: float32 there, bf16 and other kernels
here. Measured on SmolLM2-135M: 0.03; weights of another model are off by more than 1."""


class WeightsVerifier:
    """Probes one engine, and remembers what it answered for which weights."""

    def __init__(self, admin: EngineAdmin) -> None:
        self._admin = admin
        self._seen: dict[str, list[float]] = {}

    def probe(self) -> list[float]:
        return self._admin.probe(self._admin.tokenize(PROBE_TEXT))

    def verify(self, model: ModelWeights, before: list[float] | None) -> None:
        """Raise `SwapError` unless the probe has changed, is the same as before for these weights,
        and is near the trainer's. A swap that did nothing otherwise looks fine for hours."""
        after = self.probe()
        problem = None
        seen = self._seen.get(model.sha256)
        if before == after:
            problem = "its log-probabilities did not change"
        elif seen and max(_differences(seen, after)) > SAME_TOLERANCE:
            problem = "its log-probabilities are not what they were for these weights"
        elif trained := _trained_probe(model.path):
            token_ids, expected = trained
            differences = _differences(expected, self._admin.probe(token_ids))
            mean = sum(differences) / len(differences)
            if mean > TRAINED_TOLERANCE:
                problem = f"its log-probabilities are {mean:.3f} nats off the trainer's"
        if problem is not None:
            raise SwapError(f"the engine was given model {model.id}, but {problem}")
        self._seen.setdefault(model.sha256, after)


def _differences(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [abs(x - y) for x, y in zip(a, b, strict=True)]


def _trained_probe(folder: Path) -> tuple[list[int], list[float]] | None:
    """Token ids and the log-probability of each but the first, as computed when they were saved."""
    file = folder / PROBE_FILE
    if not file.exists():
        return None
    probe = json.loads(file.read_text())
    return probe["token_ids"], probe["logprobs"]
