"""A real vLLM server: weights are swapped in place, and nothing goes on with other ones."""

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import httpx2
import pytest

from services.cli.machine.ports import port_of, reserve
from shared.settings import get_settings
from tests.support import tiny_model
from tests.support.waiting import until
from workers.engine.admin import EngineAdmin, EngineStartError
from workers.engine.engine import ManagedEngine

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(400)]


@contextmanager
def real_engine(folder: Path, engine_args: str, **env: str) -> Iterator[ManagedEngine]:
    with pytest.MonkeyPatch.context() as patch, reserve() as port:
        patch.setenv("FORETHOUGHT_LOG_DIR", str(folder))
        patch.setenv("FORETHOUGHT_MAX_MODEL_LEN", "512")
        patch.setenv("FORETHOUGHT_ENGINE_ARGS", engine_args)
        for name, value in env.items():
            patch.setenv(name, value)
        get_settings.cache_clear()
        engine = ManagedEngine(port_of(port), "engine")
        try:
            yield engine
        finally:
            engine.close()
            get_settings.cache_clear()


@pytest.fixture(scope="module")
def engine(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagedEngine]:
    """Serves the bundled model to one request at a time."""
    folder = tmp_path_factory.mktemp("engine")
    # A machine need not have a compiler, nor any other tool but what vLLM asks for its cores.
    lscpu = shutil.which("lscpu")
    assert lscpu is not None
    (folder / "bin").mkdir()
    (folder / "bin" / "lscpu").symlink_to(lscpu)
    with real_engine(folder, "--max-num-seqs 1", PATH=str(folder / "bin")) as engine:
        engine.ensure(tiny_model.weights(bundled))
        yield engine


def test_an_engine_that_does_not_start_shows_its_last_lines(bundled: Path, tmp_path: Path) -> None:
    with (
        real_engine(tmp_path, "--no-such-flag") as engine,
        pytest.raises(EngineStartError, match=r"(?s)exited with 2.*--no-such-flag"),
    ):
        engine.ensure(tiny_model.weights(bundled))


def test_weights_are_swapped_in_place(engine: ManagedEngine, bundled: Path, tmp_path: Path) -> None:
    other = tiny_model.changed(bundled, tmp_path / "other")
    for folder in (bundled, other, bundled):
        engine.ensure(tiny_model.weights(folder))
        label = httpx2.get(f"{engine.url}/weight_info").json()["weight_version"]
        assert label == tiny_model.weights(folder).sha256
    assert engine.starts == 1
    engine.check(20)


def test_what_waits_behind_a_swap_does_not_go_on_with_other_weights(
    engine: ManagedEngine, bundled: Path, tmp_path: Path
) -> None:
    other = tiny_model.changed(bundled, tmp_path / "other")
    body = {"prompt": "Once", "max_tokens": 60, "ignore_eos": True, "temperature": 0}

    def ask() -> str:
        answer = httpx2.post(f"{engine.url}/v1/completions", json=body, timeout=120)
        return str(answer.json()["choices"][0]["finish_reason"])

    with ThreadPoolExecutor() as pool, closing(EngineAdmin(engine.url)) as admin:
        under_way = pool.submit(ask)
        until(lambda: not engine.idle(), "it runs")
        waiting = pool.submit(ask)
        time.sleep(1)
        admin.swap(str(other), "other")
        assert under_way.result() == "length"
        assert waiting.result() == "abort"
        admin.swap(str(bundled), tiny_model.weights(bundled).sha256)  # as it was
