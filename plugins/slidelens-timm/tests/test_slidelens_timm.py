"""timm's networks as encoders: the same vectors as timm gives, in a MIL model from end to end."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from slidelens_timm import SOURCE

from slidelens.engine.package import load_model, read_manifest, save_model, verify
from slidelens.engine.predict import predict
from slidelens.engine.publish import pack
from slidelens.engine.train import train
from slidelens.engine.training.plan import plan_training
from slidelens.engine.training.start import initial_model
from slidelens.errors import ModelError
from slidelens.families import mil
from slidelens.families.base import Model
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


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder, 8, size=(1024, 896))
    return folder


def test_a_mil_model_trains_on_it_and_predicts(weights, cohort, tmp_path):
    out = tmp_path / "model"
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


@pytest.mark.parametrize("name", ["hf-hub:owner/net@v1", "HF_hub:owner/net@v1"])
def test_a_package_does_not_make_us_ask_the_hub(hub, name):
    _, asked = hub
    for look in (encoder_facts, build_encoder):
        with pytest.raises(ModelError, match=r"hf download owner/net config\.json --revision v1$"):
            look(f"timm/{name}")
    assert asked == []


def describe(cache, config):
    """Keep a ``config.json`` as the hub's client does."""
    repository = cache / "models--owner--net"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "snapshots" / ("a" * 40)).mkdir(parents=True)
    (repository / "snapshots" / ("a" * 40) / "config.json").write_text(json.dumps(config))


CONFIG = {
    "architecture": NAME,
    "num_classes": 2,
    "label_names": ["normal", "tumour"],
    "model_args": {"img_size": 96},
    "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
}


def test_a_network_of_the_hub_is_built_without_the_network_once_it_is_described(hub):
    cache, asked = hub
    describe(cache, CONFIG)
    assert encoder_facts("timm/hf-hub:owner/net").mean == (0.1, 0.2, 0.3)
    encoder = build_encoder("timm/hf-hub:owner/net").eval()
    with torch.no_grad():
        assert encoder(torch.zeros(1, 3, 96, 96)).shape == (1, encoder.dim)
    assert asked == []


def test_weights_of_the_hub_are_safetensors_and_no_pickle_is_read(hub):
    cache, asked = hub
    describe(cache, CONFIG)
    encoder, folder = build_encoder("timm/hf-hub:owner/net"), next(cache.glob("*/snapshots/*"))
    values = {k: torch.full_like(v, 0.5) for k, v in encoder.network.state_dict().items()}
    torch.save(values, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="could not be fetched"):
        load_encoder(encoder, "timm/hf-hub:owner/net", "imagenet")
    assert asked
    save_file(values, folder / "model.safetensors")
    load_encoder(encoder, "timm/hf-hub:owner/net", "imagenet")
    assert all((value == 0.5).all() for value in encoder.network.state_dict().values())


@pytest.fixture
def package(hub, tmp_path, monkeypatch):
    """A package with an encoder of the hub, on a machine that knows nothing of it."""
    describe(tmp_path, CONFIG)
    config = mil.FAMILY.config(backbone="timm/hf-hub:owner/net", tile=96, pooling="mean")
    model = Model("m", "mil", config, ("normal", "tumor"), mil.FAMILY.build(config, 2).eval())
    save_model(model, tmp_path / "m", golden=np.full((96, 96, 3), 150, np.uint8))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    return tmp_path / "m"


def test_a_package_keeps_what_its_network_looks_like(hub, package, cohort, tmp_path):
    stated = json.loads((package / "model.json").read_text())
    assert stated["encoder"] == {k: v for k, v in CONFIG.items() if k != "label_names"}
    assert verify(package) < 1e-5
    place = cohort / "slides", cohort / "labels.csv", tmp_path / "tuned"
    tuned, _ = initial_model(plan_training("mil", *place, from_model=package), torch.device("cpu"))
    save_model(tuned, tmp_path / "tuned")
    assert read_manifest(tmp_path / "tuned").encoder == stated["encoder"]
    assert hub[1] == []


def test_a_package_of_old_gets_it_when_it_is_packed(hub, package, tmp_path, monkeypatch):
    stated = json.loads((package / "model.json").read_text())
    described = stated.pop("encoder")
    (package / "model.json").write_text(json.dumps(stated))
    with pytest.raises(ModelError, match=r"hf download owner/net config\.json$"):
        load_model(package, "cpu")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    packed = pack(package, tmp_path / "packed", licence="MIT", intended_use="a test")
    assert json.loads((packed / "model.json").read_text())["encoder"] == described


@pytest.mark.parametrize(
    "described",
    [
        {"architecture": "nonesuch"},
        {"architecture": NAME, "pretrained_cfg": {}, "model_args": {"checkpoint_path": "x.pth"}},
        {"architecture": NAME, "pretrained_cfg": {}, "model_args": {"pretrained": True}},
        {"model_args": 1},
    ],
)
def test_a_description_that_is_none_builds_nothing(hub, package, described):
    stated = json.loads((package / "model.json").read_text())
    (package / "model.json").write_text(json.dumps(stated | {"encoder": described}))
    with pytest.raises(ModelError, match=r"hf-hub:owner/net: timm .* makes no network of its desc"):
        load_model(package, "cpu")
    assert hub[1] == []


def test_who_names_a_network_of_the_hub_has_it_asked_once(hub, weights):
    _, asked = hub
    with network_asked(), pytest.raises(ModelError, match=r"cannot be fetched \(the hub does not"):
        encoder_facts("timm/hf-hub:owner/net")
    once = len(asked)
    assert 0 < once <= 2, "its client asks again and again, for 23 s"
    encoder = build_encoder(f"timm/{NAME}")
    with pytest.raises(ModelError, match=r"the weights of timm/test_vit could not be fetched"):
        load_encoder(encoder, f"timm/{NAME}", "imagenet")
    assert once < len(asked) <= 4
