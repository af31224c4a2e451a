"""Files, modules and Makefile targets that the documents name exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FOLDERS = "configs|docs|experiments|k8s|requirements|services|shared|tests|tools|workers"
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[\w-]+)?\)")
PATH = re.compile(rf"`((?:{FOLDERS})/[\w./-]*)`")
MODULE = re.compile(r"(?:python -m |`)((?:services|shared|tests|tools|workers)(?:\.\w+)+)")
TARGET = re.compile(r"(?:`|&& |^)make ([a-z][a-z-]*)", re.MULTILINE)


def is_module(name: str) -> bool:
    """True for a module, a package, or a name in a module, such as `services.chat.app:app`."""
    path = ROOT.joinpath(*name.split("."))
    return any(p.is_dir() or p.with_suffix(".py").exists() for p in (path, path.parent))


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)
def test_a_document_names_what_exists(doc: Path) -> None:
    text = doc.read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    missing = [
        *(link for link in LINK.findall(text) if not (doc.parent / link).exists()),
        *(path for path in PATH.findall(text) if not (ROOT / path).exists()),
        *(name for name in MODULE.findall(text) if not is_module(name)),
        *(f"make {name}" for name in TARGET.findall(text) if name not in targets),
    ]
    assert not missing, f"{doc.relative_to(ROOT)} names what is not there: {missing}"
