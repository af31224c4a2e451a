"""What pods ask a node for, and what they may take of it."""

import re

import pytest

from shared.settings import Settings
from tests.deploy.manifests import OVERLAYS, ROOT, Object, container, of_kind, overlay, pods
from tests.deploy.test_agreement import SERVICES, in_overlay, module

UNITS = {"": 1.0, "m": 1e-3, "Mi": 2.0**20, "Gi": 2.0**30}
JSON_GROWS = 25
"""A body of empty lists, once parsed."""
LARGEST_AT_ONCE = 2
OF_A_SERVICE, OF_A_WORKER = 24, 10
"""Connections at most: a pool and those beside it (`shared.db.engine`); threads, stages."""
WORKERS = 64
DOCS = (ROOT / "docs" / "operate.md").read_text()
DEFAULTS = Settings.model_construct()


def quantity(text: str) -> float:
    found = re.fullmatch(r"(\d+)(\w*)", text)
    assert found is not None
    return int(found[1]) * UNITS[found[2]]


def resource(found: Object, kind: str, name: str) -> float:
    return quantity(found["resources"][kind][name])


@pytest.mark.parametrize("name", OVERLAYS)
def test_services_have_memory_for_the_largest_bodies(name: str) -> None:
    needed = LARGEST_AT_ONCE * JSON_GROWS * DEFAULTS.max_body_bytes
    for found in in_overlay(name).values():
        if module(found) in SERVICES:
            itself = resource(found, "requests", "memory")
            assert itself + needed <= resource(found, "limits", "memory")


def test_one_node_has_what_the_overlay_for_it_asks() -> None:
    makers = list(of_kind(overlay("single-gpu"), "Deployment", "StatefulSet", "Job"))
    asked = {
        what: sum(
            maker["spec"].get("replicas", 1)
            * resource(container(maker["spec"]["template"]), "requests", what)
            for maker in makers
        )
        for what in ("cpu", "memory")
    }
    cpus, gib = f"{asked['cpu']:.1f}", f"{asked['memory'] / 2**30:.1f}"
    assert f"All pods together ask for {cpus} CPUs and {gib}Gi" in DOCS
    # Of 8 CPUs and 32 GB (29.8Gi) a node keeps some for itself and its own pods.
    assert asked["cpu"] <= 7
    assert asked["memory"] <= 26 * 2**30


def test_postgres_takes_the_connections_of_all_there_may_be() -> None:
    services = sum(
        found["spec"]["replicas"]
        for found in of_kind(overlay("multi-node"), "Deployment")
        if found["metadata"].get("labels", {}).get("part") == "api"
    )
    arguments = " ".join(container(pods(overlay("multi-node"))["postgres"])["args"])
    (taken,) = re.findall(r"max_connections=(\d+)", arguments)
    assert services * OF_A_SERVICE + WORKERS * OF_A_WORKER <= int(taken)
