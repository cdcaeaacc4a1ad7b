from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_family import make_model

from slidelens.engine import package
from slidelens.engine.package import (
    family_of,
    find_models,
    load_model,
    read_manifest,
    save_model,
    verify,
)
from slidelens.engine.packages.golden import compare, read_golden
from slidelens.errors import ModelError, ResultError
from slidelens.families.base import Model
from slidelens.settings import get_settings


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("SLIDELENS_MODELS", str(folder))
    get_settings.cache_clear()
    yield folder
    get_settings.cache_clear()


def edit(folder: Path, **changes: object) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_round_trip_keeps_network_card_and_unknown_keys(tiny, shelf):
    tiny.mean, tiny.std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    tiny.card = {"licence": "CC0-1.0", "threshold": 0.3, "metrics": {"auc": 0.9}, "paper": ["x", 1]}
    save_model(tiny, shelf / "tiny-model")
    back = load_model("tiny-model", "cpu")
    assert back.config == tiny.config
    assert (back.name, back.family, back.classes) == ("tiny-model", "tiny", ("normal", "tumour"))
    assert (back.mean, back.std) == (tiny.mean, tiny.std)
    assert back.device == torch.device("cpu")
    assert not back.module.training
    assert torch.equal(back.module.head.weight, tiny.module.head.weight)
    assert back.card["licence"] == "CC0-1.0"
    assert back.card["threshold"] == 0.3
    assert back.card["metrics"] == {"auc": 0.9}
    assert back.card["paper"] == ["x", 1]
    assert back.card["created_with"]["torch"] == torch.__version__
    again = save_model(back, shelf / "again")
    first, second = (read_manifest(f).model_dump() for f in (shelf / "tiny-model", again))
    assert first == second


def test_manifest_states_what_the_contract_names(tiny, tmp_path):
    save_model(tiny, tmp_path / "m")
    written = json.loads((tmp_path / "m" / "model.json").read_text())
    expected = {"name", "family", "config", "classes", "mpp", "tile_size", "normalisation"}
    expected |= {"training_data", "metrics", "licence", "intended_use", "weights_sha256"}
    assert expected | {"created_with"} <= written.keys()
    assert (written["mpp"], written["tile_size"]) == (1.0, 16)


@pytest.mark.parametrize("family", ["streaming", "local"])
def test_a_model_without_a_fixed_tile_is_packaged(family, tmp_path):
    """``tile=0``, as memory allows, was refused when the training had ended."""
    kind = family_of(family)
    config = kind.config(backbone="squeezenet1_1", tile=0)
    classes = ("normal", "tumour")
    save_model(Model("m", family, config, classes, kind.build(config, 2)), tmp_path / "m")
    assert read_manifest(tmp_path / "m").tile_size is None
    assert load_model(tmp_path / "m", "cpu").config == config


def test_saving_replaces_whole_and_leaves_nothing_beside(tmp_path):
    save_model(make_model(seed=0), tmp_path / "m")
    (tmp_path / "m" / "SHA256SUMS").write_text("of the model before")
    save_model(make_model(seed=1), tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "model.json",
        "weights.safetensors",
    ]
    assert torch.equal(
        load_model(tmp_path / "m", "cpu").module.head.weight, make_model(seed=1).module.head.weight
    )
    (tmp_path / "m" / "notes.txt").write_text("of a person")
    with pytest.raises(ResultError, match=r"notes\.txt"):
        save_model(make_model(seed=0), tmp_path / "m")
    assert (tmp_path / "m" / "notes.txt").exists()


def test_every_file_of_a_package_may_be_read_by_whom_the_folder_is_for(tiny, tmp_path):
    picture = np.full((32, 32, 3), 200, np.uint8)
    folder = save_model(tiny, tmp_path / "m", golden=picture)
    modes = {file.name: file.stat().st_mode for file in folder.iterdir()}
    assert len(modes) == 3
    assert len(set(modes.values())) == 1, {name: oct(mode) for name, mode in modes.items()}


def test_failed_saving_keeps_the_old_package(tmp_path, tiny):
    save_model(tiny, tmp_path / "m")
    bad = make_model(name="no/good")
    with pytest.raises(ModelError, match="name: must match"):
        save_model(bad, tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert load_model(tmp_path / "m", "cpu").name == "tiny-model"


def test_half_precision_weights_load_as_single(tiny, tmp_path):
    save_model(tiny, tmp_path / "m", half=True)
    weight = load_model(tmp_path / "m", "cpu").module.head.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, tiny.module.head.weight.half().float())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights_sha256": "0" * 64}, "altered or cut short"),
        ({"family": "nonesuch"}, "unknown model family 'nonesuch'; known families: .*mil"),
        ({"config": {"tile": 16, "tiel": 3}}, r"tiel: there is no such field\. Its .*tile, mpp"),
        ({"config": {"tile": -1}, "tile_size": None}, "tile: must be at least"),
        ({"classes": ["a", "b", "c"]}, r"head.bias is \(2,\), expected \(3,\)"),
        ({"classes": []}, "model.json is not a valid manifest: classes"),
        ({"mpp": "fine"}, "model.json is not a valid manifest: mpp"),
        ({"classes": ["a", "a"]}, r"classes: \['a', 'a'\]: expected names, each once"),
        ({"classes": ["a", " "]}, "classes: .* none of them empty"),
        ({"schema_version": 9}, r"schema_version: 9 is newer than this slidelens reads \(1\)"),
        ({"mpp": 0.25}, r"mpp is 0\.25, but config states mpp 1\.0"),
        ({"tile_size": 512}, "tile_size is 512, but config states tile 16"),
        ({"normalisation": {"std": [1, 0, 1]}}, r"normalisation\.std\.1: must be above 0"),
        ({"normalisation": {"mean": [123, 0, 0]}}, r"normalisation\.mean\.0: must be at most 1"),
    ],
)
def test_broken_manifest_says_what_is_wrong(tiny, tmp_path, changes, message):
    save_model(tiny, tmp_path / "m")
    edit(tmp_path / "m", **changes)
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path / "m", "cpu")


def test_weights_missing_or_not_safetensors(tiny, tmp_path):
    folder = save_model(tiny, tmp_path / "m")
    weights = folder / "weights.safetensors"
    weights.write_bytes(b"not weights")
    edit(folder, weights_sha256=package.sha256(b"not weights").hexdigest())
    with pytest.raises(ModelError, match="is not a safetensors file"):
        load_model(folder, "cpu")
    weights.unlink()
    with pytest.raises(ModelError, match=r"cannot read .*weights.safetensors: No such file"):
        load_model(folder, "cpu")


def test_weights_that_are_no_numbers(tiny, tmp_path):
    with torch.no_grad():
        tiny.module.head.bias[1] = float("nan")
    folder = save_model(tiny, tmp_path / "m")
    with pytest.raises(ModelError, match=r"1 of its tensors .*NaN .*the first is head\.bias"):
        load_model(folder, "cpu")


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (torch.Tensor.int, r"head\.bias is int32, expected float32"),
        (lambda t: t.to(torch.complex64), r"head\.bias is complex64, expected float32"),
        (lambda t: t / 0, r"not finite \(NaN or infinite; the first is head\.bias"),
    ],
)
def test_weights_that_a_network_would_take_for_others_are_refused(tiny, tmp_path, convert, message):
    folder = save_model(tiny, tmp_path / "m")
    kept = load_file(folder / "weights.safetensors")
    save_file({**kept, "head.bias": convert(kept["head.bias"] + 1)}, folder / "weights.safetensors")
    content = (folder / "weights.safetensors").read_bytes()
    edit(folder, weights_sha256=package.sha256(content).hexdigest())
    with pytest.raises(ModelError, match=message):
        load_model(folder, "cpu")


def test_half_precision_weights_are_taken(tiny, tmp_path):
    folder = save_model(tiny, tmp_path / "m")
    kept = load_file(folder / "weights.safetensors")
    save_file({k: v.half() for k, v in kept.items()}, folder / "weights.safetensors")
    content = (folder / "weights.safetensors").read_bytes()
    edit(folder, weights_sha256=package.sha256(content).hexdigest())
    assert load_model(folder, "cpu").module.head.bias.dtype == torch.float32


@pytest.mark.parametrize(
    "changes",
    [
        {"normalisation": {"std": [float("inf")] * 3}},
        {"normalisation": {"std": [58.4, 57.1, 57.4]}},
        {"mpp": float("inf")},
        {"classes": ["normal", "\x1b[31mtumor"]},
        {"classes": ["normal", "tumor\nnot"]},
    ],
)
def test_a_manifest_that_no_picture_or_terminal_survives_is_refused(tiny, tmp_path, changes):
    folder = save_model(tiny, tmp_path / "m")
    edit(folder, **changes)
    with pytest.raises(ModelError, match=r"model\.json is not a valid manifest") as told:
        read_manifest(folder)
    assert str(told.value).isprintable()


def test_unknown_name_lists_the_known(tiny, shelf):
    save_model(tiny, shelf / "folder-name")
    with pytest.raises(ModelError, match=r"no model 'nonesuch'; known models: .*tiny-model"):
        load_model("nonesuch", "cpu")
    assert load_model("tiny-model", "cpu").name == "tiny-model"


@pytest.mark.parametrize("given", [Path("nowhere"), "some/where"])
def test_folder_without_manifest(given):
    with pytest.raises(ModelError, match="is not a model package"):
        load_model(given, "cpu")


def test_what_is_no_package_says_which_one_may_be_meant(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for fold in ("fold-1", "fold-2"):
        save_model(tiny, tmp_path / "cv" / fold)
    inside = ", ".join(str(Path("cv", fold)) for fold in ("fold-1", "fold-2"))
    with pytest.raises(ModelError, match=re.escape(f"but packages in it: {inside}. Give one")):
        load_model("cv", "cpu")
    for name in ("weights.safetensors", "model.json"):
        given = Path("cv", "fold-1", name)
        meant = re.escape(f"{given} is not a model package: it is a file; give its folder, ")
        with pytest.raises(ModelError, match=meant):
            load_model(given, "cpu")
    begun = tmp_path / "cv" / "fold-1" / "training"
    begun.mkdir()
    with pytest.raises(ModelError, match=re.escape(f"package: give {begun.parent}.")):
        load_model(begun, "cpu")
    (begun.parent / "model.json").unlink()
    (begun / "checkpoint.json").touch()
    with pytest.raises(ModelError, match=r"fold-1 .* a training that has not ended: .* --resume"):
        load_model(begun.parent, "cpu")


def test_find_models_reports_the_broken_and_goes_on(tiny, shelf):
    save_model(tiny, shelf / "a")
    for name in ("cut", "gone", "strange"):
        save_model(make_model(name=name), shelf / name)
    (shelf / "cut" / "model.json").write_text("{")
    (shelf / "gone" / "weights.safetensors").unlink()
    edit(shelf / "strange", family="nonesuch")
    found = {m.name: m for m in find_models()}
    assert found["tiny-model"].error is None
    assert found["tiny-model"].sha256 == read_manifest(shelf / "a").weights_sha256
    assert found["tiny-model"].classes == ("normal", "tumour")
    assert "not a valid manifest" in found["cut"].error
    assert "weights.safetensors is missing" in found["gone"].error
    assert "unknown model family" in found["strange"].error


def test_a_folder_of_models_that_is_not_there_is_named(shelf, caplog):
    shelf.rmdir()
    with pytest.raises(ModelError, match="no model 'mine'"):
        load_model("mine", "cpu")
    assert f"SLIDELENS_MODELS names {shelf}, which is not a folder" in caplog.text


def test_listing_models_imports_no_torch(tiny, shelf):
    save_model(tiny, shelf / "a")
    code = (
        "import sys; from slidelens.engine.package import find_models; "
        "assert 'tiny-model' in [m.name for m in find_models()]; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"SLIDELENS_MODELS": str(shelf)})


def test_first_place_wins(shelf, tmp_path, monkeypatch):
    save_model(make_model(seed=0), shelf / "m")
    checkout = tmp_path / "checkout" / "src" / "slidelens"
    checkout.mkdir(parents=True)
    save_model(make_model(seed=1), tmp_path / "checkout" / "models" / "m")
    save_model(make_model(name="other"), tmp_path / "checkout" / "models" / "other")
    save_model(make_model(name="wheel"), checkout / "_models" / "wheel")
    monkeypatch.setattr(package.slidelens, "__file__", str(checkout / "__init__.py"))
    assert [m.name for m in find_models()] == ["other", "tiny-model", "wheel"]
    assert torch.equal(
        load_model("tiny-model", "cpu").module.head.weight,
        make_model(seed=0).module.head.weight,
    )
    assert load_model("wheel", "cpu").name == "wheel"


def test_golden_tensors_replay_and_betray_a_change(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
    save_model(make_model(seed=0), tmp_path / "a", golden=image)
    assert verify(tmp_path / "a") < 1e-6
    save_model(make_model(seed=1), tmp_path / "b", golden=image)
    (tmp_path / "b" / "golden.safetensors").write_bytes(
        (tmp_path / "a" / "golden.safetensors").read_bytes()
    )
    with pytest.raises(ModelError, match="does not give its golden output"):
        verify(tmp_path / "b")


def test_golden_tensors_hold_stain_normalisation(tmp_path, monkeypatch):
    """An error in what changes the colours must not pass for the model that was packed."""
    from slidelens.tiling.stain import StainNormalizer

    amounts = np.random.default_rng(0).beta(0.4, 0.8, (128, 128, 2)) * (1.4, 0.8)
    densities = amounts @ np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    image = (255 * np.exp(-densities)).astype(np.uint8)
    save_model(make_model(stain_normalization="macenko"), tmp_path / "m", golden=image)
    save_model(make_model(), tmp_path / "bare", golden=image)
    kept, bare = (read_golden(tmp_path / name)["probabilities"] for name in ("m", "bare"))
    assert not torch.allclose(kept, bare, atol=1e-3)
    assert verify(tmp_path / "m") < 1e-6
    monkeypatch.setattr(StainNormalizer, "__call__", lambda _, pixels: pixels)
    with pytest.raises(ModelError, match="does not give its golden output"):
        verify(tmp_path / "m")


def test_golden_tensors_are_finite(tiny, tmp_path):
    image = np.full((32, 48, 3), 255, np.uint8)
    with torch.no_grad():
        tiny.module.head.weight.fill_(3e38)  # finite, but not what it gives
    with pytest.raises(ModelError, match=r"gives probabilities \[nan, nan\].* not finite"):
        save_model(tiny, tmp_path / "m", golden=image)
    said, nan = ({"probabilities": torch.full((2,), value)} for value in (0.5, float("nan")))
    with pytest.raises(ModelError, match="one of the two is not finite"):
        compare(said, nan, tmp_path / "m")
    with pytest.raises(ModelError, match=r"m gives probabilities \[nan, nan\]"):
        compare(nan, nan, tmp_path / "m")


def test_golden_tensors_of_another_shape_are_told_by_their_shapes(tmp_path):
    kept, now = ({"map.p": torch.zeros(shape)} for shape in ((1, 4, 4), (1, 3, 3)))
    with pytest.raises(ModelError, match=r"holds map\.p 1x4x4, the model now gives map\.p 1x3x3"):
        compare(now, kept, tmp_path / "m")


def test_verify_needs_golden_tensors(tiny, tmp_path):
    save_model(tiny, tmp_path / "m")
    with pytest.raises(ModelError, match="cannot read golden tensors"):
        verify(tmp_path / "m")
