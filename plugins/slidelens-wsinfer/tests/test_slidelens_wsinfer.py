"""Zoo folders made here without the plugin's code give the probabilities of direct torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from slidelens_wsinfer.family import FAMILY
from slidelens_wsinfer.zoo import export_zoo, import_zoo, trust_package
from torchvision import models, transforms

from slidelens.engine.package import load_model, save_model
from slidelens.engine.predict import predict
from slidelens.errors import ModelError
from slidelens.families import mil
from slidelens.families.base import Model
from slidelens.geometry import Box
from slidelens.nn.mil import class_probabilities
from slidelens.slide.array import from_array
from slidelens.testing.conformance import FamilyConformance
from slidelens.testing.phantom import PhantomSpec, draw
from slidelens.tiling.tissue import TissueSettings

MEAN, STD = (0.7, 0.5, 0.65), (0.2, 0.25, 0.15)
TILE, SPACING, SIDE = 175, 0.88, 96


class TestWsinfer(FamilyConformance):
    family = FAMILY
    config = {"architecture": "squeezenet1_1", "tile": 64, "mpp": 1.0}


@pytest.fixture(autouse=True)
def user(tmp_path, monkeypatch):
    for name in ("HOME", "XDG_CONFIG_HOME", "APPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "user"))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(3)
    made = models.resnet18(num_classes=3).eval()
    torch.nn.init.normal_(made.fc.weight, std=0.5)
    return made


@pytest.fixture
def zoo(network, tmp_path):
    """A folder as the zoo's maintainers write it."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    config = {
        "spec_version": "1.0",
        "architecture": "resnet18",
        "num_classes": 3,
        "class_names": ["normal", "tumour", "stroma"],
        "name": "made-here",
        "patch_size_pixels": TILE,
        "spacing_um_px": SPACING,
        "transform": [
            {"name": "Resize", "arguments": {"size": SIDE}},
            {"name": "ToTensor"},
            {"name": "Normalize", "arguments": {"mean": MEAN, "std": STD}},
        ],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write(zoo: Path, network, kind: str) -> None:
    if kind == "safetensors":
        save_file(network.state_dict(), zoo / "model.safetensors")
    else:
        scripted = torch.jit.trace(network, torch.zeros(1, 3, SIDE, SIDE))
        torch.jit.save(scripted, str(zoo / "torchscript_model.pt"))


@pytest.fixture(scope="module")
def slide():
    """A slide whose own resolution is not the model's, nor a multiple of it."""
    return from_array(draw(PhantomSpec(size=(1100, 900), seed=2, lesions=1)), mpp=0.5, name="s")


@pytest.mark.parametrize("kind", ["safetensors", "torchscript"])
def test_tile_probabilities_are_those_of_direct_torch(zoo, network, kind, slide, tmp_path):
    write(zoo, network, kind)
    package = import_zoo(zoo, tmp_path / "model", trusted=kind == "torchscript")
    whole = TissueSettings(method="whole")
    result = predict(slide, package, device="cpu", precision="fp32", tissue=whole)
    prepare = transforms.Compose(
        [transforms.Resize(SIDE), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )
    boxes, found = result.tiles.boxes, result.tiles.probabilities
    assert len(boxes) >= 12
    assert boxes[0][2] == pytest.approx(TILE * SPACING / 0.5)
    for box, values in zip(boxes, found, strict=True):
        tile = Image.fromarray(slide.read(Box(*box.tolist()), SPACING))
        assert tile.size == (TILE, TILE)
        with torch.no_grad():
            expected = network(prepare(tile)[None]).softmax(1)[0].numpy()
        np.testing.assert_allclose(values, expected, atol=1e-5)
    assert list(result.probabilities) == ["normal", "tumour", "stroma"]
    np.testing.assert_allclose(list(result.probabilities.values()), found.mean(0), atol=1e-5)


def test_torchscript_needs_trust_where_it_comes_in_and_where_it_runs(
    zoo, network, slide, tmp_path, monkeypatch
):
    write(zoo, network, "torchscript")
    with pytest.raises(ModelError, match="give --trust"):
        import_zoo(zoo, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    package = import_zoo(zoo, tmp_path / "model", trusted=True)
    for name in ("HOME", "XDG_CONFIG_HOME", "APPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "another machine"))
    with pytest.raises(ModelError, match="slidelens-wsinfer trust"):
        predict(slide, package, device="cpu")
    trust_package(package)
    predict(slide, package, device="cpu")
    if os.name != "posix":
        return
    (known,) = (tmp_path / "another machine").rglob("wsinfer-trusted.txt")
    assert known.stat().st_mode & 0o777 == 0o600
    known.chmod(0o620)
    for ask in (lambda: predict(slide, package, device="cpu"), lambda: trust_package(package)):
        with pytest.raises(ModelError, match=r"wsinfer-trusted\.txt, .* is not yours alone"):
            ask()


def test_a_pickle_is_never_read(zoo, tmp_path):
    (zoo / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ModelError, match="is a pickle and is not read"):
        import_zoo(zoo, tmp_path / "model", trusted=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 2}, "3 class_names for num_classes 2"),
        ({"spacing_um_px": -1}, "spacing_um_px"),
        ({"architecture": "nonesuch"}, "no network is called 'nonesuch'"),
        ({"architecture": "squeezenet1_1"}, "does not fit the architecture"),
        ({"transform": [{"name": "Invert"}]}, "transformation 'Invert' is not known"),
        ({"transform": [{"name": "Normalize"}]}, "Normalize states no mean and no std"),
        (
            {"transform": [{"name": "ToTensor"}, {"name": "Resize", "arguments": {"size": 9}}]},
            "its transform is ToTensor, Resize, which gives other pixels .* in this order",
        ),
        ({"transform": [{"name": "ToTensor"}] * 2}, "ToTensor, ToTensor, .* each once"),
    ],
)
def test_a_folder_that_does_not_hold_together_is_named(zoo, network, tmp_path, changes, message):
    write(zoo, network, "safetensors")
    config = json.loads((zoo / "config.json").read_text())
    (zoo / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ModelError, match=message):
        import_zoo(zoo, tmp_path / "model")


def test_what_is_exported_runs_without_slidelens(zoo, network, tmp_path):
    write(zoo, network, "safetensors")
    package = import_zoo(zoo, tmp_path / "model")
    out = export_zoo(package, tmp_path / "again")
    assert json.loads((out / "config.json").read_text())["patch_size_pixels"] == TILE
    images = torch.rand(2, 3, SIDE, SIDE)
    script = torch.jit.load(str(out / "torchscript_model.pt"))
    torch.testing.assert_close(script(images), network(images), atol=1e-5, rtol=1e-5)
    second = load_model(import_zoo(out, tmp_path / "third"), "cpu")
    torch.testing.assert_close(second.module(images), network(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("classes", [("normal", "tumour"), ("normal", "tumour", "stroma")])
@pytest.mark.parametrize("fields", [{}, {"orientations": 4}, {"backbone": "squeezenet1_1"}])
def test_an_exported_mil_model_has_the_outputs_that_its_config_states(tmp_path, classes, fields):
    config = mil.FAMILY.config(**{"backbone": "resnet18", "tile": 64, "mpp": 1.0, **fields})
    torch.manual_seed(1)
    network = mil.FAMILY.build(config, len(classes)).eval()
    model = Model("m", "mil", config, classes, network)
    out = export_zoo(save_model(model, tmp_path / "m"), tmp_path / "zoo")
    written = json.loads((out / "config.json").read_text())
    assert written["class_names"] == list(classes)
    images = torch.rand(3, 3, 64, 64)
    script = torch.jit.load(str(out / "torchscript_model.pt"))
    with torch.no_grad():
        expected = class_probabilities(network(images))
        found = script(images)
        assert found.shape == (3, written["num_classes"])
        torch.testing.assert_close(found.softmax(1), expected, atol=1e-5, rtol=1e-5)
        again = load_model(import_zoo(out, tmp_path / "again", trusted=True), "cpu")
        torch.testing.assert_close(again.module(images).softmax(1), expected, atol=1e-5, rtol=1e-5)


def test_a_network_of_one_output_goes_out_as_it_came(zoo, tmp_path):
    network = models.resnet18(num_classes=1).eval()
    write(zoo, network, "safetensors")
    config = json.loads((zoo / "config.json").read_text())
    config |= {"num_classes": 1, "class_names": ["tumour"]}
    (zoo / "config.json").write_text(json.dumps(config))
    package = import_zoo(zoo, tmp_path / "model")
    assert load_model(package, "cpu").classes == ("not tumour", "tumour")
    out = export_zoo(package, tmp_path / "again")
    written = json.loads((out / "config.json").read_text())
    assert (written["num_classes"], written["class_names"]) == (1, ["tumour"])
    assert load_model(import_zoo(out, tmp_path / "third"), "cpu").classes == (
        "not tumour",
        "tumour",
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bag_dim": 8}, "feature vectors made elsewhere"),
        ({"stain_normalization": "macenko"}, "normalises stains"),
        ({"pooling": "mean"}, "the zoo holds patch classifiers"),
    ],
)
def test_what_a_zoo_folder_cannot_hold_is_refused(tmp_path, fields, message):
    config = mil.FAMILY.config(**{"backbone": "squeezenet1_1", **fields})
    model = Model("m", "mil", config, ("n", "t"), mil.FAMILY.build(config, 2).eval())
    package = save_model(model, tmp_path / "m")
    with pytest.raises(ModelError, match=message):
        export_zoo(package, tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


def test_the_program_says_what_is_wrong_in_one_sentence(tmp_path):
    program = [Path(sys.executable), "-c", "from slidelens_wsinfer.cli import main; main()"]
    done = subprocess.run(
        [*program, "import", tmp_path, "--out", tmp_path / "m"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "is no WSInfer folder" in done.stderr
    assert "Traceback" not in done.stderr
