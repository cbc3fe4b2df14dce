"""README.md and docs/ do what they say: commands and programs run, configs load, links lead somewhere, tables fit.

A page is run from top to bottom in a folder of its own, so a later command finds the files of an earlier one:

- ``bash`` blocks: one command a line; ``&&``, ``\\`` at the end of a line and comments work. ``recdenoise`` runs in
  this process, ``python`` and ``torchrun`` in others. Installing, and the whole test suite, is left to .ci/run.
- ``python`` blocks are executed, each with names of its own; ``yaml`` blocks are loaded.
- Comments before a block: ``<!-- test: file NAME -->`` writes it to NAME, ``<!-- test: output -->`` looks for its lines
  in what the command above printed (numbers and frames apart), ``<!-- test: slow -->`` runs it under ``pytest -m slow``
  alone and otherwise only checks its options.

Long jobs are shortened in one place, :func:`shortened`: one epoch, one seed, two trials, one model.
"""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from recdenoise import denoisers
from recdenoise.cli import cli as command_line
from recdenoise.recbole_adapter import scorers
from tests.option_tables import method_pages, with_tables
from vision import methods as image_methods

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if RESULTS not in p.parents)]
INSTALLS = ("python3 -m venv", "pip install", ".venv/bin/pip install", ".venv/bin/pytest", "source .venv/bin/activate")
BLOCK = re.compile(
    r"(?:^<!-- test: (?P<test>[^>]+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
LINK = re.compile(r"(?<!!)!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line it stands at, and what the comment above it says."""

    language: str
    text: str
    line: int
    test: str


def blocks(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    found = [
        Block(m["language"], m["text"], text[: m.start("text")].count("\n") + 1, (m["test"] or "").strip())
        for m in BLOCK.finditer(text)
    ]
    assert text.count("```") == 2 * len(found), f"{path}: a fence is not closed, or stands inside another"
    return found


def commands(text: str) -> Iterator[str]:
    """Single commands of a bash block."""
    for line in text.replace("\\\n", " ").splitlines():
        for command in line.split(" && "):
            if command.strip() and not command.strip().startswith("#"):
                yield command.strip()


def shortened(text: str) -> str:
    """The same command, program or config, as a job of seconds."""
    text = re.sub(r"(\"?epochs\"?\s*[:=]\s*)\d+", r"\g<1>1", text)
    text = re.sub(r"--seeds \d+", "--seeds 1", re.sub(r"--trials \d+", "--trials 2", text))
    if re.match(r"recdenoise benchmark \w", text):
        text = re.sub(r" --models( \w+)+", "", text) + " --models GMF"
    if re.match(r"\S*recdenoise (train|tune|benchmark \w)", text) and "--resume" not in text and "epochs=" not in text:
        text += " --set epochs=1"
    if re.match(r"recdenoise vision benchmark (?!figure)\w", text) and "--report-only" not in text:
        text += " --network resnet20 --images 200 --valid 0.2 --epochs 2 --seeds 1 --set batch_size=32"
    if "benchmarks.vision_small" in text:
        text += " --epochs 1 --seeds 1 --methods normal elr"
    if "benchmarks.bias_small" in text:
        text += " --epochs 1 --seeds 1 --images 1000 --cases normal lff"
    if "benchmarks.denll_background" in text:
        text += " --epochs 1 --seeds 1 --variants ce denll"
    if "benchmarks.cit_small" in text:
        text += " --epochs 1 --seeds 1 --versions v2 --images 500 --test-images 200"
    if "benchmarks.mixture_auc" in text:
        text += " --seeds 1"
    quick = r"benchmarks\.(train_speed|vision_speed|denll_cost|host_cost|cit_cost|dividemix_cost)"
    return text + " --quick" if re.search(quick, text) else text


def run_command(command: str) -> str:
    """Run one command of a page and return what it printed."""
    words = shlex.split(shortened(command), comments=True)
    program = words[0].removeprefix(".venv/bin/")
    if program == "recdenoise":
        result = CliRunner().invoke(command_line, words[1:])
        if result.exit_code:
            raise AssertionError(f"{command}: exit code {result.exit_code}\n{result.output}") from result.exception
        return result.output
    if program == "torchrun":
        words[:1] = ["python", "-m", "torch.distributed.run", "--standalone"]
        program = "python"
    assert program == "python", f"the tests do not know how to run {command!r}"
    words = [sys.executable, *(str(ROOT / word) if word.startswith("tests/") else word for word in words[1:])]
    paths = os.pathsep.join([str(ROOT), os.getcwd()])
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def check_options(command: str) -> None:
    """See that a command exists and takes the options it is given, without running it."""
    words = shlex.split(command, comments=True)
    if words[0] == "python":
        done = subprocess.run(
            [sys.executable, *words[1:3], "--help"], capture_output=True, text=True, cwd=ROOT, check=True
        )
        assert all(word in done.stdout for word in words if word.startswith("--")), command
        return
    if words[0] == "torchrun":
        assert words[3:5] == ["-m", "vision.train"], command
        words = ["recdenoise", "vision", "train", *words[5:]]
    program, *rest = words
    found: click.Command = command_line
    while isinstance(found, click.Group):
        program, *rest = rest
        inner = found.get_command(click.Context(found), program)
        assert inner is not None, f"{command}: there is no {program}"
        found = inner
    found.make_context(program, rest)


def bare_lines(text: str) -> list[str]:
    """Lines without frames, bars, numbers and differences in spacing."""
    plain = re.sub(r"\d+(?:[.:]\d+)*", "#", re.sub(r"[^\w@().,:;=/%'*+\n-]+", " ", text))
    return [" ".join(line.split()) for line in plain.splitlines() if line.strip()]


def run_page(path: Path, slow: bool) -> None:
    printed = ""
    for block in blocks(path):
        kind, _, argument = block.test.partition(" ")
        where = f"{path.relative_to(ROOT)}, line {block.line}"
        if kind == "file":
            Path(argument).parent.mkdir(parents=True, exist_ok=True)
            Path(argument).write_text(shortened(block.text), encoding="utf-8")
        if kind == "output":
            missing = [line for line in bare_lines(block.text) if line not in bare_lines(printed)]
            assert not missing, f"{where}: not printed by the command above: {missing}\n{printed}"
        elif block.language == "bash":
            todo = [command for command in commands(block.text) if not command.startswith(INSTALLS)]
            if kind == "slow" and not slow:
                for command in todo:
                    check_options(command)
            else:
                printed = "".join(map(run_command, todo))
        elif block.language == "yaml":
            assert isinstance(yaml.safe_load(block.text), dict), where
        elif block.language == "python" and kind != "file":
            exec(compile(shortened(block.text), where, "exec"), {"__name__": "__main__"})
        else:
            assert block.language in ("text", "python"), f"{where}: {block.language!r} blocks are not known here"


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built data sets, shared by all pages."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def scratch(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder to run a page in, and what a page may change kept from other tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECDENOISE_CACHE", str(cache))
    monkeypatch.setattr(sys, "argv", ["page"])
    monkeypatch.setattr(denoisers._REGISTRY, "table", dict(denoisers._REGISTRY.table))
    monkeypatch.setattr(scorers, "SCORERS", dict(scorers.SCORERS))


@pytest.mark.usefixtures("scratch")
@pytest.mark.parametrize("path", PAGES, ids=name)
def test_page_runs(path: Path) -> None:
    run_page(path, slow=False)


@pytest.mark.slow
@pytest.mark.usefixtures("scratch")
@pytest.mark.parametrize("path", [p for p in PAGES if any(b.test == "slow" for b in blocks(p))], ids=name)
def test_whole_page_runs(path: Path) -> None:
    run_page(path, slow=True)


def anchors(path: Path) -> set[str]:
    """What a link may put after ``#``, as GitHub makes it from headings."""
    text = BLOCK.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    for match in LINK.finditer(BLOCK.sub("", path.read_text(encoding="utf-8"))):
        target, _, anchor = match["target"].partition("#")
        if target.startswith(("https://", "http://")):
            continue
        file = (path.parent / target).resolve() if target else path
        if RESULTS in file.parents and not RESULTS.is_dir():
            continue  # nothing has been measured in this tree yet
        assert file.exists(), f"{name(path)} links to {match['target']}, which is not there"
        assert not anchor or anchor in anchors(file), f"{name(path)} links to {match['target']}: no such heading"


@pytest.mark.parametrize("path", method_pages(), ids=name)
def test_option_tables_are_those_of_the_code(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "<!-- options:" in text
    assert text == with_tables(path), "out of date: run python -m tests.option_tables"


BUILT_IN = [method for method in denoisers.names() if denoisers.get(method).__module__.startswith("recdenoise.")]


@pytest.mark.parametrize("method", BUILT_IN)
def test_every_method_has_a_page_and_a_line_in_the_readme(method: str) -> None:
    page = ROOT / "docs" / "methods" / f"{method}.md"
    assert page.read_text(encoding="utf-8").startswith(f"# {denoisers.get(method).title}\n")
    assert f"(docs/methods/{method}.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


OF_IMAGES = [n for n in image_methods.names() if image_methods.get(n).__module__.startswith("vision.")]


@pytest.mark.parametrize("method", OF_IMAGES)
def test_every_method_of_images_has_a_page_and_a_line_in_the_index(method: str) -> None:
    folder = ROOT / "docs" / "vision-methods"
    page = folder / f"{method}.md"
    assert page.read_text(encoding="utf-8").startswith(f"# {image_methods.get(method).title}\n")
    assert f"[`{method}`]({method}.md)" in (folder / "README.md").read_text(encoding="utf-8")


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or not page.exists():
            continue
        reached.add(page)
        for match in LINK.finditer(page.read_text(encoding="utf-8")):
            target = match["target"].partition("#")[0]
            if target.endswith(".md") and "://" not in target:
                waiting.append((page.parent / target).resolve())
    assert set(PAGES) <= reached


def test_the_numbers_in_the_readme_are_those_of_the_results() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table: dict[str, list[str]] = {}
    for line in readme.partition("| R@20 | MovieLens-100K: Normal")[2].partition("\n\n")[0].splitlines()[2:]:
        model, *numbers = (cell.strip() for cell in line.strip("|").split("|"))
        table[model] = numbers
    found = {model: [] for model in table}
    for data in ("ml-100k", "modcloth"):
        with (RESULTS / f"table2-{data}.csv").open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["metric"] == "recall@20" and row["compared"] == "yes"]
        mean = {(row["model"], row["method"]): float(row["mean"]) for row in rows}
        for model in table:
            found[model] += [f"{mean[model, method]:.4f}" for method in ("Normal", "DeCA(p)")]
    assert list(table) == ["GMF", "NeuMF", "CDAE", "LightGCN"]
    assert table == found
    ahead = [float(cells[place + 1]) > float(cells[place]) for cells in table.values() for place in (0, 2)]
    assert (sum(ahead), len(ahead)) == (6, 8)
    assert "DeCA(p) is ahead in six of eight." in readme
