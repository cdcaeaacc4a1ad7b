"""Every pooling through the engine: train on cached features, predict, fine-tune, resume; bags."""

from __future__ import annotations

import csv
import json
import shutil
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch
from safetensors.torch import load_file, save_file

from slidelens.engine import loader
from slidelens.engine.bags import read_bag
from slidelens.engine.cohort import predict_cohort
from slidelens.engine.package import load_model, verify
from slidelens.engine.predict import predict
from slidelens.engine.prediction_table import Outcome
from slidelens.engine.publish import check_package, pack
from slidelens.engine.train import train
from slidelens.engine.training import loop
from slidelens.engine.training.history import TUNE_TABLE
from slidelens.errors import ModelError, SlideError
from slidelens.export import export_result
from slidelens.families.base import Bag
from slidelens.families.mil_given import taken
from slidelens.families.mil_heads import HEAD_FIELDS, POOLINGS, attention_channels
from slidelens.geometry import Box, Mpp, Size
from slidelens.maps.result import Result, find_results
from slidelens.nn.mil import class_probabilities
from slidelens.tiling.grid import GridSpec, make_grid
from slidelens.tiling.tissue import TissueSettings
from train_cohort import TILE, make_cohort, request

STAGES = '[{"epochs": 2, "lr": 0.001, "head_lr": 0.01, "trains": "head"}]'
SMALL = {"embed": 8, "hidden": 6, "heads": 2, "landmarks": 5, "top": 2}
WHOLE = TissueSettings(method="whole")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def _request(cohort: Path, out: Path, cache: Path, pooling: str, **overrides: str):
    sizes = {k: str(SMALL[k]) for k in HEAD_FIELDS[pooling] if k in SMALL}
    common = {"pooling": pooling, "features": "cached", "stages": STAGES, "bag_cache": str(cache)}
    return request(cohort, out, overrides=common | sizes | overrides)


@pytest.fixture(scope="module")
def trained(cohort, cache, tmp_path_factory):
    """Trains a pooling once; the backbone's random weights are the same (one seed)."""
    models = tmp_path_factory.mktemp("models")

    def make(pooling):
        out = models / pooling
        if not out.exists():
            list(train(**_request(cohort, out, cache, pooling)))
        return out

    return make


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_learns_and_predicts(pooling, trained, cohort, cache):
    out = trained(pooling)
    card = load_model(out, "cpu").card
    assert card["training"]["features"] == "cached"
    assert len(list(cache.glob("*/*/bag.json"))) == 6  # one per slide, for all poolings
    slide = cohort / "slides" / "s5.tif"
    result = predict(slide, out, tissue=WHOLE, precision="fp32", device="cpu")
    assert sum(result.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert result.maps["probability"].kind == "probability"
    channels = attention_channels(pooling, ("normal", "tumour"))
    assert ("attention" in result.maps) == bool(channels)
    tiles = result.tiles
    assert len(tiles) == 9
    assert (tiles.attention is not None) == bool(channels)
    if channels:
        drawn = result.maps["attention"]
        assert drawn.kind == "attention"
        np.testing.assert_array_equal(
            np.sort(drawn.read()[-1][:3, :3].ravel()), np.sort(tiles.attention)
        )
    assert result.features.vectors.shape == (9, 512)
    with (out / "training" / TUNE_TABLE).open() as file:
        row = next(r for r in csv.DictReader(file) if r["slide_id"] == "s5")
    # Training kept vectors in fp16; prediction does not.
    assert result.probabilities["tumour"] == pytest.approx(float(row["prob_tumour"]), abs=5e-3)


def test_bags_in_single_precision_give_no_warning(cohort, tmp_path):
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(action="error", category=UserWarning):
            asked = _request(cohort, tmp_path / "m", tmp_path / "bags", "mean", bag_dtype="fp32")
            list(train(**asked))
    finally:
        torch.set_warn_always(False)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_fine_tunes(pooling, trained, cohort, cache, tmp_path):
    base = trained(pooling)
    asked = request(
        cohort,
        tmp_path / "tuned",
        from_model=base,
        overrides={"features": "cached", "stages": STAGES, "bag_cache": str(cache)},
    )
    list(train(**asked))
    tuned, start = load_model(tmp_path / "tuned", "cpu"), load_model(base, "cpu")
    assert tuned.config == start.config
    weights, before = tuned.module.state_dict(), start.module.state_dict()
    for name, value in weights.items():
        if name.startswith("features."):
            assert value.equal(before[name]), name
    assert any(not weights[n].equal(before[n]) for n in weights if n.startswith("head."))


def test_another_pooling_takes_the_backbone(trained, cohort, cache, tmp_path):
    asked = request(
        cohort,
        tmp_path / "tuned",
        from_model=trained("top1"),
        overrides={
            "pooling": "clam-mb",
            "embed": "8",
            "hidden": "6",
            "stages": STAGES,
            "bag_cache": str(cache),
        },
    )
    list(train(**asked))
    tuned = load_model(tmp_path / "tuned", "cpu")
    assert (tuned.config.pooling, tuned.config.embed, tuned.config.top) == ("clam-mb", 8, 8)
    assert len(list(cache.glob("*/*/bag.json"))) == 6  # the same backbone: the same bags


@pytest.mark.parametrize("pooling", ["topk", "gated-abmil", "rnn"])
def test_end_to_end_trains_the_backbone(pooling, trained, cohort, cache, tmp_path):
    stages = '[{"epochs": 1, "lr": 0.01, "head_lr": 0.01}]'
    fields = {"features": "end-to-end", "stages": stages}
    list(train(**_request(cohort, tmp_path / "m", cache, pooling, **fields)))
    model = load_model(tmp_path / "m", "cpu")
    assert model.card["training"]["features"] == "end-to-end"
    frozen = load_model(trained(pooling), "cpu").module.state_dict()
    learnt = model.module.state_dict()
    assert any(not v.equal(frozen[k]) for k, v in learnt.items() if k.startswith("features."))
    list(train(**_request(cohort, tmp_path / "n", cache, pooling, **fields)))
    again = load_model(tmp_path / "n", "cpu").module.state_dict()
    assert all(v.equal(again[k]) for k, v in learnt.items())


def test_a_full_tile_cache_changes_nothing(cohort, cache, tmp_path, monkeypatch):
    """Then a slide is read in batches that suit the device, and not in those asked for."""
    monkeypatch.setattr(loader, "_CPU_BYTES", 4 * TILE * TILE * 3)
    stages = '[{"epochs": 1, "lr": 0.01, "head_lr": 0.01}]'
    fields = {"features": "end-to-end", "stages": stages, "optimizer": "sgd"}
    for size in ("2048", "0"):
        asked = _request(cohort, tmp_path / size, cache, "abmil", cache_mb=size, **fields)
        list(train(**asked))
    kept, read = (load_model(tmp_path / n, "cpu").module.state_dict() for n in ("2048", "0"))
    for name, value in kept.items():
        np.testing.assert_allclose(read[name], value, atol=1e-5, err_msg=name)


END_TO_END = (
    '[{"epochs": 1, "lr": 0.001, "head_lr": 0.001},'
    ' {"epochs": 2, "lr": 0.001, "head_lr": 0.001, "trains": "head"}]'
)


@pytest.mark.parametrize(
    "fields",
    [{"copies": "1"}, {"features": "end-to-end", "stages": END_TO_END}],
    ids=["cached", "end-to-end"],
)
def test_resumes_to_the_same_weights(cohort, tmp_path, monkeypatch, fields):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(loop, "SAVE_SHARE", 0.0)
    cache, fields = tmp_path / "cache", {"dropout": "0.3", **fields}
    whole = tmp_path / "whole"
    for number, _ in enumerate(train(**_request(cohort, whole, cache, "clam-sb", **fields))):
        if (whole / "training" / "checkpoint.json").exists():
            shutil.copytree(whole / "training", tmp_path / f"killed-{number}" / "training")
    killed = sorted(tmp_path.glob("killed-*"), key=lambda path: int(path.name.split("-")[1]))
    for out in killed[:: max(1, len(killed) // 3)]:
        list(train(**_request(cohort, out, cache, "clam-sb", **fields), resume=True))
        name = "weights.safetensors"
        assert (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three classes: normal, and dark tiles in two colours."""
    folder = make_cohort(tmp_path_factory.mktemp("three"), train=6, tune=3)
    rows = ["slide_id,label,split"]
    for number in range(9):
        path = folder / "slides" / f"s{number}.tif"
        pixels = tifffile.imread(path)
        if number % 3 == 2:
            pixels[:TILE, :TILE] = (40, 120, 60)
        tifffile.imwrite(
            path,
            pixels,
            tile=(32, 32),
            photometric="rgb",
            resolution=(20000, 20000),
            resolutionunit="CENTIMETER",
        )
        rows.append(f"s{number},{'abc'[number % 3]},{'train' if number < 6 else 'tune'}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.parametrize("pooling", ["topk", "rnn", "dsmil", "clam-mb", "transmil"])
def test_three_classes(pooling, three, tmp_path):
    list(train(**_request(three, tmp_path / "m", three / "cache", pooling)))
    result = predict(three / "slides" / "s8.tif", tmp_path / "m", tissue=WHOLE, device="cpu")
    assert list(result.probabilities) == ["a", "b", "c"]
    assert result.tiles.probabilities.shape == (9, 3)
    np.testing.assert_allclose(result.tiles.probabilities.sum(1), 1, atol=1e-5)
    channels = attention_channels(pooling, ("a", "b", "c"))
    if len(channels) == 3:  # the column is the likeliest class's
        likeliest = max(result.probabilities, key=result.probabilities.get)
        plane = result.maps["attention"].read()[channels.index(likeliest)]
        np.testing.assert_allclose(
            np.sort(plane[:3, :3].ravel()), np.sort(result.tiles.attention), rtol=1e-5
        )


@pytest.fixture(scope="module")
def bags(cohort, trained, tmp_path_factory):
    """The features of a model's results, as h5 files."""
    base, folder = trained("abmil"), tmp_path_factory.mktemp("bags")
    slides = sorted((cohort / "slides").iterdir())
    run = predict_cohort(slides, [base], folder / "results", tissue=WHOLE, precision="fp32")
    list(run)
    (folder / "h5").mkdir()
    for path in find_results(folder / "results"):
        export_result(Result.load(path), "clam-h5", folder / "h5")
    return base, folder / "h5"


def _bag_request(cohort, out, bags, pooling="abmil", **options):
    asked = request(cohort, out, **options)
    asked["slides_dir"] = bags
    asked["overrides"] |= {"pooling": pooling, "bags": str(bags), "stages": STAGES, "embed": "8"}
    return asked


def test_trains_from_bags_of_its_own_backbone(bags, cohort, tmp_path):
    """No slide is read; the package has the backbone and runs on slides."""
    base, folder = bags
    list(train(**_bag_request(cohort, tmp_path / "m", folder, from_model=base)))
    model = load_model(tmp_path / "m", "cpu")
    assert model.config.bag_dim == 0
    assert model.card["training"]["bags"] == str(folder)
    predict(cohort / "slides" / "s1.tif", tmp_path / "m", tissue=WHOLE, device="cpu")


def test_bags_of_another_backbone_are_refused(bags, cohort, tmp_path):
    _, folder = bags
    with pytest.raises(SlideError, match=r"6 of 6 slides.*\n.*another backbone.*bag_dim=512"):
        list(train(**_bag_request(cohort, tmp_path / "m", folder, seed=77)))


@pytest.mark.parametrize("own", [True, False], ids=["its own", "bag_dim"])
@pytest.mark.parametrize(
    ("part", "fact", "value", "told"),
    [
        ("coords", "spacing_um_px", 1.0, "mpp 1 (WHO 0.5)"),
        ("coords", "patch_size", 64, "tile 64 (WHO 32)"),
        ("coords", "overlap", 8, "overlap 8 (WHO 0)"),
        ("features", "orientations", "8", "orientations 8 (WHO 1)"),
        (
            "features",
            "stain_normalization",
            "macenko",
            "stain_normalization macenko (WHO none)",
        ),
    ],
)
def test_a_bag_of_other_tiles_is_refused(bags, cohort, tmp_path, own, part, fact, value, told):
    base, folder = bags
    shutil.copytree(folder, tmp_path / "h5")
    with h5py.File(tmp_path / "h5" / "s2.h5", "a") as file:
        file[part].attrs[fact] = value
    options = {"from_model": base} if own else {"config": {"bag_dim": 512}}
    with pytest.raises(SlideError) as caught:
        list(train(**_bag_request(cohort, tmp_path / "m", tmp_path / "h5", **options)))
    whose = "the model has" if own else "the bags before have"
    first, *rest = str(caught.value).split("\n")
    assert first.startswith("1 of 6 slides cannot be used")
    assert rest == [
        f"  s2: its bag has {told.replace('WHO', whose)}; give bags that were made alike."
    ]


def test_bags_of_two_backbones_are_refused(bags, cohort, tmp_path):
    _, folder = bags
    shutil.copytree(folder, tmp_path / "h5")
    with h5py.File(tmp_path / "h5" / "s2.h5", "a") as file:
        file["features"].attrs["backbone_sha256"] = "another one"
    asked = _bag_request(cohort, tmp_path / "m", tmp_path / "h5", config={"bag_dim": 512})
    with pytest.raises(SlideError, match=r"\n.*s2: its bag has backbone_sha256 another one \(the"):
        list(train(**asked))


def test_a_model_on_bags_normalises_stains_as_they_were(bags, cohort, tmp_path):
    base, folder = bags
    shutil.copytree(folder, tmp_path / "h5")
    for path in (tmp_path / "h5").iterdir():
        with h5py.File(path, "a") as file:
            assert file["features"].attrs["stain_normalization"] == "none"
            file["features"].attrs["stain_normalization"] = "macenko"
    asked = _bag_request(cohort, tmp_path / "m", tmp_path / "h5", from_model=base)
    list(train(**asked))
    assert load_model(tmp_path / "m", "cpu").config.stain_normalization == "macenko"
    with h5py.File(tmp_path / "h5" / "s2.h5", "a") as file:  # as older versions wrote it
        del file["features"].attrs["stain_normalization"]
    with pytest.raises(SlideError, match=r"s2: .*stain_normalization none \(the model has macenko"):
        list(train(**{**asked, "out": tmp_path / "n"}))


def test_bags_whose_backbone_cannot_be_downloaded_say_why_there_is_one(
    bags, cohort, tmp_path, monkeypatch
):
    """Those of other programs need none; "--weights none" would be another than the bags'."""

    def offline(*_args, **_options):
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    told = (
        r"h5: its bags were made by squeezenet1_1, and the model has it too, .* \(no network\)\. "
        r"Give those .* --weights FILE or --from MODEL, .* --set bag_dim=512\.$"
    )
    with pytest.raises(ModelError, match=told):
        list(train(**_bag_request(cohort, tmp_path / "m", bags[1], weights=None)))
    with pytest.raises(ModelError, match=r"could not be downloaded .*--weights none"):
        list(train(**request(cohort, tmp_path / "m", weights=None)))


def test_trains_from_bags_made_elsewhere(bags, cohort, tmp_path):
    _, folder = bags
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for path in folder.iterdir():
        with h5py.File(path) as old, h5py.File(foreign / path.name, "w") as new:
            new["features"], new["coords"] = old["features"][:], old["coords"][:]
            new["coords"].attrs["patch_size"] = 256
    list(train(**_bag_request(cohort, tmp_path / "m", foreign, weights=None)))
    model = load_model(tmp_path / "m", "cpu")
    assert (model.config.bag_dim, model.config.tile) == (512, 256)
    assert model.module.features is None
    with h5py.File(foreign / "s2.h5", "a") as file:
        del file["features"]
        file["features"] = np.ones((9, 100))
    with pytest.raises(SlideError, match=r"1 of 6.*\n.*s2: .*length 100, the model takes 512"):
        list(train(**_bag_request(cohort, tmp_path / "n", foreign)))


def test_a_preset_that_is_not_there_names_those_that_are(cohort, cache, tmp_path):
    asked = _request(cohort, tmp_path / "m", cache, "abmil") | {"preset": "paper"}
    with pytest.raises(ModelError, match="no preset 'paper': choose one of default"):
        train(**asked)


@pytest.fixture(scope="module")
def on_vectors(bags, cohort, tmp_path_factory):
    """A model that begins with vectors."""
    out = tmp_path_factory.mktemp("vectors") / "m"
    list(train(**_bag_request(cohort, out, bags[1], config={"bag_dim": 512})))
    return out


def test_a_model_on_vectors_runs_on_those_of_a_slide(bags, cohort, on_vectors):
    """It says of each tile and of the slide what its head makes of the bag, in its order."""
    slide, file = cohort / "slides" / "s1.tif", bags[1] / "s1.h5"
    how = {"tissue": WHOLE, "device": "cpu", "bags": bags[1]}
    result = predict(slide, on_vectors, **how)
    bag, network = read_bag(file), load_model(on_vectors, "cpu").module.eval()
    vectors = torch.from_numpy(bag.vectors)
    with torch.no_grad():
        logits = network.instances(vectors)
        tiles = class_probabilities(logits)
        whole = network(bag=network.essence(vectors, logits))
    np.testing.assert_allclose(result.tiles.boxes, bag.boxes)
    np.testing.assert_allclose(result.tiles.probabilities, tiles.numpy(), atol=1e-6)
    np.testing.assert_allclose(result.tiles.attention, whole.attention[0].numpy(), atol=1e-6)
    wanted = class_probabilities(whole.logits[None])[0].tolist()
    assert list(result.probabilities.values()) == pytest.approx(wanted, abs=1e-6)
    assert result.features is None
    for region in (Box(*bag.boxes[4]), Box(33, 33, 32, 32), Box(40, 0, 8, 200)):
        part = predict(slide, on_vectors, **how, region=region)
        read = predict(slide, bags[0], **{**how, "bags": None}, region=region)
        np.testing.assert_allclose(part.tiles.boxes, read.tiles.boxes)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A slide of 100 x 90 px, smaller than the tile of its bag."""
    folder = tmp_path_factory.mktemp("tiny")
    pixels = np.full((90, 100, 3), (200, 120, 170), np.uint8)
    how = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(folder / "s1.tif", pixels, photometric="rgb", tile=(32, 32), **how)
    return folder / "s1.tif"


def _foreign(folder, corners, side):
    """Write a bag as other programs do."""
    folder.mkdir()
    with h5py.File(folder / "s1.h5", "w") as file:
        file["features"], file["coords"] = np.ones((len(corners), 512)), np.array(corners)
        file["coords"].attrs["patch_size_level0"] = side
    return folder


def test_a_tile_that_reaches_over_the_border_counts(on_vectors, tiny, tmp_path):
    """Its centre lies outside the slide; training takes it too."""
    how = {"tissue": WHOLE, "device": "cpu"}
    folder = _foreign(tmp_path / "one", [(0, 0)], 224)
    result = predict(tiny, on_vectors, **how, bags=folder)
    np.testing.assert_allclose(result.tiles.boxes, [[0, 0, 224, 224]])
    assert np.isfinite(result.maps["probability"].read()).any()
    folder = _foreign(tmp_path / "four", [(0, 0), (64, 0), (0, 64), (64, 64)], 64)
    assert len(predict(tiny, on_vectors, **how, bags=folder).tiles) == 4
    part = predict(tiny, on_vectors, **how, bags=folder, region=Box(90, 80, 10, 10))
    np.testing.assert_allclose(part.tiles.boxes, [[64, 64, 64, 64]])


def test_a_bag_of_another_slide_of_this_name_is_refused(bags, on_vectors, tiny, tmp_path):
    how = {"tissue": WHOLE, "device": "cpu"}
    folder = _foreign(tmp_path / "other", [(0, 0), (64, 64), (128, 0)], 64)
    told = r"s1\.h5: 1 of the 3 tiles of its bag lie outside .*100 x 90 px, .*x=128, y=0: .*another"
    with pytest.raises(SlideError, match=told):
        predict(tiny, on_vectors, **how, bags=folder)
    with pytest.raises(SlideError, match=r"s1\.h5: .* 96 x 96 px, this one has 100 x 90 px"):
        predict(tiny, on_vectors, **how, bags=bags[1])


@pytest.mark.parametrize("overlap", [0, 8, 20])
@pytest.mark.parametrize("size", [(100, 90), (260, 175), (32, 20)])
def test_a_region_of_a_bag_has_the_tiles_of_the_grid(size, overlap):
    random = np.random.default_rng(overlap)
    size, mpp, spec = Size(*size), Mpp(0.25, 0.3), GridSpec(32, 0.5, overlap)
    whole = make_grid(size, mpp, spec).boxes
    facts = {"overlap": str(overlap), "tile": "32"}
    bag = Bag(whole, np.zeros((len(whole), 1), np.float32), facts)
    assert len(taken(bag, size, Box.of_size(size))) == len(whole)
    for _ in range(200):
        x, y = random.uniform(0, 1, 2) * size
        region = Box(x, y, *(random.uniform(0, 1, 2) * size)).intersect(Box.of_size(size))
        grid = make_grid(size, mpp, spec, region=region)
        np.testing.assert_array_equal(whole[taken(bag, size, region)], grid.boxes)


def test_a_bag_without_a_tile_in_the_region_is_told(on_vectors, tiny, tmp_path):
    folder = _foreign(tmp_path / "h5", [(0, 0)], 32)
    with pytest.raises(SlideError, match=r"s1\.h5: none of the 1 tiles .* 10 x 10 px; check"):
        predict(tiny, on_vectors, device="cpu", bags=folder, region=Box(80, 80, 10, 10))


@pytest.fixture
def others(bags, tmp_path):
    """The bags, as another backbone had made them."""
    folder = tmp_path / "others"
    shutil.copytree(bags[1], folder)
    for path in folder.iterdir():
        with h5py.File(path, "a") as file:
            file["features"].attrs["backbone_sha256"] = "another one"
            file["coords"].attrs["patch_size"] = 64
    return folder


def test_a_model_on_vectors_takes_only_such_as_it_learnt_from(
    bags, others, cohort, on_vectors, tmp_path
):
    kept = json.loads((on_vectors / "model.json").read_text())["bag_facts"]
    with h5py.File(bags[1] / "s1.h5") as file:
        made_by = file["features"].attrs["backbone_sha256"]
    assert kept == {
        "stain_normalization": "none",
        "tile": 32,
        "overlap": 0,
        "mpp": 0.5,
        "orientations": 1,
        "backbone_sha256": made_by,
    }
    slide, how = cohort / "slides" / "s1.tif", {"tissue": WHOLE, "device": "cpu"}
    told = (
        r"s1\.h5: its bag has tile 64 \(the model learnt from 32\), backbone_sha256 another one \("
    )
    with pytest.raises(SlideError, match=told):
        predict(slide, on_vectors, **how, bags=others)
    older = load_model(on_vectors, "cpu")
    del older.card["bag_facts"]
    predict(slide, older, **how, bags=others)
    foreign = _foreign(tmp_path / "foreign", [(0, 0)], 64)
    predict(slide, on_vectors, **how, bags=foreign)


@pytest.mark.parametrize("base", ["vectors", "backbone"])
def test_fine_tuning_on_vectors_goes_on_with_such(bags, others, cohort, on_vectors, tmp_path, base):
    start = on_vectors if base == "vectors" else bags[0]
    how = {"from_model": start, "config": {"bag_dim": 512}}
    asked = _bag_request(cohort, tmp_path / "m", others, **how)
    with pytest.raises(SlideError, match=r"6 of 6 slides(.|\n)*\(the model learnt from 32\)"):
        list(train(**asked))
    list(train(**_bag_request(cohort, tmp_path / "n", bags[1], **how)))
    tuned = load_model(tmp_path / "n", "cpu").card["bag_facts"]
    assert tuned == load_model(on_vectors, "cpu").card["bag_facts"]
    list(train(**asked | {"classes": ["a", "b"], "labels_csv": _renamed(cohort, tmp_path)}))


def _renamed(cohort, folder):
    """Return labels of other classes, for which a head begins anew."""
    text = (cohort / "labels.csv").read_text()
    (folder / "other.csv").write_text(text.replace("normal", "a").replace("tumour", "b"))
    return folder / "other.csv"


def test_bags_of_regions_are_told_and_run_as_such(bags, cohort, on_vectors, tmp_path, caplog):
    base, folder = bags
    shutil.copytree(folder, tmp_path / "h5")
    slide, region = cohort / "slides" / "s1.tif", Box(32, 0, 64, 60)
    how = {"tissue": WHOLE, "device": "cpu"}
    part = predict(slide, base, **how, region=region)
    export_result(part, "clam-h5", tmp_path / "h5", overwrite=True)
    list(train(**_bag_request(cohort, tmp_path / "m", tmp_path / "h5", from_model=base)))
    (said,) = [r.getMessage() for r in caplog.records if "region" in r.getMessage()]
    assert "the bags of 1 slide are of a region alone" in said
    assert "label of the whole slide: s1. " in said
    told = (
        r"s1\.h5: its bag is of a part of the slide alone; run that part, with --region 32,0,64,60,"
    )
    with pytest.raises(SlideError, match=told):
        predict(slide, on_vectors, **how, bags=tmp_path / "h5")
    again = predict(slide, on_vectors, **how, bags=tmp_path / "h5", region=region)
    np.testing.assert_allclose(again.tiles.boxes, part.tiles.boxes)


def test_a_run_on_vectors_is_as_new_as_they_are(bags, cohort, on_vectors, tmp_path):
    shutil.copytree(bags[1], tmp_path / "h5")
    slides = [cohort / "slides" / f"s{i}.tif" for i in (1, 2)]
    run = (slides, [on_vectors], tmp_path / "out")
    how = {"tissue": WHOLE, "device": "cpu", "bags": tmp_path / "h5"}

    def outcomes():
        return [e for e in predict_cohort(*run, **how) if isinstance(e, Outcome)]

    assert [o.status for o in outcomes()] == ["done", "done"]
    with h5py.File(tmp_path / "h5" / "s2.h5", "a") as file:
        file["features"][0] = 1.0
    assert [o.status for o in outcomes()] == ["skipped", "done"]
    (tmp_path / "h5" / "s1.h5").unlink()
    with h5py.File(tmp_path / "h5" / "s2.h5", "a") as file:
        short = file["features"][:, :7]
        del file["features"]
        file["features"] = short
    first, second = outcomes()
    assert "s1.h5: no such feature bag" in first.error
    assert "vectors of length 7, the model takes 512" in second.error


def test_vectors_are_asked_for_and_refused_before_anything_runs(bags, cohort, on_vectors, tmp_path):
    slides = [cohort / "slides" / "s1.tif"]
    with pytest.raises(ModelError, match=r"give the folder of the slides' \.h5 files, with --bags"):
        predict_cohort(slides, [on_vectors], tmp_path)
    with pytest.raises(ModelError, match=r"makes its feature vectors itself: leave --bags"):
        predict_cohort(slides, [bags[0]], tmp_path, bags=bags[1])


def test_tiles_of_unknown_size_touch(bags, tmp_path):
    bag = read_bag(bags[1] / "s1.h5")
    with h5py.File(tmp_path / "bare.h5", "w") as file:
        file["features"], file["coords"] = bag.vectors, bag.boxes[:, :2].astype(int)
    np.testing.assert_allclose(read_bag(tmp_path / "bare.h5").boxes, bag.boxes)


def test_a_model_on_vectors_is_packed_and_checked(on_vectors, tmp_path):
    words = {"licence": "CC0-1.0", "intended_use": "Of no tissue."}
    packed = pack(on_vectors, tmp_path / "packed", **words)
    assert any("replayed" in line for line in check_package(packed))
    kept = load_file(packed / "golden.safetensors")
    assert kept["map.probability"].shape[0] > 10
    other = shutil.copytree(packed, tmp_path / "other")
    save_file({**kept, "input": 255 - kept["input"]}, other / "golden.safetensors")
    with pytest.raises(ModelError, match="does not give its golden output"):
        verify(other)
