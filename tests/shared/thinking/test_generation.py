"""Think, then respond, over a server that splits texts into tokens in the worst ways."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.thinking.formats import FORMATS, THINK, ThoughtFormat
from shared.thinking.generation import Output, think, think_then_respond
from shared.thinking.sampling import Sampling
from shared.thinking.thoughts import overhang
from shared.vllm.answers import EngineAway, EngineFailed, EngineRefused
from shared.vllm.client import EngineClient
from shared.vllm.sampling import SamplingParams
from tests.support import tiny_model
from tests.support.engine_scripts import Play, Script
from tests.support.scripted_engine import ScriptedEngine, running
from workers.generate.token_split import TokenSplitter

MARKED = ThoughtFormat(name="marked", response_marker="<R>")
TEXTS = st.text("<R>ab \n\té思", max_size=12)
MESSAGE = {"role": "user", "content": "Why?"}
Run = Callable[..., list[Output]]
ONE = SamplingParams(max_tokens=9, temperature=1.0, top_p=1.0, seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> ScriptedEngine:
    return ScriptedEngine(folder, lambda prompt, seed: "")


@pytest.fixture(scope="module")
def url(engine: ScriptedEngine) -> Iterator[str]:
    with running(engine) as url:
        yield url


@pytest.fixture
def run(engine: ScriptedEngine, url: str, folder: Path) -> Run:
    """Generate with a script; budgets and boundary are the sampling's."""
    split = TokenSplitter(folder)

    async def generate(fmt: ThoughtFormat, sampling: Sampling) -> list[Output]:
        async with EngineClient(url) as client:
            ids = await client.render([MESSAGE])
            return await think_then_respond(client, ids, fmt, sampling, seed=7, split=split)

    def run(fmt: ThoughtFormat, script: Script, **sampling: object) -> list[Output]:
        engine.script = script
        engine.requests.clear()
        return asyncio.run(generate(fmt, Sampling.model_validate({"samples": 2} | sampling)))

    return run


def two_phases(thought: str, response: str) -> Callable[[str, int], str]:
    """Writes a thought where the model's turn is empty, and a response behind it."""
    return lambda prompt, _: response if not prompt.endswith("assistant\n") else thought


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    thought=TEXTS,
    ends=st.sampled_from(["<R>", "<R>\n\n", "<R>  tail", ""]),
    response=TEXTS.map(lambda text: "x" + text),
    thought_budget=st.integers(1, 20),
    response_budget=st.integers(1, 20),
)
def test_forced_outputs_hold_together(
    run: Run,
    engine: ScriptedEngine,
    thought: str,
    ends: str,
    response: str,
    thought_budget: int,
    response_budget: int,
) -> None:
    outputs = run(
        MARKED,
        two_phases(thought + ends, response),
        boundary="forced",
        max_thought_tokens=thought_budget,
        max_response_tokens=response_budget,
    )
    assert len(outputs) == 2
    second_phases = [body for body in engine.requests if not body["stop"]]
    assert len(second_phases) == 2
    for output, body in zip(outputs, second_phases, strict=True):
        # The second phase continued exactly the text that the output holds.
        continued = engine.tokenizer.decode(body["prompt"], skip_special_tokens=False)
        own = continued.partition("assistant\n")[2]
        assert output.text.startswith(own)
        at = output.text.index("<R>")
        assert own[: at + 3] == output.text[: at + 3]
        assert own[at + 3 :].strip() == "", "only white space may follow the marker in phase 1"
        assert output.response_start is not None
        assert output.text[output.response_start] != " "
        assert output.thought_tokens <= thought_budget
        assert 1 <= output.response_tokens <= response_budget
        assert output.forced == (not _written(thought + ends, thought_budget))
        assert "\ufffd" not in output.text


def _written(text: str, budget: int) -> bool:
    """Whether a byte tokenizer's model completes the marker within its budget."""
    at = text.find("<R>")
    if at < 0:
        return False
    before = text[:at].encode().replace(b"\n\n", b"\n")  # two line breaks are a single token
    return len(before) + 3 <= budget


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS, budget=st.integers(2, 30))
def test_natural_outputs_are_split_where_the_marker_ends(
    run: Run, engine: ScriptedEngine, text: str, budget: int
) -> None:
    sampling = {"max_thought_tokens": 1, "max_response_tokens": budget - 1}
    for output in run(MARKED, lambda *_: text, boundary="natural", **sampling):
        ids, _ = engine.encode(text)
        generated = min(len(ids) + 1, budget)
        assert output.thought_tokens + output.response_tokens == generated
        assert output.truncated == (len(ids) >= budget)
        if "<R>" not in output.text:
            assert output.response_tokens == 0
            continue
        thought = engine.tokenizer.decode(list(ids[: output.thought_tokens]))
        shorter = engine.tokenizer.decode(list(ids[: output.thought_tokens - 1]))
        assert "<R>" in thought
        assert "<R>" not in shorter


def test_samples_are_as_different_as_their_seeds(run: Run) -> None:
    outputs = run(
        MARKED,
        lambda prompt, seed: f"{'r' if '<R>' in prompt else 't'}{seed}",
        samples=3,
        boundary="forced",
    )
    assert [o.seed for o in outputs] == [7, 8, 9]
    assert [o.text.partition("\n<R>")[0] for o in outputs] == ["t7", "t8", "t9"]
    assert len({o.text.partition("<R>")[2] for o in outputs}) == 3


def test_all_samples_of_a_prompt_are_one_request(run: Run, engine: ScriptedEngine) -> None:
    run(MARKED, lambda *_: "so<R>yes", samples=8, boundary="natural")
    assert [body["n"] for body in engine.requests] == [8]


def test_a_prefilled_marker_is_part_of_the_output_but_not_generated(
    run: Run, engine: ScriptedEngine
) -> None:
    [output] = run(THINK, lambda *_: "hm</think>42", samples=1, boundary="natural")
    prompt = engine.tokenizer.decode(engine.requests[0]["prompt"], skip_special_tokens=False)
    assert prompt.endswith("assistant\n<think>")
    assert output.text == "<think>hm</think>42"
    assert output.thought_tokens == len("hm</think>")
    assert output.response_tokens == len("42") + 1  # with the end token


@pytest.mark.parametrize("begun", ["", "<think>", "<think>\n\n", "so: <think>", "no <think"])
@pytest.mark.parametrize("marker", ["<think>", "思考:"])
def test_what_a_prompt_ends_in_is_seen_and_remembered(
    engine: ScriptedEngine, url: str, begun: str, marker: str
) -> None:
    fmt = ThoughtFormat(name="x", thought_marker=marker, response_marker="<R>", prefill=True)
    begun = begun.replace("<think>", marker)
    engine.script = lambda *_: "42<R>"
    # With a token a byte, a little of the question is looked at as well.
    end = f"Why?{tiny_model.SPECIAL[1]}assistant\n{begun}"

    async def texts() -> list[str]:
        async with EngineClient(url) as client:
            first, second = [await client.tokenize(text + end) for text in ("Oh. ", "So. ")]
            thoughts = await think(client, first, fmt, ONE)
            engine.paths.clear()
            thoughts += await think(client, second, fmt, ONE)
            return [thought.text for thought in thoughts]

    is_begun = begun.rstrip().endswith(marker)
    assert asyncio.run(texts()) == ["42<R>" if is_begun else f"{marker}42<R>"] * 2
    assert engine.paths == ["/v1/completions"]


@pytest.mark.parametrize("boundary", ["natural", "forced"])
def test_special_tokens_of_an_output_are_in_its_text_but_for_its_end(
    run: Run, boundary: str
) -> None:
    """What is trained on is what was generated."""
    special = tiny_model.SPECIAL[0]
    thought, response = f"hm{special}<R>", f"yes{special}no"
    whole = thought + response
    script = (lambda *_: whole) if boundary == "natural" else two_phases(thought, response)
    assert {o.text for o in run(MARKED, script, boundary=boundary)} == {whole}


def test_without_a_thought_everything_is_the_response(run: Run) -> None:
    [output] = run(FORMATS["none"], lambda *_: "  42", samples=1)
    assert (output.thought_tokens, output.response_start) == (0, 2)


def test_a_response_that_has_no_room_left_is_truncated(run: Run, engine: ScriptedEngine) -> None:
    engine.max_model_len = 100
    try:
        [output] = run(
            MARKED,
            lambda *_: "t" * 500,
            samples=1,
            boundary="forced",
            max_thought_tokens=40,
            max_response_tokens=60,
        )
    finally:
        engine.max_model_len = 4096
    assert output.truncated
    assert output.prompt_tokens + output.thought_tokens + output.response_tokens <= 100


@pytest.mark.parametrize(
    ("status", "kind"),
    [(500, EngineFailed), (503, EngineAway), (400, EngineRefused), (404, EngineFailed)],
)
def test_an_engines_own_words_are_in_no_message(
    run: Run, engine: ScriptedEngine, status: int, kind: type[EngineFailed]
) -> None:
    engine.status = status
    try:
        with pytest.raises(kind) as raised:
            run(MARKED, lambda *_: "", boundary="forced")
    finally:
        engine.status = 200
    assert type(raised.value) is kind
    assert "secret" in raised.value.detail
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("boundary", "given_up"), [("natural", "hm"), ("forced", "hm"), ("forced", "yes")]
)
def test_what_the_engine_gives_up_is_no_sample(run: Run, boundary: str, given_up: str) -> None:
    def script(prompt: str, _: int) -> Play:
        text = "hm" if prompt.endswith("assistant\n") else "yes"
        return Play(text, finish="abort" if text == given_up else None)

    with pytest.raises(EngineAway, match="gave a request up"):
        run(MARKED, script, boundary=boundary)


def test_an_engine_that_is_not_there_is_named_away() -> None:
    async def ask() -> None:
        async with EngineClient("http://127.0.0.1:1") as client:
            await client.tokenize("a")

    with pytest.raises(EngineAway):
        asyncio.run(ask())


@pytest.mark.parametrize(
    ("text", "last", "beyond"),
    [
        ("so<R>", "R>\n\n", "\n\n"),
        ("so<R>", ">", ""),
        ("so<R>", ">x", None),
        ("so<R>", "\ufffd>", None),
        ("soaa", "aa ", None),  # an earlier end would look the same
        ("so<R>", "  ", None),
    ],
)
def test_overhang_tells_white_space_behind_a_marker(
    text: str, last: str, beyond: str | None
) -> None:
    assert overhang(text, last) == beyond
