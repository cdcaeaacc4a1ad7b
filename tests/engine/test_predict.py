from __future__ import annotations

import gc
import json
import logging
import re
import threading
import warnings
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile
import tiny_family
import torch
from tiny_family import make_model

import slidelens as sl
from rights import nobody
from slidelens.engine import predict as engine
from slidelens.engine.loader import find_tissue, timed_tissue
from slidelens.engine.package import save_model
from slidelens.engine.predict import Prediction, predict
from slidelens.engine.provenance import fingerprint
from slidelens.errors import MissingMppError, ModelError, ResultError, SlideError
from slidelens.export import export_result
from slidelens.families import FAMILIES
from slidelens.families.base import Model, Patch, SlideScore
from slidelens.families.mil import MilConfig, build
from slidelens.geometry import Box, Mpp
from slidelens.slide.array import ArrayReader, from_array
from slidelens.slide.base import Slide
from slidelens.slide.reader import Facts, levels_of
from slidelens.tiling.tissue import TissueMask, TissueSettings

WHOLE = TissueSettings(method="whole")


def picture(height: int = 160, width: int = 240, seed: int = 0) -> np.ndarray:
    """Blocks of 16 px of one colour each: what a tile's probability is, is known."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 255, (height // 16, width // 16, 3), np.uint8)
    return blocks.repeat(16, 0).repeat(16, 1)


def tissue_picture() -> np.ndarray:
    image = np.full((512, 640, 3), 255, np.uint8)
    image[100:300, 150:400] = (190, 80, 150)
    return image


def expected(model, image: np.ndarray) -> np.ndarray:
    """Probabilities of the last class, per block."""
    colours = torch.from_numpy(image[8::16, 8::16].copy()).permute(2, 0, 1)
    h, w = colours.shape[1:]
    logits = model.module.head(colours.reshape(3, -1).T.float() / 255)
    return logits.softmax(1)[:, 1].reshape(h, w).detach().numpy()


@pytest.mark.parametrize("x", [32, 0])
def test_the_scanned_part_that_qupath_counts_from_is_said_and_kept(tiny, tmp_path, caplog, x):
    image = picture()
    part = {"x": x, "y": 0, "width": 240 - x, "height": 160}
    facts = Facts(
        levels_of([(240, 160)]),
        Mpp(1, 1),
        "mirax header",
        properties={f"openslide.bounds-{side}": str(value) for side, value in part.items()},
    )
    with Slide(ArrayReader(image, facts=facts), Path("s.mrxs")) as slide:
        noted = [note for note in slide.notes() if "QuPath shows only" in note]
        saved = predict(slide, tiny, tissue=WHOLE, out=tmp_path)
    stated = json.loads((saved.path / "result.json").read_text())["slide"]
    assert stated.get("bounds") == ([32, 0, 208, 160] if x else None)
    export_result(sl.Result.load(saved.path), "geojson", tmp_path / "r.geojson")
    said = [text for text in caplog.messages if "QuPath" in text]
    assert said == [f"s: {note}" for note in noted]
    assert len(said) == bool(x)
    assert "x=32, y=0 px" in "".join(noted) or not x


def test_the_map_is_what_the_model_says_where_it_says_it(tiny):
    image = picture()
    with from_array(image, mpp=1.0) as slide:
        result = predict(slide, tiny, tissue=WHOLE, precision="fp32")
    truth = expected(tiny, image)
    drawn = result.maps["probability"]
    assert drawn.channels == ("normal", "tumour")
    assert np.allclose(drawn.read()[1, :10, :15], truth, atol=1e-6)
    assert result.probabilities["tumour"] == pytest.approx(float(truth.max()), abs=1e-6)
    assert list(result.probabilities) == ["normal", "tumour"]
    assert len(result.tiles) == 150
    assert np.allclose(result.tiles.probabilities[:, 1], truth.ravel(), atol=1e-6)
    assert result.tiles.boxes[17].tolist() == [32, 16, 16, 16]


def test_result_folder_follows_the_contract(tiny, tmp_path):
    tiny.card["threshold"] = 0.0
    with from_array(tissue_picture(), mpp=(0.5, 0.52), name="s1") as slide:
        result = predict(slide, tiny, out=tmp_path)
    folder = tmp_path / "tiny-model" / "s1"
    assert result.path == folder
    written = json.loads((folder / "result.json").read_text())
    assert written["slide"]["mpp"] == [0.5, 0.52]
    assert (written["slide"]["width"], written["slide"]["height"]) == (640, 512)
    assert written["slide"]["fingerprint"] == fingerprint(slide) == result.slide.fingerprint
    assert written["model"]["name"] == "tiny-model"
    assert len(written["model"]["sha256"]) == len(written["settings_sha256"]) == 64
    assert {m["name"]: m["kind"] for m in written["maps"]} == {
        "probability": "probability",
        "tissue": "labels",
    }
    assert written["timings"].keys() == {"open", "tissue", "read", "infer", "write"}
    assert all(seconds > 0 for seconds in written["timings"].values())
    assert written["software"]["precision"] in ("fp32", "bf16")
    names = {p.name for p in folder.iterdir()}
    assert names == {"result.json", "maps.ome.zarr", "tiles.csv", "regions.geojson"}
    back = sl.Result.load(folder)
    assert back.maps["tissue"].read().any()
    assert back.probabilities == result.probabilities
    features = json.loads((folder / "regions.geojson").read_text())["features"]
    assert len(features) == 1  # the threshold of the model's card: all tissue is positive


def test_only_tissue_is_predicted(tiny):
    with from_array(tissue_picture(), mpp=1.0) as slide:
        result = predict(slide, tiny)
    drawn = np.isfinite(result.maps["probability"].read()[0])
    assert 0 < drawn.sum() == len(result.tiles)
    assert not drawn[:5].any()
    assert not drawn[20:].any()


@pytest.mark.parametrize("mpp", [0.2527, 0.5, 1.0])
@pytest.mark.parametrize("overlap", [0, 6])
def test_a_region_equals_the_crop_of_the_whole(mpp, overlap):
    model = make_model(overlap=overlap)
    region = Box(130, 90, 211, 177)
    with from_array(
        np.random.default_rng(0).integers(0, 255, (500, 600, 3), np.uint8), mpp=mpp
    ) as s:
        whole = predict(s, model, tissue=WHOLE)
        part = predict(s, model, tissue=WHOLE, region=region)
    key = {tuple(b): p for b, p in zip(whole.tiles.boxes, whole.tiles.probabilities, strict=True)}
    assert 0 < len(part.tiles) < len(whole.tiles)
    for box, values in zip(part.tiles.boxes, part.tiles.probabilities, strict=True):
        assert np.array_equal(key[tuple(box)], values)
    if overlap == 0:
        a, b = (r.maps["probability"].read(region) for r in (whole, part))
        assert np.isfinite(b).all()
        assert np.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_batch_size_does_not_change_the_result(tiny, precision):
    with from_array(picture(), mpp=1.0) as slide:
        results = [
            predict(slide, tiny, tissue=WHOLE, batch_size=n, precision=precision)
            for n in (1, 7, 500)
        ]
    first = results[0].maps["probability"].read()
    for other in results[1:]:
        assert np.allclose(first, other.maps["probability"].read(), atol=1e-6, equal_nan=True)
        assert other.settings_sha256 == results[0].settings_sha256


def test_progress_counts_to_the_end(tiny):
    with from_array(picture(), mpp=1.0) as slide:
        run = Prediction(slide, tiny, tissue=WHOLE)
        seen = list(run)
    assert [p.stage for p in seen if p.stage != "infer"] == ["open", "tissue", "write", "done"]
    assert seen[-2].done == seen[-2].total == 150
    assert all(a.done <= b.done for a, b in pairwise(seen[:-1]))
    assert seen[-3].eta is not None
    assert seen[-3].eta < 5
    assert run.result is not None


def test_the_partial_map_can_be_seen(tiny):
    with from_array(picture(), mpp=1.0) as slide:
        run = Prediction(slide, tiny, tissue=WHOLE, batch_size=10)
        assert run.peek() == {}
        counts = [
            int(np.isfinite(run.peek()["probability"].read()[0]).sum())
            for p in run
            if p.stage == "infer"
        ]
    assert counts == [*range(10, 151, 10), 150]  # once more with the slide score


def no_trace_in(folder: Path) -> bool:
    return not any(p.is_file() for p in folder.rglob("*"))


def test_closing_cancels_and_leaves_nothing(tiny, tmp_path, monkeypatch):
    threads = threading.active_count()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with from_array(picture(), mpp=1.0) as slide:
        run = Prediction(slide, tiny, out=tmp_path / "out", tissue=WHOLE, batch_size=2)
        while (step := next(run)).done < 20:
            assert step.stage != "done"
        run.close()
        assert threading.active_count() == threads
        assert slide.read(Box(0, 0, 8, 8)).shape == (8, 8, 3)  # the caller's slide stays open
        with pytest.raises(StopIteration):
            next(run)
    assert run.result is None
    assert no_trace_in(tmp_path)


def test_a_slide_opened_by_path_is_closed_again(tiny, monkeypatch):
    slide = from_array(picture(), mpp=1.0)
    monkeypatch.setattr(engine, "open_slide", lambda path, mpp: slide)
    run = Prediction("x.svs", tiny, tissue=WHOLE)
    next(run)
    run.close()
    with pytest.raises(SlideError, match="closed"):
        slide.read(Box(0, 0, 8, 8))


def test_no_threads_are_left_after_success_or_failure(tiny, monkeypatch):
    threads = threading.active_count()
    with from_array(picture(), mpp=1.0) as slide:
        predict(slide, tiny, tissue=WHOLE)
        assert threading.active_count() == threads
        monkeypatch.setattr(slide, "read", lambda box, mpp=None: 1 / 0)
        with pytest.raises(SlideError, match="division by zero"):
            predict(slide, tiny, tissue=WHOLE)
    assert threading.active_count() == threads


def test_autocast_and_inference_mode_do_not_leak_between_steps(tiny):
    with from_array(picture(), mpp=1.0) as slide:
        for _ in Prediction(slide, tiny, tissue=WHOLE, precision="bf16"):
            assert not torch.is_inference_mode_enabled()
            assert not torch.is_autocast_enabled("cpu")


def test_run_again_is_skipped_until_something_counts(tiny, tmp_path):
    image = picture()

    def run(model=tiny, image=image, mpp=1.0, **options):
        with from_array(image, mpp=mpp, name="s") as slide:
            job = Prediction(slide, model, out=tmp_path, **{"tissue": WHOLE, **options})
            for _ in job:
                pass
        return job

    assert not run().skipped
    again = run(batch_size=3)
    assert again.skipped
    assert again.result.probabilities.keys() == {"normal", "tumour"}
    assert not run(overwrite=True).skipped
    changes = [
        {"model": make_model(seed=1)},
        {"model": make_model(tile=32)},
        {"image": picture(seed=5)},
        {"mpp": 0.9},
        {"region": Box(0, 0, 64, 64)},
        {"precision": "bf16"},
        {"options": {"overlap": 8}},
        {"tissue": TissueSettings(method="otsu")},
        {"tissue": TissueMask(np.ones((10, 15), bool), sl.Affine(16, 16), WHOLE)},
    ]
    for change in changes:
        assert not run(**change).skipped, change
        assert run(**change).skipped, change
    assert not run(region=Box(*np.array([0, 0, 64, 64]))).skipped
    assert run(region=Box(0, 0, 64, 64)).skipped
    affine = sl.Affine(*np.array([16, 16], np.float32))
    assert not run(tissue=TissueMask(np.ones((10, 15), bool), affine, WHOLE)).skipped
    assert run(tissue=TissueMask(np.ones((10, 15), bool), sl.Affine(16, 16), WHOLE)).skipped


def test_a_slide_in_memory_is_known_by_its_pixels_whatever_lies_there(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "case1").mkdir()
    found = []
    for seed in (0, 1):
        with from_array(picture(seed=seed), mpp=1.0, name="case1") as slide:
            found.append(predict(slide, tiny, out=tmp_path / "out", tissue=WHOLE))
    assert found[0].probabilities != found[1].probabilities
    assert "path" not in json.loads((found[1].path / "result.json").read_text())["slide"]


def test_what_an_earlier_version_of_a_family_gave_is_computed_again(tiny, tmp_path, monkeypatch):
    def skipped():
        with from_array(picture(), mpp=1.0, name="s") as slide:
            job = Prediction(slide, tiny, out=tmp_path, tissue=WHOLE)
            for _ in job:
                pass
        return job.skipped

    assert [skipped(), skipped()] == [False, True]
    mended = replace(FAMILIES.get(tiny.family), version=2)
    monkeypatch.setitem(FAMILIES._loaded, tiny.family, mended)
    assert [skipped(), skipped()] == [False, True]


def test_a_damaged_result_is_computed_again(tiny, tmp_path):
    with from_array(picture(), mpp=1.0, name="s") as slide:
        first = predict(slide, tiny, out=tmp_path, tissue=WHOLE)
        (first.path / "result.json").write_text('{"schema_version"')
        job = Prediction(slide, tiny, out=tmp_path, tissue=WHOLE)
        assert [p.stage for p in job][-1] == "done"
    assert not job.skipped
    assert sl.Result.load(first.path).probabilities == first.probabilities


@pytest.mark.parametrize("fault", ["mine", "file above", "rights", "dead link"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_computed(tiny, tmp_path, fault):
    out = tmp_path / "out"
    folder = out / tiny.name / "s"
    folder.parent.mkdir(parents=True)
    told = "cannot write the result"
    if fault == "mine":
        folder.mkdir()
        (folder / "thesis.tex").touch()
        told = "is not a result"
    elif fault == "file above":
        folder.parent.rmdir()
        folder.parent.touch()
    elif fault == "rights":
        tmp_path.chmod(0o755)
        folder.parent.chmod(0o555)
    else:
        folder.symlink_to(tmp_path / "unplugged" / "s")
        told = "a link that leads nowhere"
    with from_array(picture(), mpp=1.0, name="s") as slide:
        run = Prediction(slide, tiny, out=out, tissue=WHOLE)
        assert next(run).stage == "open"
        barred = nobody() if fault == "rights" else nullcontext()
        with barred, pytest.raises(ResultError, match=told):
            next(run)


def test_a_failure_keeps_the_old_result(tiny, tmp_path, monkeypatch):
    with from_array(picture(), mpp=1.0, name="s") as slide:
        first = predict(slide, tiny, out=tmp_path, tissue=WHOLE)
        before = (first.path / "result.json").read_bytes()
        monkeypatch.setattr(slide, "read", lambda box, mpp=None: 1 / 0)
        with pytest.raises(SlideError):
            predict(slide, tiny, out=tmp_path, tissue=WHOLE, overwrite=True)
    assert (first.path / "result.json").read_bytes() == before
    assert [p.name for p in first.path.parent.iterdir()] == ["s"]


def test_mpp_missing_and_given(tiny, tmp_path):
    from PIL import Image

    path = tmp_path / "plain.tif"
    Image.fromarray(picture()).save(path)
    with pytest.raises(MissingMppError, match=r"plain.tif.*--mpp"):
        predict(path, tiny, tissue=WHOLE)
    result = predict(path, tiny, tissue=WHOLE, mpp=0.7)
    assert result.slide.mpp == 0.7
    assert result.tiles.boxes[1].tolist() == pytest.approx([16 / 0.7, 0, 16 / 0.7, 16 / 0.7])


def test_models_by_name_folder_and_object_agree(tiny, tmp_path):
    save_model(tiny, tmp_path / "m")
    with from_array(picture(), mpp=1.0) as slide:
        a = predict(slide, tmp_path / "m", device="cpu", tissue=WHOLE)
        b = predict(slide, tiny, device="cpu", tissue=WHOLE)
    assert a.probabilities == b.probabilities
    assert a.model.sha256 == b.model.sha256


def test_bad_batch_size(tiny):
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        Prediction("x", tiny, batch_size=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tissue": np.ones((4, 4), bool)}, r"tissue is a ndarray, expected TissueSettings\("),
        ({"tissue": "otsu"}, r"tissue is a str, .* or TissueMask\(array, affine\)"),
        ({"precision": "fp16"}, "precision is 'fp16', expected auto, fp32 or bf16"),
        ({"region": Box(0, 0, np.inf, np.inf)}, "region is .*, expected finite x, y, w and h"),
        ({"mpp": 0.25}, r"this one is open: open it with open_slide\(path, mpp="),
    ],
)
def test_what_a_run_would_not_heed_is_refused(tiny, options, message):
    with (
        from_array(picture(), mpp=1.0) as slide,
        pytest.raises((TypeError, ValueError), match=message),
    ):
        predict(slide, tiny, **options)


def family_with(monkeypatch, infer) -> None:
    monkeypatch.setitem(FAMILIES._loaded, "tiny", replace(tiny_family.FAMILY, infer=infer))


def test_gpu_out_of_memory_halves_the_batch(tiny, monkeypatch, caplog):
    sizes = []

    def infer(model, view):
        for event in tiny_family.infer(model, view):
            if isinstance(event, Patch):
                sizes.append(len(event.boxes))
                if len(event.boxes) > 4:
                    raise torch.OutOfMemoryError("CUDA out of memory")
            yield event

    with from_array(picture(), mpp=1.0) as slide:
        truth = predict(slide, tiny, tissue=WHOLE)
        family_with(monkeypatch, infer)
        result = predict(slide, tiny, tissue=WHOLE, batch_size=16)
    assert sizes[:3] == [16, 8, 4]
    assert np.array_equal(result.tiles.boxes, truth.tiles.boxes)
    assert np.allclose(result.tiles.probabilities, truth.tiles.probabilities, atol=1e-6)
    assert "going on with 8 tiles" in caplog.text


def test_out_of_memory_with_one_tile_says_what_to_do(tiny, monkeypatch):
    def infer(model, view):
        for event in tiny_family.infer(model, view):
            raise torch.OutOfMemoryError("CUDA out of memory")
            yield event

    family_with(monkeypatch, infer)
    with (
        from_array(picture(), mpp=1.0) as slide,
        pytest.raises(ModelError, match="does not fit in the memory of cpu"),
    ):
        predict(slide, tiny, tissue=WHOLE)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([], "ended with None; expected a SlideScore of 2 probabilities"),
        ([SlideScore((0.5,))], "expected a SlideScore of 2"),
        ([SlideScore(0.7)], "expected a SlideScore of 2"),
        ([SlideScore((float("nan"), 1.0))], "expected a SlideScore of 2"),
        (
            [Patch("heat", np.zeros((1, 4)), np.zeros((1, 2), np.float32))],
            "drew a map 'heat'; it declares probability",
        ),
    ],
)
def test_a_family_that_breaks_its_contract_is_named(tiny, monkeypatch, events, message):
    family_with(monkeypatch, lambda model, view: iter(events))
    with from_array(picture(), mpp=1.0) as slide, pytest.raises(ModelError, match=message):
        predict(slide, tiny, tissue=WHOLE)


@pytest.mark.realdata
def test_bf16_stays_close_to_fp32_on_real_tissue(data):
    """The documented tolerance of ``precision="auto"``: 0.05 on a probability."""
    from slidelens.families.base import Model
    from slidelens.families.mil import MilConfig, build
    from slidelens.nn.backbones import load_weights

    config = MilConfig(backbone="squeezenet1_1", tile=224, mpp=0.5)
    torch.manual_seed(0)
    module = build(config, 2)
    load_weights(module.features, data / "weights" / "squeezenet1_1_imagenet.safetensors")
    module.head.weight.data *= 4  # a trained head is sharper than a random one
    model = Model("m", "mil", config, ("normal", "tumour"), module)
    path = data / "wsi" / "CMU-1-Small-Region.svs"
    region = Box(300, 300, 1100, 1100)
    fp32, bf16 = (
        predict(path, model, device="cpu", region=region, precision=p).tiles.probabilities
        for p in ("fp32", "bf16")
    )
    assert len(fp32) > 10
    assert 0 < np.abs(fp32 - bf16).max() < 0.05


def test_a_family_without_patches_gets_tiles_from_its_map(tiny, monkeypatch):
    """Contract: the map's mean over the default grid of 112 µm tiles with half tissue."""
    whole = replace(
        tiny_family.FAMILY,
        maps=lambda config, classes: [
            replace(spec, instances=False) for spec in tiny_family.maps(config, classes)
        ],
    )
    monkeypatch.setitem(FAMILIES._loaded, "tiny", whole)
    with from_array(picture(240, 352), mpp=1.0) as slide:
        result = predict(slide, tiny, tissue=WHOLE)
    assert result.tiles.boxes[:3].tolist() == [[112.0 * c, 0, 112, 112] for c in range(3)]
    cells = result.maps["probability"].read()[:, :7, :7]
    np.testing.assert_allclose(result.tiles.probabilities[0], cells.mean((1, 2)), rtol=1e-5)


@pytest.mark.parametrize(
    ("mpp", "outcome"), [(1.0, ""), (1.4, ""), (2.0, "warned"), (4.04, "warned"), (5.0, "refused")]
)
def test_a_slide_coarser_than_the_model_reads(tiny, caplog, mpp, outcome):
    facts = rf"s: its finest resolution is {mpp:g} µm/px .*model 'tiny-model' reads at 1 µm/px"
    with from_array(picture(), mpp=mpp, name="s") as slide:
        if outcome == "refused":
            with pytest.raises(SlideError, match=facts + r".*finer scan.*--mpp X"):
                predict(slide, tiny, tissue=WHOLE)
        else:
            predict(slide, tiny, tissue=WHOLE)
    assert bool(re.search(facts, caplog.text)) == (outcome == "warned")


def test_a_model_that_reads_coarse_levels_takes_a_coarse_slide(tiny, monkeypatch):
    monkeypatch.setattr(type(tiny.config), "finest_mpp", lambda config, extent_um: extent_um / 60)
    with from_array(picture(48, 64), mpp=10.0) as slide:  # 640 µm: read at 10.7 µm/px
        assert predict(slide, tiny, tissue=WHOLE).tiles is not None
        with pytest.raises(SlideError, match=r"reads at 1\.667 µm/px"):  # of a part: 100 µm
            predict(slide, tiny, tissue=WHOLE, region=Box(0, 0, 10, 10))


def test_timings_of_a_slide_that_was_open_are_those_of_opening_it(tiny, tmp_path):
    """A cohort opens the next slide, and finds its tissue, while the model is at work."""
    from PIL import Image

    path = tmp_path / "slide.tif"
    Image.fromarray(tissue_picture()).save(path)
    with sl.open_slide(path, mpp=1.0) as slide:
        assert slide.open_seconds > 0
        slide.open_seconds = 70.0
        find_tissue(slide, TissueSettings())
        _, seconds = timed_tissue(slide, TissueSettings())
        for _ in range(2):
            timings = predict(slide, tiny).timings
            assert timings["open"] > 70
            assert timings["tissue"] == seconds > 0
        mask = find_tissue(slide, TissueSettings())
        assert predict(slide, tiny, tissue=mask).timings["tissue"] == 0


@pytest.mark.parametrize("ended", [True, False])
def test_a_run_leaves_no_file_for_the_collector_to_close(ended):
    """The vectors of its tiles lie in a file; what a collector does, Ctrl-C can get lost in."""
    config = MilConfig(backbone="squeezenet1_1", pooling="abmil", tile=64, mpp=1.0)
    model = Model("m", "mil", config, ("normal", "tumour"), build(config, 2))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ResourceWarning)
        with from_array(picture(), mpp=1.0) as slide:
            run = Prediction(slide, model, tissue=WHOLE)
            stages = [next(run).stage for _ in range(3)] if not ended else [p.stage for p in run]
            run.close()
        assert "infer" in stages
        assert (run.result is not None) == ended
        if ended:
            assert len(run.result.features.vectors) == len(run.result.tiles)
        del run
        gc.collect()
    assert not [str(w.message) for w in told if w.category is ResourceWarning]


def test_a_fluorescence_slide_is_warned_of(tmp_path, caplog):
    path = tmp_path / "cells.ome.tif"
    channels = np.random.default_rng(0).integers(0, 4000, (2, 256, 256)).astype(np.uint16)
    tifffile.imwrite(path, channels, metadata={"axes": "CYX", "Channel": {"Name": ["DAPI", "Cy3"]}})
    with caplog.at_level(logging.WARNING):
        predict(path, make_model(), mpp=1.0)
    assert "cells: looks like a fluorescence slide (DAPI, Cy3)" in caplog.text


def test_a_dark_slide_that_states_no_channels_is_warned_of(caplog):
    dark = np.full((512, 512, 3), 4, np.uint8)
    dark[100:400, 100:400, 2] = 120
    with from_array(dark, mpp=1.0, name="dapi.ndpi") as slide, caplog.at_level(logging.WARNING):
        predict(slide, make_model())
    assert "dapi: looks like a fluorescence slide; the output" in caplog.text


def test_no_brightfield_slide_is_called_fluorescence(caplog):
    with from_array(tissue_picture(), mpp=1.0) as slide, caplog.at_level(logging.WARNING):
        predict(slide, make_model())
    assert "fluorescence" not in caplog.text
