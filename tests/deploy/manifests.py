"""The files that deploy the platform, as data: compose, Dockerfile, and the overlays of k8s/.

`build` does what `kubectl kustomize` does, as far as k8s/ uses it, and refuses what it does not
know.
"""

import copy
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml

Object = dict[str, Any]
ROOT = Path(__file__).parents[2]
OVERLAYS = ("single-gpu", "multi-node")
_KNOWN = {
    "apiVersion", "kind", "resources", "components", "patches", "namespace", "images",
    "configMapGenerator",
}  # fmt: skip
_MERGE_KEYS = {
    **dict.fromkeys(("containers", "env", "volumes"), "name"),
    "volumeMounts": "mountPath",
    "ports": "containerPort",
}
"""Lists that a strategic merge patch merges item by item; others it replaces."""


@cache
def compose() -> Object:
    return cast("Object", yaml.safe_load((ROOT / "docker-compose.yml").read_text()))


@cache
def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text()


@cache
def overlay(name: str) -> list[Object]:
    return build(ROOT / "k8s" / "overlays" / name)


@cache
def monitoring() -> list[Object]:
    return build(ROOT / "k8s" / "monitoring")


def of_kind(objects: list[Object], *kinds: str) -> Iterator[Object]:
    return (found for found in objects if found["kind"] in kinds)


def name_of(found: Object) -> str:
    return str(found["metadata"]["name"])


def pods(objects: list[Object]) -> dict[str, Object]:
    """Pod templates by the name of what makes them."""
    makers = of_kind(objects, "Deployment", "StatefulSet", "Job")
    return {name_of(maker): maker["spec"]["template"] for maker in makers}


def container(pod: Object) -> Object:
    (only,) = pod["spec"]["containers"]
    return cast("Object", only)


def build(folder: Path, inherited: list[Object] | None = None) -> list[Object]:
    """The objects of a kustomization; of a component, of those `inherited` with its own."""
    config = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert config.keys() <= _KNOWN, f"not known here: {config.keys() - _KNOWN}"
    objects = inherited or []
    for path in config.get("resources", []):
        objects += _read(folder / path)
    objects += [_generated(given, folder) for given in config.get("configMapGenerator", [])]
    for path in config.get("components", []):
        objects = build(folder / path, objects)
    for patch in config.get("patches", []):
        _patch(objects, patch, folder)
    for found in objects:
        if "namespace" in config and found["kind"] != "Namespace":
            found["metadata"]["namespace"] = config["namespace"]
    for image in config.get("images", []):
        for pod in pods(objects).values():
            if container(pod)["image"] == image["name"]:
                container(pod)["image"] += f":{image['newTag']}"
    return objects


def _read(path: Path) -> list[Object]:
    return build(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))


def _generated(given: Object, folder: Path) -> Object:
    """A ConfigMap of files, by their names."""
    assert given["options"]["disableNameSuffixHash"] is True
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": given["name"], "labels": given["options"]["labels"]},
        "data": {name: (folder / name).read_text() for name in given["files"]},
    }


def _patch(objects: list[Object], patch: Object, folder: Path) -> None:
    change = yaml.safe_load((folder / patch["path"]).read_text())
    if "target" in patch:
        chosen = [found for found in objects if _selected(found, patch["target"])]
    else:
        named = (change["kind"], name_of(change))
        chosen = [found for found in objects if (found["kind"], name_of(found)) == named]
    assert chosen, f"{patch['path']} changes nothing"
    for found in chosen:
        for section in change.keys() - {"apiVersion", "kind", "metadata"}:
            found[section] = _merged(found[section], change[section], section)


def _selected(found: Object, target: Object) -> bool:
    """By `key=value` or `key in (one, other)`."""
    assert target.keys() == {"labelSelector"}
    match = re.fullmatch(r"(\w+)(?:=(\w+)| in \(([\w, ]+)\))", target["labelSelector"])
    assert match is not None
    values = {match[2]} if match[2] else set(re.split(", *", match[3]))
    return found["metadata"].get("labels", {}).get(match[1]) in values


def _merged(old: Any, new: Any, name: str) -> Any:
    """What a strategic merge patch makes of a value; items that are new come first."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {key: _merged(old.get(key), value, key) for key, value in new.items()}
    if isinstance(old, list) and name in _MERGE_KEYS:
        key = _MERGE_KEYS[name]
        changes = {item[key]: item for item in copy.deepcopy(new)}
        rest = [_merged(item, changes.pop(item[key], {}), "") for item in old]
        return [*changes.values(), *rest]
    return copy.deepcopy(new)
