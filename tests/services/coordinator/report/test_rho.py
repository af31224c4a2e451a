"""The sweep over rho is pairing done anew for each."""

from hypothesis import given
from hypothesis import strategies as st

from services.coordinator.pairs.select import Candidate, choose_all
from services.coordinator.report.rho import RHOS, sweep

grades_st = st.none() | st.sampled_from([0.0, 0.5, 1.0])
drawn_st = st.lists(st.lists(st.tuples(grades_st, st.integers(0, 200)), max_size=5), max_size=8)


@given(drawn_st, st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_each_row_is_what_that_rho_would_have_given(
    drawn: list[list[tuple[float | None, int]]], cap: float
) -> None:
    prompts = [
        (p, [Candidate(10 * p + i, score, n, f"{p}/{i}") for i, (score, n) in enumerate(outputs)])
        for p, outputs in enumerate(drawn)
    ]
    rows = sweep(iter(prompts), max_parse_failure_fraction=cap)
    assert [row["rho"] for row in rows] == list(RHOS)

    def decisions(rho: float) -> tuple[dict[int, tuple[int, int]], dict[str, object]]:
        kept, report = choose_all(prompts, rho=rho, max_parse_failure_fraction=cap)
        pairs = {c.prompt_id: (c.chosen.completion_id, c.rejected.completion_id) for c in kept}
        return pairs, report.as_json()

    without, _ = decisions(0.0)
    for row in rows:
        pairs, report = decisions(row["rho"])
        assert row["pairs"] == report["kept"]
        for side in ("chosen_length", "rejected_length"):
            assert row[side] == report[side]
        differ = [p for p in range(len(prompts)) if pairs.get(p) != without.get(p)]
        assert row["changed"] == len(differ)


def test_a_longer_favourite_is_given_up() -> None:
    best_by_a_hair = [Candidate(1, 1.0, 300, "a"), Candidate(2, 0.9, 10, "b")]
    prompts = [(1, [*best_by_a_hair, Candidate(3, 0.0, 20, "c")])]
    rows = sweep(prompts, max_parse_failure_fraction=0.1)
    assert [row["changed"] for row in rows] == sorted(row["changed"] for row in rows)
    assert (rows[0]["chosen_length"], rows[-1]["chosen_length"]) == (300, 10)
