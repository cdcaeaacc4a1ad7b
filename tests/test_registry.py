"""Plugins as a user installs them: packages with entry points on the path, some of them broken."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from slidelens.errors import PluginError
from slidelens.registry import API_VERSION, Registry

KIND = "slidelens.families.base:Family"


def install(folder: Path, name: str, code: str, group: str = "slidelens.families") -> None:
    """Put a package with one entry point where Python finds it, as pip would."""
    module = f"plugin_{name}"
    (folder / f"{module}.py").write_text(textwrap.dedent(code))
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}:FAMILY\n")


GOOD = """
    SLIDELENS_API = {version}
    import torch
    from slidelens.families.base import Family, FamilyConfig, MapSpec, Patch, SlideScore
    from slidelens.tiling.grid import GridSpec

    class Config(FamilyConfig):
        pass

    class Network(torch.nn.Module):
        def __init__(self, n):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(n))
        def forward(self, images):
            return self.bias.expand(len(images), -1).softmax(1)

    def infer(model, view):
        grid = view.grid(GridSpec(128, 0.5, min_tissue=0))
        for batch in view.batches(grid, 8):
            yield Patch("probability", batch.boxes, model.module(batch.images).numpy(){wrong})
        yield SlideScore((0.5, 0.5))

    FAMILY = Family(
        name="{name}", title="A plugin", about="Says one half.", config=Config,
        build=lambda config, n: Network(n), infer=infer,
        maps=lambda config, classes: [MapSpec("probability", "probability", tuple(classes), 64.0)],
    )
"""


def good(name: str, version: object = API_VERSION, wrong: str = "") -> str:
    return GOOD.format(name=name, version=version, wrong=wrong)


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def registry() -> Registry:
    return Registry("slidelens.families", KIND, {"mil": "slidelens.families.mil:FAMILY"})


def test_a_good_plugin_is_found_and_loaded_when_asked_for(site):
    install(site, "plain", good("plain"))
    found = registry()
    assert {"mil", "plain"} <= set(found.names())
    assert "plugin_plain" not in sys.modules
    assert found.get("plain").title == "A plugin"
    assert found.broken() == {}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise RuntimeError('no licence')", "does not load: RuntimeError: no licence"),
        ("import nothing_of_that_name", "does not load: ModuleNotFoundError"),
        ("SLIDELENS_API = 1", "does not load: AttributeError"),
        ("FAMILY = 3", "declares no SLIDELENS_API"),
        (good("other", version=99), "written for version 99 .* has 1. Update"),
        ("SLIDELENS_API = 1\nFAMILY = 3", "is a int, expected Family"),
    ],
)
def test_a_broken_plugin_is_named_and_the_others_work(site, code, reason, monkeypatch):
    install(site, "bad", code)
    found = registry()
    with pytest.raises(PluginError, match=rf"plugin 'bad' .*{reason}"):
        found.get("bad")
    assert list(found.broken()) == ["bad"]
    assert found.get("mil").name == "mil"
    sys.modules.pop("plugin_bad", None)


def test_a_plugin_cannot_replace_what_is_built_in(site):
    install(site, "mil", good("mil"))
    assert registry().get("mil").title != "A plugin"


def test_doctor_names_broken_plugins_and_everything_else_works(tmp_path):
    install(tmp_path, "fine", good("fine"))
    install(tmp_path, "raises", "raise RuntimeError('no licence')")
    install(tmp_path, "old", good("old", version=0))
    install(tmp_path, "shapes", good("shapes", wrong="[:, :1]"))
    program = Path(sys.executable).with_name("slidelens")
    done = subprocess.run(
        [program, "doctor"],
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = {line for line in done.stdout.splitlines() if "Plugin" in line}
    told = {
        name: next(x for x in lines if name in x) for name in ("fine", "raises", "old", "shapes")
    }
    assert "loads" in told["fine"]
    assert "no licence" in told["raises"]
    assert "version 0" in told["old"]
    assert "trial run failed" in told["shapes"]
    assert "PyTorch" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_train_goes_on_beside_a_broken_plugin(tmp_path):
    install(tmp_path, "raises", "raise RuntimeError('no licence')")
    program = Path(sys.executable).with_name("slidelens")
    done = subprocess.run(
        [program, "train", "--help"],
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0
    assert "mil " in done.stdout
    assert "warning: plugin 'raises'" in done.stderr
