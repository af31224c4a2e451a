"""Checks mathematical answers by math-verify, in a process of its own.

math-verify runs sympy on whatever a model writes, and `9**9**9` keeps sympy busy for ever inside
one C call that no Python timeout ends. So a child does it, and is killed when it takes too long.
"""

import json
import subprocess
import sys
import threading
import weakref
from pathlib import Path

MAX_TEXT = 2000
"""Characters from the end of a text that are looked at; the final answer is there."""
EASY = "7"
"""A text asked about with a reference on which the child died, to learn whether the reference is
at fault."""


class _ChildDied(Exception):
    """The question has killed the child."""


class MathAnswers:
    """Starts its child at the first question and again after one that killed it. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None

    def states(self, text: str, answer: str) -> bool | None:
        """Tell whether the last answer in `text` equals `answer`. False if undecidable; None if
        `answer` itself cannot be read or compared."""
        with self._lock:
            try:
                return self._ask(text, answer)
            except _ChildDied:
                pass
            try:
                self._ask(EASY, answer)
            except _ChildDied:
                return None
            return False

    def _ask(self, text: str, answer: str) -> bool | None:
        if self._child is None:
            self._child = self._start()
        assert self._child.stdin
        assert self._child.stdout
        question = json.dumps({"text": text[-MAX_TEXT:], "answer": answer})
        try:
            print(question, file=self._child.stdin, flush=True)
            reply = self._child.stdout.readline()
        except BrokenPipeError:
            reply = ""
        if not reply:
            _stop(self._child)
            self._child = None
            raise _ChildDied
        known: bool | None = json.loads(reply)
        return known

    def _start(self) -> "subprocess.Popen[str]":
        script = Path(__file__).with_name("math_child.py")
        child = subprocess.Popen(
            # -P: this folder's modules must not hide those of other packages.
            [sys.executable, "-P", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        weakref.finalize(self, _stop, child)
        return child


def _stop(child: "subprocess.Popen[str]") -> None:
    child.kill()
    child.communicate()
