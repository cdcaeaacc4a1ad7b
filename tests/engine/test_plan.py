"""From a request to a frozen plan: presets, overrides, lengths, and what is refused."""

from __future__ import annotations

import json
from inspect import Parameter, signature

import pytest

from slidelens.engine.train import train
from slidelens.engine.training.file import read_train_file
from slidelens.engine.training.plan import TrainOptions, plan_training
from slidelens.errors import ModelError
from slidelens.families.local import LocalConfig
from slidelens.families.local_train import LocalStage, LocalTraining
from slidelens.families.magnet_schedule import MagNetTraining
from slidelens.tiling.tissue import TissueSettings

_NO_FOLDS = ((4, 3), (0, 3), (-1, 3), (1, 0), (1, 1))


@pytest.fixture
def plan(tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    rows = ["slide_id,label"]
    for number in range(10):
        (slides / f"s{number}.tif").touch()
        rows.append(f"s{number},{number % 2}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))

    def make(family="mil", **options):
        return plan_training(family, slides, tmp_path / "labels.csv", tmp_path / "m", **options)

    return make


def test_defaults_are_those_of_the_contract(plan):
    made = plan()
    assert (made.config.tile, made.config.mpp, made.config.pooling) == (224, 0.5, "top1")
    assert made.weights == "imagenet"
    assert {r.split for r in made.labels.rows} == {"train", "tune"}
    assert set(made.files) == {f"s{i}" for i in range(10)}


def test_the_typed_options_of_train_are_those_of_a_plan():
    known = signature(plan_training).parameters.values()
    named = {p.name for p in known if p.kind is Parameter.KEYWORD_ONLY}
    assert named == set(TrainOptions.__annotations__)
    assert all(f"``{name}``" in train.__doc__ for name in named)


def test_how_tissue_is_found_is_told_as_in_predict(plan, tmp_path):
    otsu = TissueSettings(method="otsu", min_area=0)
    for told in (otsu, ["otsu", "min-area=0"], {"method": "otsu", "min_area": 0}):
        made = plan(tissue=told)
        assert (made.tissue, made.settings["tissue"]["min_area"]) == (otsu, 0)
        assert made.file["slide_tissue"] == {"method": "otsu", "min_area": 0}
    assert plan(tissue="otsu").tissue == TissueSettings(method="otsu")
    assert "tissue" not in plan().settings  # a training that an older version began
    with pytest.raises(ModelError, match=r"method: .*'purple'"):
        plan(tissue="purple")
    with pytest.raises(ModelError, match=r"bags hold the tiles .* leave tissue out"):
        plan(tissue="otsu", config={"pooling": "abmil", "bags": str(tmp_path / "slides")})
    file = tmp_path / "train.yaml"
    for text, option in (("otsu", "otsu"), ("[otsu, min_area=0]", ["otsu", "min_area=0"])):
        file.write_text(f"tissue: {text}\n")
        assert read_train_file(file) == ({"slide_tissue": option}, {})
    file.write_text("tissue: true\nslide_tissue: {min_area: 0}\n")  # the former is MagNet's
    assert read_train_file(file) == ({"slide_tissue": {"min_area": 0}}, {"tissue": True})
    file.write_text("family: magnet\ntissue: true\n")
    assert read_train_file(file) == ({"family": "magnet"}, {"tissue": True})
    file.write_text("tissue: purple\n")
    with pytest.raises(ModelError, match=r"train.yaml: slide_tissue: .*, not 'purple'"):
        read_train_file(file)


def test_paper_preset_is_the_papers_schedule(plan):
    training = plan(preset="paper").training
    assert [(s.epochs, s.lr, s.head_lr) for s in training.stages] == [
        (100, 1e-5, 1e-5),
        (100, 3e-6, 3e-6),
    ]
    assert (training.optimizer, training.momentum, training.train_batch) == ("sgd", 0.9, 16)
    assert (training.window, training.average, training.stages[1].start) == (5, True, "centre")
    assert training.patience == 0


def test_text_overrides_fields_of_both_configurations(plan):
    made = plan(config={"tile": 128, "stain": 0.5}, overrides={"tile": "64", "average": "false"})
    assert made.config.tile == 64
    assert made.training.stain == 0.5
    assert made.training.average is False


@pytest.mark.parametrize(
    ("epochs", "shares"), [(15, [1, 14]), (45, [3, 42]), (2, [1, 1]), (3, [1, 2]), (1, [1])]
)
def test_epochs_are_shared_among_stages(plan, epochs, shares):
    assert [s.epochs for s in plan(epochs=epochs).training.stages] == shares


def test_a_greedy_training_run_again_from_its_file_is_the_same(plan):
    for modules in (1, 3):
        first = plan("local", config={"modules": modules, "greedy": True})
        named = [stage.module for stage in first.training.stages]
        assert named == ([None, None] if modules == 1 else [1, 1, 2, 2, 3, 3])
        again = plan("local", config=_fields(first))
        assert again.settings == first.settings


def _fields(made):
    """Return the fields of the file that a training leaves behind."""
    return {k: v for k, v in made.file.items() if k not in {"family", *made.request}}


def test_a_file_does_not_switch_off_the_augmentation_that_its_own_training_could_not_do(plan):
    first = plan(config={"pooling": "abmil", "colour": 0.0})
    assert not first.training.flips
    fields = _fields(first)
    assert not {"features", "flips", "stain"} & fields.keys()
    assert plan(config=fields).settings == first.settings
    assert fields["colour"] == 0  # which the user asked for
    for other in ({"copies": 2}, {"features": "end-to-end"}):
        training = plan(config=fields | other).training
        assert (training.flips, training.stain, training.colour) == (True, 0.2, 0.0)


def test_end_to_end_on_the_stages_of_a_frozen_backbone_is_warned_of(plan, caplog):
    fields = _fields(plan(config={"pooling": "abmil"}))
    plan(config=fields)
    assert not caplog.text
    plan(config=fields | {"features": "end-to-end"})
    assert "no stage trains the backbone" in caplog.text


@pytest.mark.parametrize(
    ("epochs", "shares"),
    [
        (84, [[3, 18]] * 4),
        (8, [[1, 1]] * 4),
        (10, [[1, 1], [1, 2], [1, 1], [1, 2]]),
        (5, [[1], [1], [1], [1, 1]]),
        (4, [[1]] * 4),
    ],
)
def test_epochs_are_shared_among_modules_that_learn_one_after_the_other(plan, epochs, shares):
    stages = plan("local", config={"greedy": True}, epochs=epochs).training.stages
    found = [[s.epochs for s in stages if s.module == n] for n in range(1, 5)]
    assert found == shares
    assert [s.module for s in stages] == sorted(s.module for s in stages)
    assert all([s.trains for s in stages if s.module == n][-1] == "all" for n in range(1, 5))


def test_too_few_epochs_for_modules_that_learn_one_after_the_other_are_refused(plan):
    with pytest.raises(ModelError, match=r"in 4 parts .* give 4 epochs or more, not 3"):
        plan("local", config={"greedy": True}, epochs=3)


def test_parts_of_unequal_length_are_shortened_alike():
    stages = [LocalStage(epochs=n, lr=1, head_lr=1, module=m) for n, m in ((20, None), (2, 2))]
    default = LocalTraining.model_validate(LocalTraining.presets["default"])
    training = default.model_copy(update={"stages": tuple(stages)}).suited(LocalConfig())
    assert [s.epochs for s in training.of_length(11)["stages"]] == [9, 2]
    assert [s.epochs for s in training.of_length(2)["stages"]] == [1, 1]


@pytest.mark.parametrize(
    ("epochs", "stages", "warmup", "scouting"),
    [(48, [30, 18], 30, 18), (10, [6, 4], 6, 4), (2, [1, 1], 1, 1), (1, [1], 0, 1)],
)
def test_what_learns_first_is_shortened_with_the_stages(epochs, stages, warmup, scouting):
    """Else a short MagNet would end before its attention began to learn."""
    found = MagNetTraining(**MagNetTraining.presets["frozen"]).of_length(epochs)
    assert [s.epochs for s in found["stages"]] == stages
    assert (found["warmup"], found["scouting"]) == (warmup, scouting)
    default = MagNetTraining(**MagNetTraining.presets["default"]).of_length(epochs)
    assert (default["warmup"], default["scouting"]) == (0, 0)


def test_what_slides_are_said_to_be_counts_for_a_resumed_run(plan, tmp_path):
    def stated(mpp):
        return json.dumps(plan(mpp=mpp).settings)

    assert stated(None) == stated(None)
    assert len({stated(mpp) for mpp in (None, 0.5, 1.0, (0.5, 1.0), "from-objective")}) == 5
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("slide_id,mpp\ns,0.5\n")
    second.write_text("slide_id,mpp\ns,0.5\n")
    assert stated(first) == stated(second)
    second.write_text("slide_id,mpp\ns,0.25\n")
    assert stated(first) != stated(second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "nonesuch"}, "nonesuch"),
        ({"preset": "fast"}, "no preset 'fast': choose one of default, paper"),
        (
            {"overrides": {"tiel": "5"}},
            r"unknown tiel \(do you mean tile\?\); the fields are .*backbone, tile, ",
        ),
        ({"overrides": {"stages": "[{epochs: 1}]"}}, "is not JSON .*keys stand in double quotes"),
        ({"overrides": {"tile": "3"}}, "tile: must be at least 32, not 3"),
        ({"overrides": {"stages": '[{"epochs": 0}]'}}, r"stages\.0\.epochs"),
        (
            {"overrides": {"stages": '[{"epochs": 1, "lr": 1e-4, "head_lr": 1e38}]'}},
            r"stages\.0\.head_lr: must be at most 1e\+30, not 1e\+38",
        ),
        ({"overrides": {"weight_decay": "1e38"}}, r"weight_decay: must be at most 1000000"),
        ({"overrides": {"overlap": "224"}}, "overlap 224 px must be below"),
        ({"backbone": "vgg"}, "backbone: .*'vgg'"),
        ({"config": {"bag_dim": 512, "pooling": "abmil"}}, "say where they are, with --bags DIR"),
        ({"annotations": "a"}, "learns from slide labels alone"),
        *(({"fold": fold}, "expected the number of a fold, from 1") for fold in _NO_FOLDS),
        ({"seed": -1}, "seed must be from 0 to 4294967295, not -1"),
        ({"seed": 2**32}, "seed must be from 0 to 4294967295, not 4294967296"),
    ],
)
def test_what_is_refused(plan, options, message):
    with pytest.raises(ModelError, match=message):
        plan(**options)
