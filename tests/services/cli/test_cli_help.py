"""The command as a person meets it."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli.machine.datadir import DataDir
from services.cli.main import app

runner = CliRunner()
COMMANDS = ("up", "demo", "iterate", "cancel", "resume", "report", "chat", "prune", "doctor")
EXPORTS = ("alpaca-eval", "arena-hard", "preferences")


def test_help_lists_the_commands() -> None:
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in (*COMMANDS, "export"):
        assert f" {command} " in result.output


@pytest.mark.parametrize("command", [[c] for c in COMMANDS] + [["export", e] for e in EXPORTS])
def test_each_command_has_help(command: list[str]) -> None:
    result = runner.invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "--data-dir" in result.output


def test_version_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "services.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == version("forethought")


def test_a_client_without_a_platform_says_how_to_start_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORETHOUGHT_COORDINATOR_URL", "http://127.0.0.1:1")
    config = tmp_path / "config.yaml"
    config.write_text("name: x")
    result = runner.invoke(app, ["iterate", "-f", str(config)])
    assert result.exit_code == 1
    assert "no platform answers at http://127.0.0.1:1" in result.output
    assert "forethought up" in result.output


def test_a_config_that_is_no_mapping_is_an_error(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("- a\n- b\n")
    result = runner.invoke(app, ["iterate", "-f", str(config)])
    assert result.exit_code == 1
    assert "expected a mapping of settings" in result.output


def test_a_data_folder_is_for_one_platform(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "data")
    assert data.running_url() is None
    with data.locked():
        data.announce("http://127.0.0.1:4321")
        assert data.running_url() == "http://127.0.0.1:4321"
        result = runner.invoke(app, ["up", "--data-dir", str(data.root)])
    assert result.exit_code == 1
    assert "already runs" in result.output
    assert "http://127.0.0.1:4321" in result.output
    assert data.running_url() is None
