"""What a log shows of an exception: enough to find it, and nothing that somebody wrote."""

import errno
import json
from collections.abc import Callable

import pytest
from pydantic import TypeAdapter

from shared.errors import Unavailable
from shared.log import MAX_FRAMES, render_exception
from workers.engine.admin import SwapError


def raised(act: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as found:  # noqa: PT011 (any of them)
        act()
    return found.value


def titles(error: BaseException) -> list[str]:
    """All lines but the frames."""
    return [line for line in render_exception(error).splitlines() if not line.startswith("  File")]


def test_places_and_kinds_are_shown_and_a_librarys_words_are_not() -> None:
    shown = render_exception(raised(lambda: TypeAdapter(int).validate_python("a thought")))
    first, *frames, last = shown.splitlines()
    assert first == "Traceback (most recent call last):"
    assert f'File "{__file__}"' in frames[0]
    assert "in validate_python" in frames[-1]
    assert last == "pydantic_core._pydantic_core.ValidationError"


def test_a_note_is_not_shown() -> None:
    error = ValueError("a thought")
    error.add_note("another thought")
    assert titles(error)[1:] == ["ValueError"]


def test_what_led_to_it_is_shown_before_it() -> None:
    def act() -> None:
        try:
            json.loads("a thought")
        except ValueError as error:
            raise LookupError("a thought") from error

    def handle() -> None:
        try:
            act()
        except LookupError:
            raise RuntimeError("a thought")  # noqa: B904

    assert titles(raised(handle)) == [
        "Traceback (most recent call last):",
        "json.decoder.JSONDecodeError",
        "which led to:",
        "LookupError",
        "which led to:",
        "RuntimeError",
    ]


def test_a_cause_that_was_set_aside_is_not_shown() -> None:
    def act() -> None:
        try:
            raise KeyError("a thought")
        except KeyError:
            raise RuntimeError from None

    assert titles(raised(act))[1:] == ["RuntimeError"]


def test_errors_of_a_group_are_shown_once_each() -> None:
    """Also where one is raised by itself, whose context is the group then."""

    def act() -> None:
        try:
            raise ExceptionGroup("thoughts", [ValueError("a thought"), KeyError("another")])
        except ExceptionGroup as group:
            raise group.exceptions[0]  # noqa: B904

    shown = titles(raised(act))
    assert [line for line in shown if line.endswith(("Error", "Group"))] == [
        "ExceptionGroup", "KeyError", "ValueError",
    ]  # fmt: skip


def test_our_own_words_and_the_systems_are_shown() -> None:
    assert titles(Unavailable("come back"))[-1] == "shared.errors.Unavailable: come back"
    assert titles(SwapError("other weights"))[-1].endswith("SwapError: other weights")
    full = OSError(errno.ENOSPC, "No space left on device", "/a thought")
    assert titles(full)[-1] == "OSError: No space left on device"
    assert titles(OSError("a thought"))[-1] == "OSError"


def test_an_endless_recursion_is_cut() -> None:
    def act() -> None:
        act()

    shown = render_exception(raised(act))
    assert shown.count("in act") == MAX_FRAMES
    assert shown.endswith("RecursionError")
