"""timm's networks as encoders: the same vectors as timm gives, in a MIL model from end to end."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from slidelens_timm import SOURCE

from slidelens.engine.package import load_model
from slidelens.engine.predict import predict
from slidelens.engine.train import train
from slidelens.errors import ModelError
from slidelens.nn.encoders import build_encoder, encoder_facts, load_encoder, network_asked
from slidelens.slide.open import open_slide
from slidelens.testing.conformance import EncoderConformance
from slidelens.testing.phantom import write_cohort

NAME = "test_vit"  # timm's own smallest vision transformer, 160 px


class TestTimm(EncoderConformance):
    source = SOURCE
    variant = NAME


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(1)
    network = timm.create_model(NAME, num_classes=7)  # a classifier, whose head is left out
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(network.state_dict(), path)
    return path


def test_vectors_are_those_of_timm(weights):
    encoder = build_encoder(f"timm/{NAME}").eval()
    report = load_encoder(encoder, f"timm/{NAME}", weights)
    assert {name.split(".")[0] for name in report.ignored} == {"head"}
    direct = timm.create_model(NAME, num_classes=7).eval()
    direct.load_state_dict(load_file(weights))
    direct.reset_classifier(0)
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), direct(images))
        assert encoder(images).shape == (2, encoder.dim)


def test_normalisation_and_size_are_the_networks_own():
    facts = encoder_facts(f"timm/{NAME}")
    config = timm.get_pretrained_cfg(NAME).to_dict()
    assert facts.mean == tuple(config["mean"])
    assert facts.std == tuple(config["std"])
    assert facts.tile == config["input_size"][-1] == 160
    assert encoder_facts("resnet18") is None


def test_what_timm_lacks_is_named_with_what_is_similar():
    with pytest.raises(ModelError, match=r"timm has no model 'resnet1'.*similar: .*resnet1"):
        build_encoder("timm/resnet1")


def test_weights_of_another_network_are_refused(weights, tmp_path):
    encoder = build_encoder("timm/test_resnet")
    with pytest.raises(ModelError, match="not the weights of timm/test_resnet"):
        load_encoder(encoder, "timm/test_resnet", weights)
    (tmp_path / "w.safetensors").write_bytes(b"text")
    with pytest.raises(ModelError, match="not a safetensors file"):
        load_encoder(encoder, "timm/test_resnet", tmp_path / "w.safetensors")


def test_a_mil_model_trains_on_it_and_predicts(weights, tmp_path):
    write_cohort(tmp_path / "cohort", 8, size=(1024, 896))
    cohort, out = tmp_path / "cohort", tmp_path / "model"
    fields = {"backbone": f"timm/{NAME}", "pooling": "gated-abmil"}
    steps = train(
        "mil",
        cohort / "slides",
        cohort / "labels.csv",
        out,
        weights=weights,
        epochs=2,
        config=fields,
        device="cpu",
    )
    assert [step.doing for step in steps][-1] == "done"
    manifest = json.loads((out / "model.json").read_text())
    config = timm.get_pretrained_cfg(NAME).to_dict()
    assert manifest["normalisation"]["mean"] == list(config["mean"])
    assert manifest["config"]["tile"] == 160
    model = load_model(out, "cpu")
    with open_slide(next((cohort / "slides").glob("*.tif"))) as slide:
        result = predict(slide, model, device="cpu")
    assert sum(result.probabilities.values()) == pytest.approx(1)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub, and the names of the hosts that anything asks for."""
    asked = []

    def nowhere(host, *args, **kwargs):
        asked.append(host)
        raise OSError("no network in this test")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.getaddrinfo", nowhere)
    return tmp_path, asked


def test_a_package_does_not_make_us_ask_the_hub(hub):
    _, asked = hub
    for look in (encoder_facts, build_encoder):
        with pytest.raises(ModelError, match=r"hf download owner/net config\.json --revision v1$"):
            look("timm/hf-hub:owner/net@v1")
    assert asked == []


def test_a_network_of_the_hub_is_built_without_the_network_once_it_is_described(hub):
    cache, asked = hub
    repository = cache / "models--owner--net"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "snapshots" / ("a" * 40)).mkdir(parents=True)
    described = {
        "architecture": NAME,
        "num_classes": 0,
        "model_args": {"img_size": 96},
        "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    }
    (repository / "snapshots" / ("a" * 40) / "config.json").write_text(json.dumps(described))
    assert encoder_facts("timm/hf-hub:owner/net").mean == (0.1, 0.2, 0.3)
    encoder = build_encoder("timm/hf-hub:owner/net").eval()
    with torch.no_grad():
        assert encoder(torch.zeros(1, 3, 96, 96)).shape == (1, encoder.dim)
    assert asked == []


def test_who_names_a_network_of_the_hub_has_it_asked(hub):
    _, asked = hub
    with network_asked(), pytest.raises(ModelError, match="cannot be fetched"):
        encoder_facts("timm/hf-hub:owner/net")
    assert asked
