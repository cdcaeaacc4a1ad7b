"""Every command that README and docs show is run, page by page, on small phantoms."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import typer
import yaml

from benchmark_script import load
from slidelens.cli.app import program as typer_program
from slidelens.cli.app import run
from slidelens.desktop import launch
from slidelens.testing.phantom import write_cohort
from warm import run_warm

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = {
    "git clone": "the repository's own address",
    "pip install": "`make dist` installs the wheel, tests/test_developer_tutorial.py a plugin",
    "-m venv": "tests/test_developer_tutorial.py makes one, and so does `make setup`",
    "/activate": "the shell's own",
    "apt-get install": "`make setup` installs these; below, the lists are compared",
    "pytest slidelens-": "tests/test_developer_tutorial.py",
    "slidelens new-plugin": "tests/test_developer_tutorial.py",
    "slidelens train colour-mil": "tests/test_developer_tutorial.py",
    "--devices 4": "tests/engine/test_folds.py trains in two processes",
    "hf://": "tests/engine/test_publish.py, on a server of this machine",
    "https://": "tests/engine/test_publish.py, on a server of this machine",
    "python benchmarks/": "`make bench`; their figures are committed",
    "review eval set": "tests/cli/test_review_command.py, on a slide that was misjudged",
    "slidelens-wsinfer": "plugins/slidelens-wsinfer/tests",
    "crc_mosaic": "figures of real data, by benchmarks/results.py",
    "slidelens stage": "tests/engine/test_staging.py, on nodes of known class",
    "xargs": "tests/cli/test_streams.py",
    "slide.dzi": "tests/test_developer_tutorial.py",
}
"""What a command holds that is not run here, and where it is."""
RUN_PYTHON = {"index", "tutorial-researcher", "python"}
"""Pages whose Python is run here; that of plugins and streaming has tests of its own."""
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
SMALL = {
    "mil": "--backbone squeezenet1_1 --weights none --tile 64 --mpp 2 --epochs 1 --warm-steps 2",
    "streaming": "--backbone squeezenet1_1 --weights none --mpp 4 --epochs 1",
    "local": "--backbone squeezenet1_1 --weights none --mpp 4 --epochs 1",
    "multistage": "--backbone squeezenet1_1 --weights none --tile 64 --mpp 2 --epochs 1",
    "magnet": "--backbone small --set auxiliary=small --weights none --mpp 2 --look 64 --epochs 1",
}
"""Options that make a training small; what a page says comes before them where both speak."""


def commands(page: Path) -> list[str]:
    """The lines behind a prompt and those of shell blocks, continued lines joined."""
    found = []
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for kind, block in re.findall(r"^```(console|sh)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        lines = block.splitlines()
        if kind == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        found += [line.strip() for line in lines if words(line)]
    return found


def words(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def elsewhere(command: str) -> bool:
    return any(part in command for part in ELSEWHERE)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """What the pages speak of: slide.svs, slides/, labels.csv, my-model, results, evaluation."""
    place = tmp_path_factory.mktemp("docs")
    write_cohort(place, 12, size=(896, 768))
    for path in (place / "slides").glob("*.tif"):
        path.rename(path.with_suffix(".svs"))
    lines = (place / "labels.csv").read_text().splitlines()
    lines[-2:] = [re.sub(r"\b(train|tune)\b", "test", line) for line in lines[-2:]]
    (place / "labels.csv").write_text("\n".join(lines) + "\n")
    shutil.copy(next((place / "slides").glob("*.svs")), place / "slide.svs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        program(f"train mil --slides slides --labels labels.csv --out my-model {SMALL['mil']}")
        slides = " ".join(matching("slides/*.svs"))
        models = "--model my-model --model demo-mil"
        program(f"predict {slides} {models} --out results")
        program("evaluate results --labels labels.csv --out evaluation")
        shutil.copytree("evaluation", "eval")
    return place


def matching(pattern: str) -> list[str]:
    return sorted(map(str, Path().glob(pattern)))


def program(command: str) -> None:
    """Run ``slidelens`` in this process, as its console script does."""
    with pytest.MonkeyPatch.context() as own:
        own.setattr(sys, "argv", ["slidelens", *shlex.split(command)])
        code = 0
        try:
            run()
        except SystemExit as end:
            code = end.code
    assert not code, f"slidelens {command} ended with {code}"


def made_small(command: str) -> str:
    """Put the small options before those of the page, whose values then hold."""
    parts = words(command)[1:]
    parts = [found for part in parts for found in (matching(part) if "*" in part else [part])]
    if parts[0] == "train":
        options = shlex.split(SMALL[parts[1]])
        pairs = [options[i : i + 2] for i in range(0, len(options), 2)]
        parts += [word for pair in pairs if pair[0] not in parts for word in pair]
        if "--from" in parts:
            at = parts.index("--weights")
            del parts[at : at + 2]
    return shlex.join(parts)


AGG = {"MPLBACKEND": "agg"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_the_page_run(page, prepared, tmp_path, monkeypatch):
    shown = [command for command in dict.fromkeys(commands(page)) if not elsewhere(command)]
    mine = [command for command in shown if words(command)[0] == "slidelens"]
    others = [command for command in shown if command not in mine]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in others:
        assert words(command)[0] == "make", f"{command}: run it here, or say where it is run"
        assert set(words(command)[1:]) <= set(targets)
    scripts = PYTHON.findall(page.read_text(encoding="utf-8")) if page.stem in RUN_PYTHON else []
    if not mine and not scripts:
        return
    place = tmp_path / "place"
    shutil.copytree(prepared, place)
    monkeypatch.chdir(place)
    monkeypatch.setattr("slidelens.engine.demo._SIZE", (640, 512))
    opened = []
    # The window itself is opened by the tests of the desktop; here its arguments are.
    monkeypatch.setattr(launch, "view", lambda *given, **named: opened.append((given, named)))
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL):
        content = yaml.safe_load(block)
        if isinstance(content, dict) and "labels" in content:
            short = {**content, "tile": 64, "weights": "none"}
            (place / "train.yaml").write_text(yaml.safe_dump(short))
    trained = set()
    for command in mine:
        parts = words(command)
        if parts[1] == "train" and "--resume" not in parts:
            out = parts[parts.index("--out") + 1]
            if out not in trained:
                for old in (place / out, place / "results" / out):
                    shutil.rmtree(old, ignore_errors=True)
            trained.add(out)
        elif "--resume" in parts:
            continue  # of a training that was stopped: tests/engine/test_train.py
        program(made_small(command))
    # A process of their own: earlier tests have left Qt, and its display, in this one.
    for script in scripts:
        done = run_warm("-c", script, env=os.environ | AGG)
        assert done.returncode == 0, f"{script}\n{done.stderr}"
    assert len(opened) == sum(words(c)[1] == "view" or "--view" in words(c) for c in mine)


FOREIGN = {
    *("--dest", "--find-links", "--no-index", "--upgrade"),  # pip
    *("--array", "--cpus-per-task", "--gres", "--mem", "--requeue", "--time"),  # SLURM
    *("--ntasks", "--ntasks-per-node"),  # SLURM
    *("--quick", "--render", "--row"),  # benchmarks
    *("--logdir", "--strict"),  # TensorBoard, mkdocs
}


def options_of(command, found):
    """Collect the options of a command and of those below it."""
    for parameter in command.params:
        found.update(parameter.opts, parameter.secondary_opts)
    for below in getattr(command, "commands", {}).values():
        options_of(below, found)
    return found


def test_options_that_pages_name_are_there(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["slidelens", "train"])  # its families are read for it alone
    known = options_of(typer.main.get_command(typer_program()), {"--help"})
    assert {"--pooling", "--resamples", "--reviewer"} <= known
    for page in PAGES:
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text(encoding="utf-8")))
        assert not named - known - FOREIGN, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_pictures_are_there(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+://|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name) if name else page
        assert place.exists(), f"{page.name} links to {target}, which is not there"
        if anchor and place.suffix == ".md":
            heads = re.findall(r"^#+ (.+)$", place.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in heads}
            assert anchor in slugs, f"{page.name} links to {target}: no such heading"


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = text[text.index("nav:") :]
    lost = [page.name for page in (ROOT / "docs").glob("*.md") if page.name not in nav]
    assert not lost


def test_the_fields_for_a_cpu_are_those_of_the_benchmark(monkeypatch):
    page = (ROOT / "docs" / "magnet.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    config = load(monkeypatch, "magnet").CONFIG
    assert yaml.safe_load(block) == json.loads(json.dumps(config))


def test_the_system_packages_that_are_named_are_those_of_the_setup():
    script = (ROOT / ".ci" / "system-packages").read_text(encoding="utf-8")
    installed = set(re.search(r"packages=\((.*?)\)", script, re.DOTALL)[1].split())
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\blib[a-z0-9.+-]+\b", page))
    named -= {"library", "libraries"}
    assert named == installed


def test_the_picture_of_the_architecture_shows_what_imports_what():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import architecture_picture
    finally:
        sys.path.remove(str(ROOT / "docs"))
    arrows = architecture_picture.imports()
    assert arrows["families", "nn"]
    assert not any(upper == "slide" for upper, _ in arrows)  # nothing lies below
    assert "<title>families imports nn</title>" in architecture_picture.picture()


def sentences() -> list[str]:
    """What the program can say: every text in it, ``\\0`` where a value is put in."""
    found = []
    for path in (ROOT / "src" / "slidelens").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "\0" for p in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_what_the_program_is_quoted_with_it_says():
    said = sentences()
    page = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    quotes = re.findall(r'\*\*[^*]*?"([^"]+)"', page)
    assert len(quotes) > 10
    for quote in quotes:
        if quote == "none_dealloc: deallocating None":  # Python's own
            continue
        parts = [re.sub(r"\d+%", "\0", part.strip()) for part in quote.split("...")]
        assert any(all(part in text for part in parts) for text in said), quote
