"""The code, its documentation, the dashboard, the alerts and the monitors say the same."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric

from services.chat import metrics as chat
from services.coordinator.operations.metrics import Record
from shared.web import app
from tests.deploy.manifests import (
    OVERLAYS,
    ROOT,
    Object,
    compose,
    container,
    dockerfile,
    monitoring,
    name_of,
    of_kind,
    overlay,
    pods,
)
from tests.deploy.test_agreement import PORT, SERVICES, in_overlay, module
from tests.deploy.test_network import chosen
from workers.engine import metrics as engine_metrics

FOLDER = ROOT / "k8s" / "monitoring"
DOCS = (ROOT / "docs" / "metrics.md").read_text()
SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "summary": ("_sum", "_count"),
    "histogram": ("_bucket", "_sum", "_count"),
}
METRICS_PORT = 9000
ENGINES = ("worker", "inference")


def families() -> Iterator[Metric]:
    yield from Record().describe()
    for place in (app, chat, engine_metrics):
        for value in vars(place).values():
            if isinstance(value, MetricWrapperBase):
                yield from value.describe()


def read(file: str) -> Any:
    return yaml.safe_load((FOLDER / file).read_text())


def alerts() -> list[Object]:
    (group,) = read("alerts.yml")["groups"]
    rules: list[Object] = group["rules"]
    return rules


def panels() -> list[Object]:
    found: list[Object] = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def expressions() -> list[str]:
    shown = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [*shown, *(rule["expr"] for rule in alerts())]


def names(text: str) -> set[str]:
    return set(re.findall(r"forethought_[a-z_]+", text))


def test_every_metric_is_documented_and_no_other() -> None:
    first = {"counter": "_total"}
    code = {family.name + first.get(family.type, ""): family.type for family in families()}
    rows = re.findall(r"^\| `(forethought_\w+)` \| (\w+)", DOCS, re.MULTILINE)
    assert dict(rows) == code


def test_every_metric_is_declared_where_this_looks() -> None:
    declared = re.compile(r'(?:Counter|Gauge|Histogram|Summary)\w*\(\s*"(forethought_[a-z_]+)"')
    found = {
        name.removesuffix("_total")
        for folder in ("shared", "services", "workers")
        for file in (ROOT / folder).rglob("*.py")
        for name in declared.findall(file.read_text())
    }
    assert found == {family.name for family in families()}


def test_what_is_asked_for_exists_and_what_exists_is_asked_for() -> None:
    exposed = {f.name: {f.name + suffix for suffix in SUFFIXES[f.type]} for f in families()}
    asked = names(" ".join(expressions()))
    assert asked <= set().union(*exposed.values())
    shown = names(json.dumps(panels()))
    assert [name for name, samples in exposed.items() if not samples & shown] == []


def test_labels_that_are_asked_for_exist() -> None:
    of_families = {"kind", "status", "outcome", "service", "app", "le"}
    for expression in expressions():
        grouped = re.findall(r"(?:by|on) \(([\w, ]+)\)", expression)
        assert {label.strip() for g in grouped for label in g.split(",")} <= of_families


def test_figures_of_the_record_are_not_summed_over_coordinators() -> None:
    record = {family.name for family in Record().describe()}
    for expression in expressions():
        if any(name.startswith(tuple(record)) for name in names(expression)):
            assert "sum" not in re.findall(r"\b(sum|max)\b", expression)
            assert "max" in re.findall(r"\b(sum|max)\b", expression)


def test_no_coordinator_at_all_is_told_too() -> None:
    (away,) = (rule for rule in alerts() if rule["alert"] == "ForethoughtRecordAway")
    assert "or absent(forethought_record_up)" in away["expr"]  # `max` of nothing is nothing


def test_every_alert_says_what_to_do() -> None:
    assert re.findall(r"^\| `(Forethought\w+)` \|", DOCS, re.MULTILINE) == [
        rule["alert"] for rule in alerts()
    ]


def test_the_operator_has_the_same_alerts() -> None:
    (rules,) = of_kind(monitoring(), "PrometheusRule")
    assert rules["spec"]["groups"] == read("alerts.yml")["groups"]


def test_prometheus_asks_everything_that_compose_runs() -> None:
    services, engines = (
        job["dns_sd_configs"][0] for job in read("prometheus.yml")["scrape_configs"]
    )
    running = {
        name: module(found)
        for name, found in compose()["services"].items()
        if str(found["image"]).startswith("forethought-")
    }
    assert set(services["names"]) == {n for n, what in running.items() if what in SERVICES}
    assert set(engines["names"]) == {
        n for n, what in running.items() if what in ("workers.tasks", "workers.engine.inference")
    }
    assert (services["port"], engines["port"]) == (PORT, METRICS_PORT)
    for name in engines["names"]:
        environment = compose()["services"][name]["environment"]
        assert environment["FORETHOUGHT_METRICS_PORT"] == str(METRICS_PORT)


def test_grafana_takes_no_password_and_changes_nothing() -> None:
    environment = compose()["services"]["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == environment[
        "GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"
    ] == "true"  # fmt: skip
    assert not [name for name in environment if "PASSWORD" in name]


def services_in(name: str) -> list[str]:
    """Pods of an overlay that have an API."""
    return [pod for pod, found in in_overlay(name).items() if module(found) in SERVICES]


@pytest.mark.parametrize("name", OVERLAYS)
class TestMonitors:
    def test_every_service_is_found_by_its_port(self, name: str) -> None:
        (monitor,) = of_kind(monitoring(), "ServiceMonitor")
        spec = monitor["spec"]
        found = {
            name_of(service): [port["name"] for port in service["spec"]["ports"]]
            for service in of_kind(overlay(name), "Service")
            if chosen(spec["selector"], service["metadata"].get("labels", {}))
        }
        (endpoint,) = spec["endpoints"]
        assert found == {pod: [endpoint["port"]] for pod in services_in(name)}

    def test_every_owner_of_an_engine_is_found_by_its_port(self, name: str) -> None:
        (monitor,) = of_kind(monitoring(), "PodMonitor")
        spec = monitor["spec"]
        (endpoint,) = spec["podMetricsEndpoints"]
        port = {"name": endpoint["port"], "containerPort": METRICS_PORT}
        (config,) = of_kind(overlay(name), "ConfigMap")
        assert config["data"]["FORETHOUGHT_METRICS_PORT"] == str(METRICS_PORT)
        for pod in pods(overlay(name)).values():
            owns = chosen(spec["selector"], pod["metadata"]["labels"])
            assert owns == (port in container(pod).get("ports", []))

    def test_prometheus_and_nothing_else_is_let_in(self, name: str) -> None:
        let_in = {}
        for policy in of_kind(monitoring(), "NetworkPolicy"):
            (rule,) = policy["spec"]["ingress"]
            (peer,) = rule["from"]
            assert peer.keys() == {"namespaceSelector", "podSelector"}
            for pod, found in pods(overlay(name)).items():
                if chosen(policy["spec"]["podSelector"], found["metadata"]["labels"]):
                    let_in[pod] = [port["port"] for port in rule["ports"]]
        assert let_in == {
            **{service: [PORT] for service in services_in(name)},
            **{pod: [METRICS_PORT] for pod in pods(overlay(name)) if pod.startswith(ENGINES)},
        }


def test_the_image_of_the_loop_can_trace() -> None:
    assert '--editable ".[hub,otel]"' in dockerfile()
