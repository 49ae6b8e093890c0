"""What must hold of the tree itself: two packages in one project, and a folder that is called like a standard module."""

from __future__ import annotations

import operator
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmd_operator.version import VERSION
from lmd_worker.version import VERSION as WORKER_VERSION

ROOT = Path(__file__).parents[2]
TOP_FOLDERS = ("operator", "worker", "crds", "tests")
NOT_OURS = {
    ".git",
    ".venv",
    ".hypothesis",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".import_linter_cache",
    "__pycache__",
    "build",
    "dist",
}
TEXT_SUFFIXES = {".cfg", ".in", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".xml", ".yaml", ".yml"}
REGISTRY = re.compile(
    r"(?i)--(extra-)?index-url|--find-links|https?://[^\s\"'`<>]*(/simple\b|pypi\b|pythonhosted\b|devpi\b|artifactory\b|nexus\b)"
)
WORKPLACE = re.compile(r"(?<![\w./-])/(?:home|root|Users|work|workspace)/[\w.-]+")
HEAVY = {"torch", "transformers", "deepspeed", "accelerate"}


def tracked() -> list[Path]:
    """Files that git has or would take; without git, every file that is not a cache."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode == 0:
        files = [ROOT / line for line in listing.stdout.splitlines()]
    else:
        files = [path for path in ROOT.rglob("*") if not NOT_OURS & set(path.relative_to(ROOT).parts)]
    return [path for path in files if path.is_file()]


def texts() -> Iterator[tuple[Path, str]]:
    for path in tracked():
        if path.suffix in TEXT_SUFFIXES or path.name in ("Dockerfile", "Makefile", "run"):
            yield path.relative_to(ROOT), path.read_text()


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    own = Path(__file__).relative_to(ROOT)
    return [
        f"{path}:{number}: {line.strip()}"
        for path, text in texts()
        if path != own
        for number, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line)
    ]


@pytest.mark.parametrize("folder", ["operator", "operator/src", "worker", "worker/src", "crds"])
def test_a_folder_that_is_no_package_has_no_init(folder: str) -> None:
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists()


def test_a_folder_of_tests_is_no_package() -> None:
    """With an init, its modules would have other names; packages that tests start stand below a `src`.

    Only `local` is one, as fixtures of a package end with it: its server of three ranks must not run beside all other tests.
    """
    inits = [path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("__init__.py")]
    assert [str(path) for path in inits if "src" not in path.parts] == ["local/__init__.py"]


def test_no_folder_of_tests_is_called_like_a_standard_module() -> None:
    folders = {path.name for path in (ROOT / "tests").rglob("*") if path.is_dir()}
    assert folders.isdisjoint({"operator", "worker"})


def test_the_standard_operator_is_the_standard_one() -> None:
    assert Path(operator.__file__).parent == Path(sysconfig.get_path("stdlib"))
    code = "import operator, collections; print(operator.__file__)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(found) == Path(sysconfig.get_path("stdlib")) / "operator.py", "also when started in the project's folder"


@pytest.mark.parametrize("module", ["lmd_worker.handler", "lmd_worker.__main__", "lmd_worker.bootstrap", "lmd_operator.cli"])
def test_importing_loads_no_model_library(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert module.partition(".")[0] in loaded
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize("half", ["operator", "worker"])
def test_a_half_carries_nothing_of_the_other(half: str) -> None:
    other = {"operator": "lmd_worker", "worker": "lmd_operator"}[half]
    importing = re.compile(rf"^\s*(?:from|import)\s+{other}\b", re.MULTILINE)
    assert [str(path) for path in (ROOT / half / "src").rglob("*.py") if importing.search(path.read_text())] == []


def test_no_registry_is_named() -> None:
    """Where packages come from is the builder's affair; an address in a lock file would decide it for everybody."""
    assert lines_with(REGISTRY) == []


def test_no_path_of_a_workplace_is_named() -> None:
    assert lines_with(WORKPLACE) == []


@pytest.mark.parametrize(
    ("pattern", "line", "found"),
    [
        (REGISTRY, "--index-url https://example.com/", True),
        (REGISTRY, "torch @ https://files." + "pythonhosted.org/packages/a.whl", True),
        (REGISTRY, "    --hash=sha256:00", False),
        (WORKPLACE, "cd /home/someone/project", True),
        (WORKPLACE, "see docs/home/index.md", False),
    ],
)
def test_the_searches_find_what_they_should(pattern: re.Pattern[str], line: str, found: bool) -> None:
    assert bool(pattern.search(line)) is found


def test_there_are_texts_to_search() -> None:
    found = {str(path) for path, _ in texts()}
    assert {"pyproject.toml", "requirements/dev.txt", "operator/src/lmd_operator/version.py"} <= found


def test_one_version_is_written_everywhere() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == VERSION == WORKER_VERSION


def test_the_newest_entry_of_the_change_log_is_this_version() -> None:
    headings = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert next(heading for heading in headings if heading != "Unreleased") == VERSION


def test_a_rank_tells_versions_of_packages_that_its_image_has():
    """The image has our sources and no package of ours, so asking for its version ended every model there while it was loaded."""
    from lmd_worker import loading

    lines = (ROOT / "images" / "worker" / "requirements.txt").read_text().splitlines()
    assert set(loading._LIBRARIES) <= {line.partition("==")[0] for line in lines if "==" in line}
