"""Plugins as a user installs them: packages with entry points on the path, some of them broken."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from inspect import signature
from pathlib import Path

import pytest

import slidelens
from slidelens.errors import PluginError, SlideError
from slidelens.geometry import Box
from slidelens.registry import API_VERSION, Registry
from slidelens.slide.base import Slide
from warm import run_warm

SOURCE = Path(slidelens.__file__).resolve().parents[1]
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
    assert found.package_of("plain") == {"plugin_plain": "1.0"}
    assert found.package_of("mil") == {}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise RuntimeError('no licence')", "does not load: RuntimeError: no licence"),
        ("import nothing_of_that_name", "does not load: ModuleNotFoundError"),
        ("SLIDELENS_API = 1", "does not load: AttributeError"),
        ("FAMILY = 3", "declares no SLIDELENS_API"),
        (good("other", version=99), "written for version 99 .* has 1. Update"),
        ("SLIDELENS_API = 1\nFAMILY = 3", "is a int, expected Family"),
        (good("other"), "brings a Family that is called 'other'; entry point and name must be"),
        (
            "SLIDELENS_API = 1\nfrom slidelens.families.base import Family as FAMILY",
            "is the class Family, expected an instance of Family",
        ),
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
    found = registry()
    assert found.get("mil").title != "A plugin"
    assert "has the name of a built-in and is left out" in found.broken()["mil"]


BROKEN = {
    "raises": ("slidelens.families", "raise RuntimeError('no licence')", "no licence"),
    "quits": ("slidelens.families", "raise SystemExit(3)", "SystemExit: 3"),
    "old": ("slidelens.families", good("old", version=0), "version 0"),
    "shapes": ("slidelens.families", good("shapes", wrong="[:, :1]"), "trial run failed"),
    "trainless": (
        "slidelens.families",
        good("trainless").replace("infer=infer,", "infer=infer, trainer='nowhere:Task',"),
        "training steps of plugin 'trainless'",
    ),
    "mil": ("slidelens.families", good("mil"), "has the name of a built-in"),
    "greedy": (
        "slidelens.slides",
        """
        SLIDELENS_API = 1
        from slidelens.slide.reader import Reader
        class FAMILY(Reader):
            backend = "greedy"
            def __init__(self, path): ...
            @classmethod
            def sniff(cls, path, head): return head[0] == 7
            def read(self, level, x, y, w, h): ...
            def close(self): ...
        """,
        "trial run failed: IndexError",
    ),
    "half": (
        "slidelens.slides",
        """
        SLIDELENS_API = 1
        from slidelens.slide.reader import Reader
        class FAMILY(Reader):
            backend = "half"
        """,
        "does not define __init__, close, read, sniff",
    ),
    "vectors": (
        "slidelens.backbones",
        """
        SLIDELENS_API = 1
        import torch
        from slidelens.nn.encoders import Encoder, EncoderFacts, EncoderSource
        class Wrong(Encoder):
            dim = 5
            def forward(self, images): return images.mean((2, 3))
        FAMILY = EncoderSource(
            build=lambda variant: Wrong(), load=None, sample="any",
            facts=lambda variant: EncoderFacts((0.5,) * 3, (0.5,) * 3, tile=32),
        )
        """,
        r"shape (2, 3); expected finite vectors of shape (2, 5)",
    ),
    "untidy": (
        "slidelens.exporters",
        """
        SLIDELENS_API = 1
        from slidelens.export import Exporter
        def write(result, path):
            path.with_suffix(".log").write_text("done")
        FAMILY = Exporter("untidy", "Writes something else.", ".txt", write)
        """,
        "asked to write trial.txt, it left trial.log",
    ),
}
"""A plugin that breaks its promise in each way that there is: group, code, what doctor says."""

WORKS = """
import sys
from pathlib import Path
import numpy as np
from slidelens.engine.predict import predict
from slidelens.errors import PluginError, UnsupportedSlideError
from slidelens.export import export_result
from slidelens.slide.open import open_slide
from slidelens.testing.phantom import PhantomSpec, write_phantom
here = Path(sys.argv[1])
write_phantom(here / "slide.tif", PhantomSpec(size=(1024, 1024), seed=3, lesions=1))
with open_slide(here / "slide.tif") as slide:
    result = predict(slide, "demo-mil", device="cpu", options={"overlap": 0})
export_result(result, "geojson", here / "slide.geojson")
(here / "empty.xyz").write_bytes(b"")
try:
    open_slide(here / "empty.xyz")
except UnsupportedSlideError as error:
    assert "plugin 'greedy'" in str(error) and "an empty file" in str(error), error
try:
    export_result(result, "raising", here / "out.txt")
except PluginError as error:
    assert "failed to write" in str(error) and "ZeroDivisionError" in str(error), error
print("all works")
"""


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """A place with all of these plugins, a good one and one whose fault shows in use."""
    place = tmp_path_factory.mktemp("crowded")
    install(place, "fine", good("fine"))
    for name, (group, code, _) in BROKEN.items():
        install(place, name, code, group)
    raising = """
        SLIDELENS_API = 1
        from slidelens.export import Exporter
        def write(result, path):
            if result.slide.id != "trial":
                1 / 0
            path.write_text("")
        FAMILY = Exporter("raising", "Fails on real slides.", ".txt", write)
    """
    install(place, "raising", raising, "slidelens.exporters")
    return place


def beside(place: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """Run Python where these plugins are installed."""
    path = f"{place}:{SOURCE}"
    return run_warm(*command, env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin"})


def test_doctor_names_every_broken_plugin(crowded):
    done = beside(crowded, "-m", "slidelens", "doctor", "--json")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    found = {check["name"]: check for check in json.loads(done.stdout)}
    assert found["Plugin fine"]["state"] == "ok"
    assert found["PyTorch"]["state"] == "ok"
    for name, (_, _, reason) in BROKEN.items():
        check = found[f"Plugin {name}"]
        assert check["state"] == "broken", name
        assert reason in check["detail"], name
        assert f"plugin_{name}" in check["detail"] or "trial run" in check["detail"]


def test_everything_else_works_beside_broken_plugins(crowded, tmp_path):
    done = beside(crowded, "-c", WORKS, tmp_path)
    assert done.stdout.endswith("all works\n"), done.stderr


MADE = """
import sys
from slidelens.engine.package import load_model, save_model
from slidelens.families import FAMILIES
from slidelens.testing.trial import trial_model, trial_predict

model = trial_model(FAMILIES.get("plain"))
save_model(model, sys.argv[1])
assert trial_predict(model).software["plugin_plain"] == "1.0"
assert load_model(sys.argv[1], "cpu").card["created_with"]["plugin_plain"] == "1.0"
"""


def test_models_and_results_tell_the_package_of_the_plugin_that_made_them(tmp_path):
    """Where it is not installed, the model says which one is to be."""
    place, other = tmp_path / "site", tmp_path / "other"
    for folder in (place, other):
        folder.mkdir()
    install(place, "plain", good("plain"))
    made = beside(place, "-c", MADE, tmp_path / "m")
    assert made.returncode == 0, made.stderr
    shown = beside(other, "-m", "slidelens", "package", "verify", tmp_path / "m")
    assert shown.returncode == 1
    assert "error: model 'trial-plain': unknown model family 'plain'" in shown.stderr
    assert "Install the plugin that brings it; it was made with plugin_plain 1.0." in shown.stderr


def test_a_reader_that_breaks_its_contract_is_named_when_it_reads(site):
    code = """
        SLIDELENS_API = 1
        import numpy as np
        from slidelens.geometry import Size
        from slidelens.slide.reader import Facts, Level, Reader
        class FAMILY(Reader):
            backend = "grey"
            def __init__(self, path):
                self.facts = Facts(levels=(Level(1.0, Size(10, 10)),))
            @classmethod
            def sniff(cls, path, head): return head.startswith(b"GREY")
            def read(self, level, x, y, w, h): return np.zeros((h, w), np.uint8)
            def close(self): ...
    """
    install(site, "grey", code, "slidelens.slides")
    readers = Registry("slidelens.slides", "slidelens.slide.reader:Reader", {})
    (site / "a.grey").write_bytes(b"GREY")
    slide = Slide(readers.get("grey")(site / "a.grey"), site / "a.grey")
    with pytest.raises(SlideError, match=r"'grey' gave uint8 pixels of shape \(4, 5\)"):
        slide.read(Box(0, 0, 5, 4))


def test_a_name_that_two_packages_claim_is_refused(site):
    install(site, "plain", good("plain"))
    other = site / "other"
    info = other / "another-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: another\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[slidelens.families]\nplain = another:FAMILY\n")
    sys.path.insert(0, str(other))
    try:
        found = registry()
        with pytest.raises(PluginError, match="brought by several packages"):
            found.get("plain")
        assert "plugin_plain:FAMILY" in found.broken()["plain"]
        assert "another:FAMILY" in found.broken()["plain"]
    finally:
        sys.path.remove(str(other))


def test_the_page_lists_the_names_that_no_field_may_have():
    from slidelens.cli.fields import _OTHERS
    from slidelens.cli.train import _train_command

    options = set(signature(_train_command("mil", ())).parameters) - {"fields"}
    page = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text(encoding="utf-8")
    listed = page.partition("must not have the names of `train`'s own options:")[2].partition(
        ".\n"
    )[0]
    assert set(re.findall(r"`(\w+)`", listed)) == options | _OTHERS


def test_a_field_of_one_name_in_config_and_training_is_refused():
    """One option would set both."""
    from slidelens.cli.fields import with_field_options
    from slidelens.engine.training.start import task_of
    from slidelens.families.base import FamilyConfig

    class Both(FamilyConfig):
        warm_steps: int = 3

    with pytest.raises(PluginError, match=r"of one name in its Config and .*: warm_steps"):
        with_field_options(lambda: None, (Both, task_of("mil").training), "both")


def test_train_goes_on_beside_a_broken_plugin(tmp_path):
    install(tmp_path, "raises", "raise RuntimeError('no licence')")
    install(tmp_path, "trainless", BROKEN["trainless"][1])
    clash = (
        good("clash")
        .replace("pass", "epochs: int = 3")
        .replace("infer=infer,", "infer=infer, trainer='slidelens.families.mil_train:MilTask',")
    )
    install(tmp_path, "clash", clash)
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
    assert "warning: the training steps of plugin 'trainless'" in done.stderr
    assert "has options of that name for: epochs. Its maker must choose other" in done.stderr
