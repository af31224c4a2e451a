"""A reward model's runner as a child process: `python -m tools.bench.reward_side RUNNER MODEL`.

A JSON list of items a line in; `{"seconds", "cpu_seconds", "tokens", "scores"}` a line out. The
first one loads the model, and its seconds say nothing.
"""

import json
import os
import sys
import time
import uuid

from shared.schemas.judges import RewardModelSpec
from shared.schemas.requests import JudgeItem
from workers.judge.kinds import JudgeContext
from workers.judge.reward.model import RewardModel
from workers.judge.reward.source import open_source


def main(runner: str, model: str) -> None:
    # vLLM prints; the answers must not be among it.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    spec = RewardModelSpec.model_validate(
        {"kind": "reward_model", "model": model, "runner": runner}
    )
    source = open_source(spec)
    judge = RewardModel(spec, JudgeContext(uuid.uuid4()))
    for line in sys.stdin:
        items = [JudgeItem.model_validate(item) for item in json.loads(line)]
        started, cpu_before = time.perf_counter(), time.process_time()
        scores = judge.score(items)
        answer = {
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu_before,
            "tokens": sum(map(len, source.chats(items))),
            "scores": [score.value for score in scores],
        }
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
