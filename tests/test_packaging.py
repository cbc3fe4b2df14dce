"""The wheel holds what a user needs and nothing else, and the floors of the architecture hold."""

from __future__ import annotations

import ast
import email
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import recdenoise

ROOT = Path(__file__).parent.parent
SOURCES = (
    "setup.cfg",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "recdenoise",
    "data_recipes",
    "vision",
    "tests",
    "benchmarks",
)

PACKAGES = {"recdenoise", "data_recipes", "vision"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel that pip builds from a copy of the tree."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tree / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(out)]
    done = subprocess.run([*command, str(tree)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return zipfile.ZipFile(built)


def files(folder: str, pattern: str) -> set[str]:
    return {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob(pattern) if "__pycache__" not in path.parts}


@pytest.mark.parametrize("pattern", ["*.py", "*.yaml", "*.csv", "py.typed"])
def test_the_wheel_holds_every_file_of_both_packages(wheel: zipfile.ZipFile, pattern: str) -> None:
    wanted = files("recdenoise", pattern) | files("data_recipes", pattern) | files("vision", pattern)
    assert wanted <= set(wheel.namelist())
    if pattern == "*.yaml":
        assert "recdenoise/presets/ml-100k/GMF/deca_p.yaml" in wanted
    if pattern == "py.typed":
        assert wanted == {f"{package}/py.typed" for package in PACKAGES}


def test_the_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES


def test_the_wheel_holds_the_licence(wheel: zipfile.ZipFile) -> None:
    (licence,) = (name for name in wheel.namelist() if name.endswith("/LICENSE"))
    assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()


def test_the_version_stands_in_one_place(wheel: zipfile.ZipFile) -> None:
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    assert email.message_from_bytes(wheel.read(metadata))["Version"] == recdenoise.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", recdenoise.__version__)
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_the_changelog_knows_the_version() -> None:
    assert recdenoise.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_command_is_installed_by_the_wheel(wheel: zipfile.ZipFile) -> None:
    (entries,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    assert "recdenoise = recdenoise.cli:main" in wheel.read(entries).decode()


FLOORS = {
    "recdenoise/objectives.py": 0,
    "recdenoise/schedules.py": 0,
    "recdenoise/parallel.py": 1,
    "recdenoise/denoisers": 1,
    "recdenoise/sampling.py": 1,
    "recdenoise/ranking.py": 1,
    "recdenoise/loop.py": 2,
    "recdenoise/optimizers.py": 2,
    "recdenoise/averaging.py": 1,
    "recdenoise/checkpoint.py": 2,
    "recdenoise/observer.py": 2,
    "recdenoise/resets.py": 2,
    "recdenoise/run_files.py": 2,
    "recdenoise/recbole_adapter": 3,
    "vision": 3,
    "vision/cli.py": 4,
    "vision/train.py": 4,
    "vision/progress.py": 4,
    "vision/benchmark_commands.py": 4,
    "vision/bias_commands.py": 4,
    "vision/bias_plot.py": 4,
    "vision/disagreement_report.py": 4,
    "vision/figure_runs.py": 4,
    "vision/issue_commands.py": 4,
    "vision/issues.py": 4,
    "vision/picture_commands.py": 4,
    "vision/pictures": 4,
    "vision/sheet.py": 4,
    "vision/show_commands.py": 4,
    "vision/tables": 4,
    "recdenoise/reports": 4,
    "recdenoise/cli.py": 4,
}
"""A file or folder and its floor; imports may stay on a floor or go down."""


def imported(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports anywhere, names out of a package included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def floor(module: str) -> int | None:
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        stem = "/".join(parts[:length])
        for name in (stem, f"{stem}.py"):
            if name in FLOORS:
                return FLOORS[name]
    return None


@pytest.mark.parametrize("path", sorted(path for package in PACKAGES for path in files(package, "*.py")))
def test_imports_point_down(path: str) -> None:
    modules = imported(ROOT / path)
    roots = {module.partition(".")[0] for module in modules}
    assert "recbole" not in roots or path.startswith("recdenoise/recbole_adapter/")
    assert not roots & {"tests", "benchmarks"}
    if path.startswith("data_recipes/"):
        assert not roots & {"recdenoise", "vision"}
    if path.startswith("vision/"):
        assert not any(module.startswith("recdenoise.recbole_adapter") for module in modules)
    if path.startswith("recdenoise/") and path != "recdenoise/cli.py":
        assert "vision" not in roots
    own = floor(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    if own is not None:
        above = {module for module in modules if (floor(module) or 0) > own}
        assert not above, f"{path} imports from above: {sorted(above)}"
