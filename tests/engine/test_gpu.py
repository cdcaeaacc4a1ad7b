"""Every family on a CUDA device: bundled models say what they say on the CPU; training works."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.engine.test_multistage_training import STAGES as MULTISTAGE

from slidelens.engine.package import load_model
from slidelens.engine.predict import predict
from slidelens.engine.train import train
from slidelens.nn.local import LocalNetwork
from slidelens.nn.relay import Relay
from slidelens.testing.phantom import write_cohort
from slidelens.tiling.tissue import TissueSettings
from train_cohort import annotate, make_cohort, request

pytestmark = pytest.mark.gpu

HOME = Path(__file__).resolve().parents[2] / "models"
PACKAGES = sorted(path.parent for path in HOME.glob("*/model.json"))
WHOLE = TissueSettings(method="whole")
TRAININGS = {
    "top-1": ("mil", {}),
    "gated-abmil": (
        "mil",
        {"pooling": "gated-abmil", "hidden": "6", "embed": "8", "stages": json.dumps(
            [{"epochs": 2, "lr": 0.001, "head_lr": 0.01, "trains": "head"}])},
    ),
    "streaming": ("streaming", {"layers": "features.4", "tile": "64", "saliency_mpp": "4"}),
    "local": ("local", {"modules": "3", "mpp": "0.5", "head_width": "4", "accumulate": "2"}),
    "multistage": (
        "multistage",
        {"stages": json.dumps(MULTISTAGE), "map_batch": "2", "depth": "1", "width": "4"},
    ),
}  # fmt: skip
MAGNET = {"patches": (2, 1), "glance": 64, "look": 64, "mpp": 1.0, "map_mpp": 8.0, "width": 8,
          "state": 16, "auxiliary": "small", "auxiliary_layers": ()}  # fmt: skip


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_cohort(folder, 2, seed=5, size=(1536, 1280))
    return sorted((folder / "slides").iterdir())


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return annotate(make_cohort(tmp_path_factory.mktemp("cohort")))


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda path: path.name)
def test_a_bundled_model_says_what_it_says_on_the_cpu(folder, slides):
    for slide in slides:
        expected = predict(slide, folder, device="cpu", precision="fp32").probabilities
        for precision, within in (("fp32", 0.01), ("bf16", 0.1)):
            found = predict(slide, folder, device="cuda", precision=precision).probabilities
            assert found == pytest.approx(expected, abs=within), (slide.name, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", TRAININGS)
def test_a_family_trains_resumes_and_predicts(name, precision, cohort, tmp_path):
    family, overrides = TRAININGS[name]
    asked = request(cohort, tmp_path / "m", device="cuda")
    if family != "mil":
        for field in ("tile", "min_tissue", "train_batch", "warm_steps", "stages"):
            asked["overrides"].pop(field)
        asked |= {"family_name": family} | ({"epochs": 2} if family != "multistage" else {})
    if family == "multistage":
        asked["annotations"] = cohort / "annotations"
        asked["overrides"] |= {"tile": "32", "min_tissue": "0", "train_batch": "2"}
    asked["overrides"] |= {**overrides, "precision": precision}
    if "pooling" in overrides:
        asked["overrides"].pop("warm_steps", None)
    stopped = train(**asked)
    while next(stopped).doing != "tune":
        pass
    stopped.close()
    *_, last = train(**asked, resume=True)
    assert last.tune_loss is not None
    model = load_model(tmp_path / "m", "cuda")
    assert all(weight.isfinite().all() for weight in model.module.state_dict().values())
    slide = next((cohort / "slides").iterdir())
    on_gpu = predict(slide, model, tissue=WHOLE, precision="fp32").probabilities
    on_cpu = predict(slide, load_model(tmp_path / "m", "cpu"), tissue=WHOLE, precision="fp32")
    assert on_gpu == pytest.approx(on_cpu.probabilities, abs=0.01)


def test_memory_of_the_gpu_does_not_grow_with_the_slide(tmp_path):
    """Batches come one after another: a slide of four times the area takes no more of the GPU."""
    peaks = []
    for side in (2048, 4096):
        write_cohort(tmp_path / str(side), 2, seed=1, size=(side, side))
        slide = next((tmp_path / str(side) / "slides").iterdir())
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        predict(slide, HOME / "demo-mil", tissue=WHOLE, device="cuda", batch_size=16)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] <= 1.05 * peaks[0]


def test_magnet_trains_and_predicts(tmp_path):
    write_cohort(tmp_path, 4, seed=3, size=(1536, 1536), tune=0.5)
    stages = [{"epochs": 1, "lr": 1e-4, "head_lr": 1e-3}]
    overrides = {"warmup": "1", "stages": json.dumps(stages)}
    asked = (tmp_path / "slides", tmp_path / "labels.csv", tmp_path / "m")
    options = {"backbone": "squeezenet1_1", "weights": "none", "seed": 0, "overrides": overrides}
    *_, last = train("magnet", *asked, device="cuda", config=MAGNET, **options)
    assert last.tune_loss is not None
    slide = next((tmp_path / "slides").iterdir())
    on_gpu = predict(slide, tmp_path / "m", device="cuda", precision="fp32")
    on_cpu = predict(slide, tmp_path / "m", device="cpu", precision="fp32")
    assert on_gpu.probabilities == pytest.approx(on_cpu.probabilities, abs=0.02)
    assert on_gpu.trajectory is not None
    assert len(on_gpu.trajectory.windows) == len(on_cpu.trajectory.windows)


def test_rows_of_a_slide_read_as_the_whole_does():
    """A GPU that has no room for whole maps takes rows as wide as the slide."""
    torch.manual_seed(0)
    network = LocalNetwork("resnet18", 2, 4, stem_stride=3).eval().to("cuda")
    image = torch.randint(0, 256, (1, 3, 1100, 700), dtype=torch.uint8, device="cuda")
    mask = torch.rand(11, 7) < 0.7
    with torch.no_grad():
        whole, rows = (network(Relay(image, mask=mask, tile=tile)) for tile in (0, 192))
    for one, other in zip(whole, rows, strict=True):
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(one.attention, other.attention, rtol=1e-2, atol=1e-4)
