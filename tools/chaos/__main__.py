"""`make chaos`: kills, lost messages, servers away, suspended workers, clocks that are off.

Every disturbed iteration must end with the undisturbed one's manifest. Then whatever runs is
killed every 30 s for some minutes, with the leases that the platform has by default, and the share
of that time which was useful is printed.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tools.chaos import disturbances
from tools.chaos.campaign import Outcome, Reference, disturb, reference
from tools.chaos.disturbances import Disturbance
from tools.chaos.platform import chaos_platform

KILL_EVERY_SECONDS = 30.0
out = Console(highlight=False, width=140)


def plan(expected: Reference, runs: int, rng: random.Random) -> list[Disturbance]:
    """All kinds in random order; kills at random times make up the number."""
    chosen = [
        *disturbances.kills_at(expected.points),
        *disturbances.suspensions(expected.points),
        *disturbances.messages(),
        *disturbances.servers(expected.seconds, rng),
        *disturbances.stops(expected.seconds, rng),
        *disturbances.skews(),
    ]
    left_out = max(0, len(chosen) - runs)
    out.print(f"{len(chosen)} disturbances other than kills at random; {left_out} are left out")
    more = max(0, runs - len(chosen))
    chosen += disturbances.random_kills(more, expected.seconds, rng)
    rng.shuffle(chosen)
    return chosen[:runs]


def campaign(runs: int, start: int, rng: random.Random, only: list[str]) -> list[Outcome]:
    with tempfile.TemporaryDirectory() as folder, chaos_platform(Path(folder)) as platform:
        expected = reference(platform)
        out.print(f"undisturbed: {expected.seconds:.1f} s, {len(expected.points)} points")
        outcomes = []
        for how in plan(expected, runs, rng)[start:]:
            if only and not any(part in how.name for part in only):
                continue
            outcome = disturb(platform, expected, how)
            outcomes.append(outcome)
            out.print(
                f"{len(outcomes):4d} {outcome.seconds:6.1f} s  {how.name}: {verdict(outcome)}"
            )
        return outcomes


def verdict(outcome: Outcome) -> str:
    if outcome.problem is not None:
        return f"[red]{outcome.problem}[/]"
    if outcome.undone:
        return "[yellow]same, undisturbed[/]"
    cost = f", {outcome.again:.2f} shards again" if outcome.again > 0 else ""
    return f"[green]same[/]{cost}"


def useful_share(minutes: float, rng: random.Random) -> float:
    """Undisturbed seconds of the iterations that ended, of the seconds that they took, with
    something killed every 30 s."""
    with (
        tempfile.TemporaryDirectory() as folder,
        chaos_platform(Path(folder), lease_seconds=25.0) as platform,
    ):
        expected = reference(platform)
        started, ended, kills = time.monotonic(), 0, 0
        while (now := time.monotonic() - started) < minutes * 60:
            at = KILL_EVERY_SECONDS - now % KILL_EVERY_SECONDS
            moments = [at + n * KILL_EVERY_SECONDS for n in range(10)]
            how = Disturbance("steady kills", acts=[(m, _kill(rng)) for m in moments])
            outcome = disturb(platform, expected, how)
            assert outcome.problem is None, outcome.problem
            ended, kills = ended + 1, kills + outcome.kills
        seconds = time.monotonic() - started
        out.print(f"{ended} iterations in {seconds:.0f} s with {kills} kills")
        return ended * expected.seconds / seconds


def _kill(rng: random.Random) -> disturbances.Act:
    return next(iter(disturbances.random_kills(1, 1.0, rng))).acts[0][1]


def summary(outcomes: list[Outcome]) -> Table:
    table = Table(title="disturbed iterations")
    outcomes = [o for o in outcomes if o.problem or not o.undone]
    for column in ("runs", "kills", "same", "lost rows", "doubled rows"):
        table.add_column(column, justify="right")
    table.add_column("sampled again, shards (mean / most)", justify="right")
    table.add_column("recovery, s (mean / longest)", justify="right")
    again = [o.again for o in outcomes]
    recoveries = [o.recovery for o in outcomes if o.kills]
    table.add_row(
        str(len(outcomes)),
        str(sum(o.kills for o in outcomes)),
        str(sum(o.problem is None for o in outcomes)),
        str(sum(o.lost for o in outcomes)),
        str(sum(o.doubled for o in outcomes)),
        f"{statistics.mean(again):.2f} / {max(again):.2f}",
        f"{statistics.mean(recoveries or [0]):.1f} / {max(recoveries, default=0):.1f}",
    )
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=220)
    parser.add_argument("--start", type=int, default=0, help="leave out so many of these")
    parser.add_argument("--minutes", type=float, default=10.0, help="of steady kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="disturbances whose names have one of these")
    args = parser.parse_args()
    outcomes = campaign(args.runs, args.start, random.Random(args.seed), args.only or [])
    out.print(summary(outcomes))
    if args.minutes:
        share = useful_share(args.minutes, random.Random(args.seed))
        out.print(f"useful share of the time at a kill every 30 s: {share:.2f}")
    return 0 if all(o.problem is None for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
