"""Hostile model folders, and what registering one answers."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.thinking.formats import NONE, SPECIFIC, THINK
from tests.support import tiny_model
from workers.leases import StageError
from workers.models import register
from workers.models.files import ModelFolderError, check_files
from workers.models.unpack import UnpackError, unpack


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "model")


class Exploit:
    """What unpickling it does."""

    def __init__(self, ran: Path) -> None:
        self._ran = ran

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self._ran),)


def change_config(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def linked_out(folder: Path) -> None:
    secret = folder.parent / "secret.json"
    secret.write_text("{}")
    (folder / "added_tokens.json").symlink_to(secret)


def linked_out_below(folder: Path) -> None:
    (folder / "additional_chat_templates").symlink_to(folder.parent)


def renamed_pickle(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Exploit(folder / "ran")))


def with_pickle(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Exploit(folder / "ran")))


def only_pickle(folder: Path) -> None:
    with_pickle(folder)
    (folder / "model.safetensors").unlink()


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/model"}')


def own_code(folder: Path) -> None:
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(folder / 'ran')!r})\n")
    change_config(folder, auto_map={"AutoModelForCausalLM": "evil.Model"}, model_type="evil")


def own_tokenizer(folder: Path) -> None:
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(folder / 'ran')!r})\n")
    settings = {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "tokenizer_class": "Evil"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


HOSTILE = [
    (linked_out, "added_tokens.json is a link that leads out"),
    (linked_out_below, "additional_chat_templates is a link that leads out"),
    (renamed_pickle, "model.safetensors cannot be read as safetensors"),
    (with_pickle, "pytorch_model.bin may be a pickle"),
    (only_pickle, "pytorch_model.bin may be a pickle"),
    (adapter, "makes this an adapter"),
    (own_code, "code of its own"),
    (own_tokenizer, "no tokenizer that can be read"),
    (lambda f: change_config(f, attn_implementation="evil/kernel"), "wants code from elsewhere"),
    (lambda f: change_config(f, text_config={"_attn_implementation": "evil/kernel"}), "evil"),
    (
        lambda f: change_config(f, attn_implementation={"": "evil/kernel"}),
        "evil/kernel",
    ),
    (lambda f: change_config(f, parts=[{"attn_implementation": "evil/kernel"}]), "evil/kernel"),
    (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
    (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json is not JSON"),
    (lambda f: (f / "config.json").write_text("[]"), "config.json is not an object"),
]


def of_no_known_kind(folder: Path) -> None:
    change_config(folder, model_type="nobody-knows")


def of_another_shape(folder: Path) -> None:
    change_config(folder, hidden_size=64)


@pytest.mark.parametrize("change", [of_no_known_kind, of_another_shape])
def test_weights_that_do_not_load_are_the_sources_fault(
    model: Path, change: Callable[[Path], None]
) -> None:
    change(model)
    with pytest.raises(UnpackError, match="cannot be loaded as a language model"):
        unpack(str(model), model.parent / "base")


@pytest.mark.parametrize(("change", "message"), HOSTILE)
def test_a_hostile_folder_is_refused_and_runs_nothing(
    model: Path, change: Callable[[Path], object], message: str
) -> None:
    change(model)
    with pytest.raises(UnpackError, match=message):
        unpack(str(model), model.parent / "base")
    assert not (model / "ran").exists()
    assert not (model / "probe.json").exists()


def test_a_link_in_a_circle_ends(model: Path) -> None:
    (model / "again").symlink_to(model)
    check_files(model)


def test_a_snapshot_in_the_hubs_cache_is_links_to_its_blobs(model: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--some--model"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    blobs = repository / "blobs"
    shutil.move(model, blobs)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(Path("../../blobs") / blob.name)
    check_files(snapshot)
    (snapshot / "more.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ModelFolderError, match=r"more\.json is a link that leads out"):
        check_files(snapshot)


def test_what_nobody_reads_may_be_there(model: Path) -> None:
    (model / "original").mkdir()
    (model / "original" / "consolidated.00.pth").write_bytes(b"")
    check_files(model)


def templated(model: Path, opens: str) -> Path:
    """A model whose template knows thoughts, and begins the turn with `opens`."""
    file = model / "chat_template.jinja"
    template = file.read_text().replace(
        "assistant\n{% endif %}", "assistant\n" + opens + "{% endif %}"
    )
    file.write_text("{# drops what stands before </think> #}" + template)
    return model


def test_a_native_thinker_is_told_by_its_template(whole: Path, model: Path) -> None:
    assert register._format(whole, None) is None
    assert register._format(templated(model, ""), None) == THINK.model_dump()
    assert register._format(model, SPECIFIC.model_dump()) == SPECIFIC.model_dump()


def test_what_begins_each_turn_with_a_thought_has_no_other_format(model: Path) -> None:
    templated(model, "<think>\n")
    assert register._format(model, THINK.model_dump()) == THINK.model_dump()
    with pytest.raises(StageError, match=r"thought_format.*begins each turn"):
        register._format(model, NONE.model_dump())
