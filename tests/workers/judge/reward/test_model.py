"""The reward model judge on tiny real models, by transformers and by vLLM."""

import errno
import json
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from shared.db.tables import Completion
from shared.schemas.judges import RewardModelSpec
from shared.schemas.requests import JudgeItem
from shared.settings import Settings
from tests.support import reward_models, tiny_model
from workers.generate.prompts import ShardPrompt
from workers.judge import items as judge_items
from workers.judge.kinds import CannotJudge, JudgeContext, make_judge
from workers.judge.reward import model as reward_model
from workers.judge.reward import runners as reward_runners
from workers.judge.reward import source as reward_source
from workers.judge.reward.model import RewardModel
from workers.judge.reward.runners import TransformersRunner, batches, float32_head, gpu_share
from workers.judge.reward.source import Source, open_source
from workers.leases import StageError

CONTEXT = 256
END = 2
"""The tiny tokenizer's end of turn, with which it also pads."""
ENDS_IN_END = tiny_model.TEMPLATE.replace("<|im_end|>\n{% endfor %}", "<|im_end|>{% endfor %}")
HEAD_DIM = 32
"""The smallest that vLLM's attention on a CPU takes."""
CUSTOM = """
import types
from transformers import LlamaConfig, LlamaForSequenceClassification

class Gated(LlamaForSequenceClassification):
    def forward(self, *args, **kwargs):
        logits = super().forward(*args, **kwargs).logits
        return types.SimpleNamespace(logits=logits, score=logits[:, 1] * 100)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reward_models.write_tiny(tmp_path_factory.mktemp("reward") / "tiny")


def spec_of(folder: Path | str, **fields: Any) -> RewardModelSpec:
    return RewardModelSpec.model_validate(
        {"kind": "reward_model", "model": str(folder), "runner": "transformers", **fields}
    )


def judge_of(folder: Path | str, **fields: Any) -> RewardModel:
    return RewardModel(spec_of(folder, **fields), JudgeContext(uuid.uuid4()))


def items(*responses: str) -> list[JudgeItem]:
    return [JudgeItem(instruction="Say it.", response=response) for response in responses]


MIXED = items(*("x" * n + str(n) for n in (40, 3, 150, 0, 77, 3, 120, 9, 60)))


def alone(folder: Path, chats: list[list[int]]) -> list[float]:
    """As a model card does it: one chat at a time, nothing padded."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return [model(torch.tensor([chat])).logits.item() for chat in chats]


def values(judge: RewardModel, of: list[JudgeItem]) -> list[float | None]:
    return [score.value for score in judge.score(of)]


def rendered(folder: Path, of: list[JudgeItem]) -> list[list[int]]:
    """The chats' ids, by other means than the judge's."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [
        tokenizer.apply_chat_template(
            [
                {"role": "user", "content": item.instruction},
                {"role": "assistant", "content": item.response},
            ],
            return_dict=False,
        )
        for item in of
    ]


@pytest.mark.parametrize("batch_tokens", [128, 600, 16_384])
def test_a_batch_scores_as_each_alone_and_in_order(folder: Path, batch_tokens: int) -> None:
    found = values(judge_of(folder, batch_tokens=batch_tokens), MIXED)
    assert found == pytest.approx(alone(folder, rendered(folder, MIXED)), abs=1e-4)
    assert len({round(v, 5) for v in found if v is not None}) > 5


@pytest.mark.parametrize("pad", [None, END, -1])
@pytest.mark.parametrize("template", [tiny_model.TEMPLATE, ENDS_IN_END])
def test_whatever_a_model_pads_with(tmp_path: Path, pad: int | None, template: str) -> None:
    model = reward_models.write_tiny(tmp_path / "tiny", pad_token_id=pad)
    (model / "chat_template.jinja").write_text(template)
    found = values(judge_of(model), MIXED)
    assert found == pytest.approx(alone(model, rendered(model, MIXED)), abs=1e-4)


def test_a_bos_of_the_template_stays_the_only_one(tmp_path: Path) -> None:
    model = reward_models.write_tiny(tmp_path / "tiny")
    layout = json.loads((model / "tokenizer.json").read_text())
    bos = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    layout["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
        },
    }
    (model / "tokenizer.json").write_text(json.dumps(layout))
    (model / "chat_template.jinja").write_text("<|endoftext|>" + tiny_model.TEMPLATE)
    source = open_source(spec_of(model))
    assert source.tokenizer("x")["input_ids"][0] == 0  # or this would show nothing
    [chat] = source.chats(items("yes"))
    assert chat.count(0) == 1


@pytest.mark.parametrize("batch_tokens", [1, 128, 300, 10_000])
def test_batches_keep_to_their_budget(batch_tokens: int) -> None:
    lengths = [40, 3, 150, 1, 77, 3, 120, 9, 60, 129]
    found = list(batches(lengths, batch_tokens))
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    in_order = [lengths[i] for batch in found for i in batch]
    assert in_order == sorted(lengths, reverse=True)
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= batch_tokens


def test_forward_passes_keep_to_the_budget(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = spied(monkeypatch, lambda chats: (len(chats), max(map(len, chats))))
    judge_of(folder, batch_tokens=400).score(MIXED)
    assert len(shapes) > 1
    assert all(rows == 1 or rows * width <= 400 for rows, width in shapes)


def spied(monkeypatch: pytest.MonkeyPatch, see: Callable[[list[list[int]]], Any]) -> list[Any]:
    seen = []
    forward = TransformersRunner._forward

    def watched(self: TransformersRunner, chats: list[list[int]]) -> list[float]:
        seen.append(see(chats))
        scores: list[float] = forward(self, chats)
        return scores

    monkeypatch.setattr(TransformersRunner, "_forward", watched)
    return seen


def test_what_is_longer_than_the_context_is_not_cut(folder: Path) -> None:
    room = CONTEXT - len(rendered(folder, items(""))[0])
    short, full, long = judge_of(folder).score(items("x", "x" * room, "x" * (room + 1)))
    assert short.value is not None
    assert full.value is not None
    assert (long.value, long.details) == (None, {"reason": "too_long"})


def test_no_number_is_no_score(tmp_path: Path) -> None:
    model = reward_models.write_tiny(tmp_path / "tiny")
    tensors = load_file(model / "model.safetensors")
    tensors["score.weight"] = tensors["score.weight"] * float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    [score] = judge_of(model).score(items("x"))
    assert (score.value, score.details) == (None, {"reason": "not_finite"})


def test_it_is_given_instruction_and_response_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thought = "CANARY is what I think. <R>"
    prompt = ShardPrompt(0, None, "Say it.", [])
    completion = Completion(output=f"{thought}Yes.", response_start=len(thought), prompt_index=0)
    seen = spied(monkeypatch, list)
    judge_of(folder).score([judge_items._item(prompt, completion)])
    [[chat]] = seen
    assert AutoTokenizer.from_pretrained(folder).decode(chat) == (
        "<|im_start|>user\nSay it.<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
    )


def test_the_model_is_loaded_once_and_only_when_needed(folder: Path) -> None:
    judge = judge_of(folder)
    assert judge.score([]) == []
    assert judge._runner is None
    assert judge.versions() == {"judge": "reward_model/1", "judge_model": str(folder)}
    judge.score(MIXED)
    runner = judge._runner
    judge.score(MIXED)
    assert judge._runner is runner is not None


def test_lineage(folder: Path) -> None:
    judge = make_judge(spec_of(folder), JudgeContext(uuid.uuid4()))
    judge.score(items("x"))
    versions = judge.versions()
    assert versions.pop("runner").startswith("transformers ")
    assert len(versions.pop("weights_sha256")) == 64
    assert versions == {"judge": "reward_model/1", "judge_model": str(folder), "dtype": "float32"}


def test_the_head_of_a_bfloat16_model_computes_in_float32(folder: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16).eval()
    float32_head(model)
    with torch.inference_mode():
        logits = model(torch.tensor([[5, 6, 7]])).logits
    assert logits.dtype == torch.float32
    assert (logits != logits.bfloat16()).all()


class TestRefusals:
    def refuses(self, model: Path | str, match: str, **fields: Any) -> None:
        with pytest.raises(CannotJudge, match=match):
            judge_of(model, **fields).score(items("x"))

    def test_no_folder_and_no_id(self, tmp_path: Path) -> None:
        self.refuses(tmp_path / "none", "none is not a folder")
        self.refuses("a/b/c", "neither a folder nor a Hugging Face id")

    def test_an_id_that_is_not_in_the_cache_of_a_worker_offline(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        self.refuses("nobody/nothing", "nothing at its newest commit is not in the cache")

    def test_an_id_that_the_hub_does_not_know(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def unknown(*_: object, **__: object) -> None:
            request = httpx2.Request("GET", "https://huggingface.co")
            raise RepositoryNotFoundError("404", response=httpx2.Response(404, request=request))

        monkeypatch.setattr(reward_source, "snapshot_download", unknown)
        self.refuses("nobody/nothing", "the Hub has no nobody/nothing")

    def test_a_hub_that_does_not_answer_may_answer_later(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def away(*_: object, **__: object) -> None:
            raise httpx2.ConnectError("no route")

        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(reward_source, "snapshot_download", away)
        with pytest.raises(StageError, match="cannot be fetched") as caught:
            judge_of("nobody/nothing").score(items("x"))
        assert caught.value.retry

    def test_a_disk_that_a_download_fills_is_not_the_hubs_fault(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(reward_source, "snapshot_download", full)
        with pytest.raises(OSError, match="No space left"):
            judge_of("nobody/nothing").score(items("x"))

    def test_a_revision_of_a_folder(self, folder: Path) -> None:
        self.refuses(folder, "has no revisions", revision="main")

    def test_several_labels(self, tmp_path: Path) -> None:
        body = tiny_model.write(tmp_path / "body")
        self.refuses(body, "has 2 labels")

    def test_a_head_that_nobody_trained(self, tmp_path: Path) -> None:
        body = tiny_model.write(tmp_path / "body")
        change_config(body, id2label={"0": "x"})
        self.refuses(body, r"lack score\.weight")

    def test_no_chat_template(self, tmp_path: Path) -> None:
        model = reward_models.write_tiny(tmp_path / "tiny")
        (model / "chat_template.jinja").unlink()
        self.refuses(model, "has no chat template")

    def test_a_template_that_takes_no_such_chat(self, tmp_path: Path) -> None:
        model = reward_models.write_tiny(tmp_path / "tiny")
        (model / "chat_template.jinja").write_text("{{ raise_exception('no roles') }}")
        self.refuses(model, "takes no such chat: no roles")

    def test_pickled_weights(self, tmp_path: Path) -> None:
        model = reward_models.write_tiny(tmp_path / "tiny")
        torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
        (model / "model.safetensors").unlink()
        self.refuses(model, r"pytorch_model\.bin may be a pickle")

    def test_code_of_its_own(self, tmp_path: Path) -> None:
        self.refuses(custom(tmp_path), "trust_remote_code: true")

    def test_code_that_the_operator_does_not_allow(self, tmp_path: Path) -> None:
        self.refuses(custom(tmp_path), "FORETHOUGHT_REMOTE_CODE", trust_remote_code=True)


def change_config(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def custom(tmp_path: Path) -> Path:
    model = reward_models.write_tiny(tmp_path / "gated", num_labels=3)
    (model / "gated.py").write_text(CUSTOM)
    change_config(model, auto_map={"AutoModelForSequenceClassification": "gated.Gated"})
    return model


def test_trusted_code_says_its_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    model = custom(tmp_path)
    allowed = Settings(remote_code=f"another/model {model}")
    monkeypatch.setattr("shared.schemas.judge_permissions.get_settings", lambda: allowed)
    judge = judge_of(model, trust_remote_code=True, runner="auto")
    found = values(judge, MIXED)
    plain = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = [plain(torch.tensor([chat])).logits[0, 1] for chat in rendered(model, MIXED)]
    assert found == pytest.approx([100 * logit.item() for logit in logits], abs=1e-2)


class Scripted:
    """A runner that has too little memory for a batch of more tokens than `room`."""

    version, dtype, longest = "scripted", "float32", CONTEXT
    room = 0
    opened: list[int]

    def __init__(self, _: Source, batch_tokens: int) -> None:
        self.opened.append(batch_tokens)
        self.batch_tokens = batch_tokens

    def scores(self, chats: list[list[int]]) -> list[float]:
        if self.batch_tokens > self.room:
            raise torch.OutOfMemoryError("out of memory")
        return [1.0 for _ in chats]

    def close(self) -> None:
        pass


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> type[Scripted]:
    Scripted.opened = []
    monkeypatch.setitem(reward_runners.RUNNERS, "transformers", Scripted)
    return Scripted


def test_a_batch_too_large_for_memory_is_halved_once(
    folder: Path, scripted: type[Scripted]
) -> None:
    scripted.room = 512
    judge = judge_of(folder, batch_tokens=1024)
    assert values(judge, MIXED) == [1.0] * len(MIXED)
    assert values(judge, MIXED) == [1.0] * len(MIXED)
    assert scripted.opened == [1024, 512]
    scripted.room = 511
    with pytest.raises(CannotJudge, match="out of memory with 512 tokens in a batch"):
        judge.score(MIXED)


def test_auto_falls_back_and_says_so(
    folder: Path, scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("no kernel for it")

    first, second = reward_model.AUTO
    scripted.room = CONTEXT * 1000
    monkeypatch.setitem(reward_runners.RUNNERS, first, broken)
    monkeypatch.setitem(reward_runners.RUNNERS, second, Scripted)
    judge = judge_of(folder, runner="auto")
    assert values(judge, items("x")) == [1.0]
    assert judge.versions()["runner"] == "scripted"
    with pytest.raises(CannotJudge, match=f"{first} cannot load .*: no kernel for it"):
        judge_of(folder, runner=first).score(items("x"))


@pytest.mark.vllm
def test_vllm_scores_as_transformers(tmp_path: Path) -> None:
    """Of a chat as long as the context, too, and where chats end in what is padding."""
    model = reward_models.write_tiny(tmp_path / "tiny", pad_token_id=END, head_dim=HEAD_DIM)
    (model / "chat_template.jinja").write_text(ENDS_IN_END)
    room = CONTEXT - len(rendered(model, items(""))[0]) + 1  # its end is not computed
    of = [*MIXED, *items("x" * room, "x" * (room + 1))]
    # vLLM keeps threads and environment of the process that it runs in.
    done = subprocess.run(
        [sys.executable, "-m", "tools.bench.reward_side", "vllm", str(model)],
        input=json.dumps([item.model_dump() for item in of]) + "\n",
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)["scores"]
    expected = values(judge_of(model), of)
    assert found[:-1] == pytest.approx(expected[:-1], abs=1e-2)
    assert found[-1] is expected[-1] is None


@pytest.mark.parametrize(
    ("engine_args", "share"),
    [("", 0.85), ("--enforce-eager --gpu-memory-utilization 0.6", 0.55), ("--seed=1", 0.85)],
)
def test_a_judge_keeps_to_its_workers_share_of_the_gpu(engine_args: str, share: float) -> None:
    assert gpu_share(engine_args) == pytest.approx(share)
