"""The child of `math_answer.py`: a JSON question a line on stdin; true, false or null on stdout.

It imports nothing of this project, so that it starts fast. It dies at a question that takes too
long, by a signal that the kernel handles: one that Python handles waits for sympy.
"""

import json
import logging
import resource
import signal
import sys

from math_verify import parse, verify

CPU_SECONDS = 3.0
"""For one question; most take a few milliseconds. Of CPU time, so that load changes no verdict."""
MEMORY_BYTES = 4 * 1024**3
"""Address space: a power tower may fill a machine's memory before its time is over."""


def states(text: str, answer: str) -> bool | None:
    """None where the reference itself says nothing that can be compared."""
    try:
        gold = parse(f"${answer.strip('$ ')}$", parsing_timeout=None)
    except Exception:
        return None
    if all(isinstance(value, str) for value in gold):
        return None
    # math-verify makes a set of several boxes; the last one is the answer.
    box = text.rfind(r"\boxed")
    try:
        stated = parse(text[max(box, 0) :], parsing_timeout=None)
        return bool(verify(gold, stated, timeout_seconds=None))
    except Exception:  # whatever sympy makes of it, no answer was read
        return False


def main() -> None:
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    for line in sys.stdin:
        question = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        reply = states(question["text"], question["answer"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
