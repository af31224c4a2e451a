"""Model folders from what users have: the bundled model, a GGUF file, a folder."""

import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support import tiny_model
from workers.models.folder import write_probe
from workers.models.unpack import UnpackError, bundled_gguf, origin, unpack
from workers.models.weights import WEIGHTS_SHA256, weights_sha256

pytestmark = pytest.mark.slow


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return tiny_model.write(tmp_path / "tiny")


def test_the_bundled_model_becomes_a_folder_that_loads(bundled: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(bundled)
    assert model.num_parameters() == 134_515_008
    tokenizer = AutoTokenizer.from_pretrained(bundled)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("<|im_start|>assistant\n")
    probe = json.loads((bundled / "probe.json").read_text())
    assert len(probe["logprobs"]) == len(probe["token_ids"]) - 1


def test_unpacking_again_is_finding_it(bundled: Path) -> None:
    before = (bundled / "model.safetensors").stat().st_mtime_ns
    assert unpack("bundled", bundled.parent) == bundled
    assert (bundled / "model.safetensors").stat().st_mtime_ns == before


def with_hostile_files(folder: Path) -> None:
    """Each would lead a library that reads the folder to another model, or to code of its own."""
    elsewhere = {"base_model_name_or_path": str(folder / "elsewhere"), "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(elsewhere))
    code = {"AutoConfig": "own.Config", "AutoTokenizer": ["own.Tokenizer", None]}
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps({"auto_map": code}))
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    (folder / "chat_template.jinja").write_text("not the model's")


def test_a_gguf_file_is_the_same_model_whatever_lies_beside_it(
    bundled: Path, tmp_path: Path
) -> None:
    file = tmp_path / "my model.gguf"
    shutil.copy(bundled_gguf(), file)
    with_hostile_files(tmp_path)
    folder = unpack(str(file), tmp_path / "base")
    weights = [(f / "model.safetensors").read_bytes() for f in (folder, bundled)]
    assert weights[0] == weights[1]
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (folder / name).read_text() == (bundled / name).read_text()
    assert not list(tmp_path.rglob("ran"))


def test_a_folder_is_used_where_it_is(tiny: Path, tmp_path: Path) -> None:
    assert unpack(str(tiny), tmp_path / "base") == tiny
    assert (tiny / "probe.json").exists()


def test_a_probe_of_other_weights_is_not_kept(tiny: Path, tmp_path: Path) -> None:
    """As in a copy of a checkpoint that was merged with something since."""
    write_probe(tiny)
    (tiny / WEIGHTS_SHA256).write_text(weights_sha256(tiny))
    of_tiny = (tiny / "probe.json").read_text()
    unpack(str(tiny), tmp_path / "base")
    assert (tiny / "probe.json").read_text() == of_tiny
    merged = tiny_model.changed(tiny, tmp_path / "merged")
    shutil.copy(tiny / "probe.json", merged)
    unpack(str(merged), tmp_path / "base")
    assert (merged / "probe.json").read_text() != of_tiny


def test_a_folder_made_by_another_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "bundled").mkdir()
    with pytest.raises(UnpackError, match="not made by a registration"):
        unpack("bundled", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "no .safetensors"),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "no tokenizer that can be read"),
        (lambda f: (f / "chat_template.jinja").unlink(), "no chat template"),
        (
            lambda f: (f / "chat_template.jinja").write_text("<|start|>assistant<|channel|>final"),
            "thoughts in channels",
        ),
    ],
)
def test_an_incomplete_folder_is_refused_by_what_it_lacks(
    tiny: Path, change: object, message: str
) -> None:
    assert callable(change)
    change(tiny)
    with pytest.raises(UnpackError, match=message):
        unpack(str(tiny), tiny.parent)


def test_a_hub_model_is_fetched_once_a_commit(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest, fetched = ["a" * 40], []

    def download(_: str, *, revision: str, local_dir: Path, **__: object) -> None:
        fetched.append(revision)
        shutil.copytree(tiny, local_dir, dirs_exist_ok=True)

    monkeypatch.setattr(HfApi, "model_info", lambda *_: SimpleNamespace(sha=newest[0]))
    monkeypatch.setattr("workers.models.unpack.snapshot_download", download)
    first, again = (unpack("some/model", tmp_path / "base") for _ in range(2))
    assert first == again
    newest[0] = "b" * 40
    second = unpack("some/model", tmp_path / "base")
    assert fetched == ["a" * 40, "b" * 40]
    for folder, commit in ((first, "a" * 40), (second, "b" * 40)):
        assert origin(folder) == {"source": "some/model", "commit": commit}


def test_a_disk_that_a_download_fills_is_not_the_models_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(HfApi, "model_info", lambda *_: SimpleNamespace(sha="a" * 40))
    monkeypatch.setattr("workers.models.unpack.snapshot_download", download)
    with pytest.raises(OSError, match="No space left"):
        unpack("some/model", tmp_path / "base")
    assert list((tmp_path / "base").iterdir()) == []


def test_what_is_no_model_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF or not")
    with pytest.raises(UnpackError, match="cannot be read as a GGUF model"):
        unpack(str(tmp_path / "broken.gguf"), tmp_path / "base")
    with pytest.raises(UnpackError, match="neither a folder nor a"):
        unpack(str(tmp_path / "nothing"), tmp_path / "base")
    with pytest.raises(UnpackError, match="is not a file"):
        unpack(str(tmp_path / "nothing.gguf"), tmp_path / "base")
    for unfindable in ("~nobody-of-this-name/model", f"/{'x' * 300}"):
        with pytest.raises(UnpackError, match="cannot be looked up"):
            unpack(unfindable, tmp_path / "base")
    with pytest.raises(UnpackError, match="is no folder, GGUF file or Hub id"):
        unpack("not a model!", tmp_path / "base")
    with pytest.raises(UnpackError, match="cannot be fetched"):
        unpack("nobody/nothing", tmp_path / "base")
    assert list((tmp_path / "base").glob("*")) == []
