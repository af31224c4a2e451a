"""Following a training's metrics, also when it starts again and cuts them."""

import json
from pathlib import Path

from workers.train.metrics_file import MetricsFile


def write(path: Path, steps: int, after: str = "") -> None:
    lines = [json.dumps({"step": n, "loss": 1 / n}) + "\n" for n in range(1, steps + 1)]
    path.write_text("".join(lines) + after)


def test_the_latest_whole_line_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    assert metrics.latest() is None
    write(path, 3, after='{"step": 4, "lo')
    assert (metrics.latest() or {})["step"] == 3
    write(path, 4)
    assert (metrics.latest() or {})["step"] == 4


def test_a_resumed_training_cuts_what_it_takes_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    write(path, 18)
    metrics.latest()
    for step in range(10, 30):
        write(path, step)
        assert (metrics.latest() or {})["step"] == step
