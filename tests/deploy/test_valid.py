"""Each file is what its reader takes: Docker Compose, Kubernetes, kustomize."""

import shutil
import subprocess
import sys
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy.manifests import OVERLAYS, ROOT, Object, build, monitoring, name_of, overlay

KUBERNETES = "1.37"
OF_OPERATORS = {"keda.sh/v1alpha1", "monitoring.coreos.com/v1"}


def test_compose_follows_its_specification() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "check_jsonschema"]
    file = str(ROOT / "docker-compose.yml")
    done = subprocess.run(
        [*command, "--builtin-schema", "vendor.compose-spec", file], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("objects", [*map(overlay, OVERLAYS), monitoring()])
def test_kubernetes_takes_every_object(objects: list[Object]) -> None:
    """Strictly: a key that it does not know is an error. Kinds of operators it knows not at all;
    `test_scaling.py` and `test_monitoring.py` look at these."""
    for found in objects:
        if found["apiVersion"] not in OF_OPERATORS:
            kubernetes_validate.validate(found, KUBERNETES, strict=True)


def test_a_wrong_key_would_be_found() -> None:
    wrong = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "dta": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("name", [*(f"overlays/{name}" for name in OVERLAYS), "monitoring"])
def test_kustomize_builds_what_these_tests_read(name: str) -> None:
    command = ["kubectl", "kustomize", str(ROOT / "k8s" / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert _by_name(yaml.safe_load_all(done.stdout)) == _by_name(build(ROOT / "k8s" / name))


def _by_name(objects: Any) -> dict[tuple[str, str], Any]:
    return {(found["kind"], name_of(found)): found for found in objects}
