"""A fine first layer computes what the plain one computes of the image enlarged twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from slidelens.engine.packages.golden import replay
from slidelens.errors import ModelError
from slidelens.families.base import Model
from slidelens.families.streaming import FAMILY, StreamingConfig
from slidelens.nn.backbones import build_features
from slidelens.nn.fine_stem import refine
from slidelens.nn.slide_classifier import SlideClassifier


@pytest.mark.parametrize(("name", "border"), [("squeezenet1_1", 1), ("resnet18", 3)])
def test_it_is_the_first_layer_after_bilinear_interpolation(name, border):
    plain = build_features(name).eval().double()
    fine = refine(plain)
    first = "features.0" if name == "squeezenet1_1" else "conv1"
    image = torch.rand(1, 3, 50, 63, dtype=torch.float64)
    large = F.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False)
    expected = plain.trunk.get_submodule(first)(large)
    found = fine.trunk.get_submodule(first)(image)
    assert found.shape[2:] == (50, 63)
    inner = (slice(None), slice(None), slice(border, 47), slice(border, 60))
    torch.testing.assert_close(found[inner], expected[inner], rtol=1e-12, atol=1e-12)
    # The given backbone is left alone.
    assert plain.trunk.get_submodule(first).stride == (2, 2)
    assert fine.trunk(image).shape[2] == plain.trunk(large).shape[2]


def test_a_first_layer_without_stride_two_is_refused():
    with pytest.raises(ModelError, match=r"convnext_tiny has stride 4.*finer resolution"):
        refine(build_features("convnext_tiny"))


@pytest.mark.parametrize("layers", ["", "layer2"])
def test_weights_are_loaded_in_their_usual_layout(tmp_path, layers):
    torch.manual_seed(0)
    source = build_features("resnet18")
    tensors = {k.removeprefix("trunk."): v.contiguous() for k, v in source.state_dict().items()}
    save_file(tensors, tmp_path / "w.safetensors")
    net = SlideClassifier("resnet18", 2, layers=layers, fine=True)
    net.load_backbone(tmp_path / "w.safetensors")
    expected = refine(source).state_dict()
    found = net.features.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert any("layer3" in name for name in found) == (layers == "")
    assert net.field[0].stride == (16 if layers == "" else 4)


def test_a_family_with_a_fine_first_layer_has_cells_half_as_wide():
    outputs = {}
    for fine in (False, True):
        config = StreamingConfig(backbone="squeezenet1_1", layers="features.5", fine=fine, tile=64)
        assert FAMILY.maps(config, ("a", "b"))[0].mpp == (4.0 if fine else 8.0)
        network = FAMILY.build(config, 2).eval()
        model = Model("m", "streaming", config, ("a", "b"), network, device=torch.device("cpu"))
        model.card = {"mpp": 1.0}
        picture = np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
        outputs[fine] = replay(model, picture)["map.probability"].shape[2:]
    assert outputs[True][0] >= 2 * outputs[False][0] - 2
