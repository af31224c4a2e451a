"""Who may reach whom, in Kubernetes and in compose."""

import itertools
from collections.abc import Iterator

import pytest

from shared.settings import Settings
from tests.deploy.manifests import OVERLAYS, Object, compose, name_of, of_kind, overlay, pods

SERVICES = {"generate", "judge", "train"}
SERVES_CHAT = {"coordinator", "chat"}
INFERENCE = ("inference", "inference-cpu")
PG, VALKEY, HTTP = 5432, 6379, 8000
ENGINE = Settings.model_construct().inference_engine_port


def chosen(selector: Object, labels: Object) -> bool:
    """Whether a selector of labels takes these."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    equal = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    return equal and all(
        expression["operator"] == "In" and labels.get(expression["key"]) in expression["values"]
        for expression in selector.get("matchExpressions", [])
    )


def reaches(policies: list[Object], source: Object, target: Object, port: int) -> bool:
    mine = [p for p in policies if chosen(p["spec"]["podSelector"], target)]
    assert mine, "a pod that no policy names is open to all"
    return any(
        port in [allowed["port"] for allowed in rule["ports"]]
        and any(
            chosen(peer["podSelector"], source) for peer in rule["from"] if "podSelector" in peer
        )
        for policy in mine
        for rule in policy["spec"].get("ingress", [])
    )


@pytest.mark.parametrize("name", OVERLAYS)
def test_pods_reach_what_they_need_and_nothing_else(name: str) -> None:
    policies = list(of_kind(overlay(name), "NetworkPolicy"))
    labels = {pod: found["metadata"]["labels"] for pod, found in pods(overlay(name)).items()}
    reached = {
        (source, target, port)
        for source, target in itertools.permutations(labels, 2)
        for port in (PG, VALKEY, HTTP, ENGINE)
        if reaches(policies, labels[source], labels[target], port)
    }
    ours = labels.keys() - {"postgres", "valkey"}
    assert reached == {
        *((pod, "postgres", PG) for pod in ours),
        *((pod, "valkey", VALKEY) for pod in ours),
        *((pod, service, HTTP) for pod in ("coordinator", "loop") for service in SERVICES),
        *((pod, "inference", ENGINE) for pod in SERVES_CHAT & ours),
    }


@pytest.mark.parametrize("name", OVERLAYS)
def test_clients_reach_what_serves_chat_and_nothing_else(name: str) -> None:
    public = {
        pod
        for policy in of_kind(overlay(name), "NetworkPolicy")
        for rule in policy["spec"].get("ingress", [])
        if {"namespaceSelector": {"matchLabels": {"forethought/clients": "true"}}} in rule["from"]
        for pod, found in pods(overlay(name)).items()
        if chosen(policy["spec"]["podSelector"], found["metadata"]["labels"])
    }
    assert public == SERVES_CHAT & pods(overlay(name)).keys()


@pytest.mark.parametrize("name", OVERLAYS)
def test_services_find_their_pods(name: str) -> None:
    templates = pods(overlay(name))
    for service in of_kind(overlay(name), "Service"):
        selector = service["spec"]["selector"]
        (pod,) = (
            p for p, t in templates.items() if selector.items() <= t["metadata"]["labels"].items()
        )
        assert pod == name_of(service)


def test_what_is_private_in_compose_has_no_way_out() -> None:
    networks = {"internal": {"internal": True}, "outside": {}, "engine": {"internal": True}}
    assert compose()["networks"] == networks
    outside = {n for n, s in compose()["services"].items() if "outside" in s["networks"]}
    private = {"postgres", "valkey", "prometheus", "migrate", "loop", *SERVICES}
    assert outside == compose()["services"].keys() - private


def names_in_compose() -> Iterator[tuple[str, str, str]]:
    """Network, name and service: its own on each of its networks, and the aliases given there."""
    for service, found in compose()["services"].items():
        for network in found["networks"]:
            given = found["networks"][network] if isinstance(found["networks"], dict) else {}
            for name in (service, *given.get("aliases", [])):
                yield network, name, service


@pytest.mark.parametrize("service", INFERENCE)
def test_in_compose_the_coordinator_alone_reaches_the_engine(service: str) -> None:
    settings = compose()["services"][service]["environment"]
    listens = settings["FORETHOUGHT_INFERENCE_ENGINE_HOST"]
    found = [(network, owner) for network, name, owner in names_in_compose() if name == listens]
    assert found == [("engine", service)]
    there = {owner for network, _, owner in names_in_compose() if network == "engine"}
    assert there == {"coordinator", *INFERENCE}


def test_in_compose_everything_reaches_the_data_and_prometheus_everything() -> None:
    inside = {owner for network, _, owner in names_in_compose() if network == "internal"}
    assert inside == compose()["services"].keys()
