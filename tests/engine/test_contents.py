"""A training goes on only with the slides, bags, annotations and weights that it began with."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import squeezenet1_1

from slidelens.engine.folds import train_folds
from slidelens.engine.package import save_model
from slidelens.engine.train import train
from slidelens.engine.training.contents import CONTENTS
from slidelens.engine.training.plan import plan_training
from slidelens.engine.training.start import initial_model
from slidelens.errors import ModelError
from slidelens.export.clam import ClamBag, write_clam
from train_cohort import annotate, make_cohort, request

_ON_PATCHES = [{"on": "patches", "trains": "head", "epochs": 1, "lr": 1e-3, "head_lr": 1e-2}]
_HEAD = '[{"epochs": 1, "lr": 0.001, "head_lr": 0.01, "trains": "head"}]'


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = annotate(make_cohort(tmp_path_factory.mktemp("cohort"), train=6, tune=2))
    (folder / "bags").mkdir()
    for number in range(8):
        _write_bag(folder / "bags" / f"s{number}.h5", number)
    return folder


def _write_bag(path, seed):
    vectors = np.random.default_rng(seed).normal(size=(3, 5)) + seed % 2
    boxes = np.array([[x, 0, 32, 32] for x in (0, 32, 64)], float)
    write_clam(path, ClamBag(boxes, vectors), path.stem, (96, 96), 0.5)


def _on_annotations(cohort, out, annotations):
    overrides = {"method": "classifier", "stages": json.dumps(_ON_PATCHES)}
    asked = request(cohort, out, overrides=overrides)
    del asked["overrides"]["warm_steps"]  # of MIL
    return {**asked, "family_name": "multistage", "annotations": annotations}


def _on_bags(cohort, out, bags):
    given = {"pooling": "abmil", "bags": str(bags), "stages": _HEAD, "embed": "4", "hidden": "4"}
    asked = request(cohort, out, overrides=given)
    del asked["weights"]
    return {**asked, "slides_dir": bags}


def _begin(asked):
    """Train until after a first step, and stop."""
    steps = train(**asked)
    for step in steps:
        if step.doing == "train" and step.done:
            break
    steps.close()


def test_edited_annotations_are_named_and_do_not_go_on(cohort, tmp_path):
    drawn = shutil.copytree(cohort / "annotations", tmp_path / "drawn")
    asked = _on_annotations(cohort, tmp_path / "m", drawn)
    _begin(asked)
    kept = tmp_path / "m" / "training" / CONTENTS
    assert sorted(json.loads(kept.read_text())["annotations"]) == ["s1", "s3", "s5", "s7"]
    texts = {name: (drawn / name).read_text() for name in ("s3.geojson", "s5.geojson")}
    for name, text in texts.items():
        (drawn / name).write_text(text.replace("32", "31"))
    before, told = (
        kept.read_bytes(),
        r"m: since .*, annotations in .*drawn .*: s3.geojson, s5.geojson\.",
    )
    with pytest.raises(ModelError, match=told):
        train(**asked, resume=True)
    assert kept.read_bytes() == before
    for name, text in texts.items():
        (drawn / name).write_text(text)
    *_, last = train(**asked, resume=True)
    assert last.doing == "done"


def test_other_slides_or_initial_weights_are_named_and_do_not_go_on(cohort, tmp_path):
    slides, first = shutil.copytree(cohort / "slides", tmp_path / "slides"), tmp_path / "w"
    save_file(squeezenet1_1().state_dict(), first)
    asked = request(cohort, tmp_path / "m", weights=str(first)) | {"slides_dir": slides}
    _begin(asked)
    kept = (slides / "s3.tif").read_bytes(), first.read_bytes()
    shutil.copy(slides / "s1.tif", slides / "s3.tif")
    save_file(squeezenet1_1().state_dict(), first)
    with pytest.raises(ModelError, match=r"m: since .*, slides in .*slides have changed: s3.tif\."):
        train(**asked, resume=True)
    (slides / "s3.tif").write_bytes(kept[0])
    with pytest.raises(ModelError, match=r"m: since .*, initial weights in .* have changed: w\."):
        train(**asked, resume=True)
    first.write_bytes(kept[1])
    train(**asked, resume=True).close()


def test_another_model_under_the_name_of_that_which_is_fine_tuned_is_told(cohort, tmp_path):
    def make(seed):
        torch.manual_seed(seed)
        plan = plan_training(**request(cohort, tmp_path / "base"))
        save_model(initial_model(plan, torch.device("cpu"))[0], tmp_path / "base")

    make(0)
    asked = request(cohort, tmp_path / "m", from_model=tmp_path / "base")
    _begin(asked)
    make(1)
    with pytest.raises(ModelError, match=r"initial weights in .*base .*: weights.safetensors\."):
        train(**asked, resume=True)


def test_a_training_that_an_older_version_began_goes_on(cohort, tmp_path):
    drawn = shutil.copytree(cohort / "annotations", tmp_path / "drawn")
    asked = _on_annotations(cohort, tmp_path / "m", drawn)
    _begin(asked)
    kept = tmp_path / "m" / "training" / CONTENTS
    kept.unlink()
    (drawn / "s3.geojson").write_text((drawn / "s3.geojson").read_text() + " ")
    *_, last = train(**asked, resume=True)
    assert last.doing == "done"
    assert kept.exists()


def test_digests_that_cannot_be_read_are_told(cohort, tmp_path):
    asked = _on_bags(cohort, tmp_path / "m", cohort / "bags")
    _begin(asked)
    kept = tmp_path / "m" / "training" / CONTENTS
    kept.write_text("{")
    with pytest.raises(ModelError, match=r"contents.json, .* Delete it if that has not"):
        train(**asked, resume=True)
    kept.write_text('{"schema_version": 2}')
    with pytest.raises(ModelError, match=r"contents.json is not of this version"):
        train(**asked, resume=True)


def test_other_vectors_in_a_bag_are_named_and_do_not_go_on(cohort, tmp_path):
    bags = shutil.copytree(cohort / "bags", tmp_path / "h5")
    asked = _on_bags(cohort, tmp_path / "m", bags)
    _begin(asked)
    _write_bag(bags / "s4.h5", 9)
    with pytest.raises(
        ModelError, match=r"m: since .*, feature bags in .*h5 have changed: s4.h5\."
    ):
        train(**asked, resume=True)
    _write_bag(bags / "s4.h5", 4)  # written anew, with the same content
    *_, last = train(**asked, resume=True)
    assert last.doing == "done"


def test_folds_are_not_trained_beside_those_of_other_bags(cohort, tmp_path):
    bags = shutil.copytree(cohort / "bags", tmp_path / "h5")
    asked = _on_bags(cohort, tmp_path / "cv", bags)
    steps = train_folds(**asked, folds=2)
    for step in steps:
        if step.fold == 2 and step.doing == "train":
            break
    steps.close()
    _write_bag(bags / "s4.h5", 9)
    with pytest.raises(ModelError, match=r"fold-1: since .* feature bags .*: s4.h5\."):
        train_folds(**asked, folds=2, resume=True)
    _write_bag(bags / "s4.h5", 4)
    assert {step.fold for step in train_folds(**asked, folds=2, resume=True)} == {2}
