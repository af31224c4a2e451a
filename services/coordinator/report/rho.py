"""Pairs that other strengths of length control would have chosen: pure functions."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from services.coordinator.pairs.select import Candidate, ChosenPair, DropReason, choose, settle

RHOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)


def sweep(
    prompts: Iterable[tuple[int, Sequence[Candidate]]], *, max_parse_failure_fraction: float
) -> list[dict[str, Any]]:
    """For each rho: pairs, their mean response lengths, and how many prompts it decides otherwise
    than rho = 0 would (other responses, a pair for none, or none for a pair).

    The prompts are gone through once, and of each only ids and numbers are kept.
    """
    choices: list[list[ChosenPair]] = [[] for _ in RHOS]
    dropped: list[Counter[DropReason]] = [Counter() for _ in RHOS]
    for prompt_id, candidates in prompts:
        for i, rho in enumerate(RHOS):
            result = choose(prompt_id, candidates, rho)
            if isinstance(result, ChosenPair):
                choices[i].append(result)
            else:
                dropped[i][result] += 1
    rows: list[dict[str, Any]] = []
    without: dict[int, tuple[int, int]] = {}
    for i, rho in enumerate(RHOS):
        kept, counts = settle(choices[i], dropped[i], max_parse_failure_fraction)
        pairs = {c.prompt_id: (c.chosen.completion_id, c.rejected.completion_id) for c in kept}
        without = without if i else pairs
        rows.append(
            {
                "rho": rho,
                "pairs": counts.kept,
                "chosen_length": counts.chosen_length,
                "rejected_length": counts.rejected_length,
                "changed": sum(
                    pairs.get(p) != without.get(p) for p in pairs.keys() | without.keys()
                ),
            }
        )
    return rows
