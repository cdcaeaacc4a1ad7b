"""Training of multi-stage segmentation: labels, sampling, stages, both ways of learning."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import shapely
import torch

from slidelens.engine.loader import SlideView
from slidelens.errors import LabelError, ModelError, SlideError
from slidelens.families.base import Model
from slidelens.families.multistage import FAMILY, MultistageConfig
from slidelens.families.multistage_schedule import MapStage, MultistageTraining
from slidelens.families.multistage_train import MultistageTask
from slidelens.families.training import Sample
from slidelens.slide.array import from_array
from slidelens.tiling.annotations import Annotation, Annotations
from slidelens.tiling.tissue import TissueSettings

TILE, ROWS, COLUMNS = 32, 3, 4
STAGES = {
    "warm": MapStage(on="patches", trains="head", epochs=1, lr=1e-3, head_lr=1e-2),
    "patches": MapStage(on="patches", epochs=1, lr=1e-3, head_lr=1e-2),
    "map": MapStage(on="map", trains="head", epochs=1, lr=1e-3, head_lr=1e-2),
    "both": MapStage(on="map", epochs=1, lr=1e-3, head_lr=1e-2),
}


def _drawn(*cells, label="tumour"):
    """Annotate whole patches by column and row."""
    boxes = [shapely.box(TILE * c, TILE * r, TILE * c + TILE, TILE * r + TILE) for c, r in cells]
    return Annotations([Annotation(box, label) for box in boxes])


class Data:
    """Slides in memory, as the engine would give them; every second one has two tumour patches."""

    def __init__(self, train=4, tune=2):
        self.train = [Sample(f"s{i}", i % 2) for i in range(train)]
        self.tune = [Sample(f"t{i}", i % 2) for i in range(tune)]
        self.views, self.drawn = {}, {}
        for number, sample in enumerate([*self.train, *self.tune]):
            random = np.random.default_rng(number)
            pixels = random.integers(100, 200, (ROWS * TILE, COLUMNS * TILE, 3)).astype(np.uint8)
            self.drawn[sample.slide_id] = _drawn((0, 0), (1, 2)) if sample.label else Annotations()
            slide = from_array(pixels, mpp=0.5)
            self.views[sample.slide_id] = SlideView(slide, tissue=TissueSettings(method="whole"))

    def view(self, slide_id):
        return self.views[slide_id]

    def annotations(self, slide_id):
        return self.drawn[slide_id]


@pytest.fixture(scope="module")
def weights():
    """Random weights of all parts, made once."""
    torch.manual_seed(0)
    config = MultistageConfig(tile=TILE, backbone="squeezenet1_1", width=4, depth=1, reduce=4)
    made = {}
    for method in ("multistage", "classifier", "imagenet", "segmentation"):
        module = FAMILY.build(config.model_copy(update={"method": method}), 2)
        made[method] = {k: v.clone() for k, v in module.state_dict().items()}
    return made


@pytest.fixture
def make(weights):
    """Return a function that makes a task in a stage."""

    def task(stage="patches", method="multistage", data=None, **fields):
        config = MultistageConfig(
            tile=TILE,
            backbone="squeezenet1_1",
            width=4,
            depth=1,
            reduce=4,
            min_tissue=0,
            batch_size=5,
            method=method,
        )
        module = FAMILY.build(config, 2).eval()
        module.load_state_dict(weights[method])
        cpu = torch.device("cpu")
        model = Model("m", "multistage", config, ("normal", "tumour"), module, device=cpu)
        values = {"stages": (STAGES[stage],), "train_batch": 3, "map_batch": 3, **fields}
        training = MultistageTraining.model_validate(values)
        return MultistageTask(model, module, data or Data(), training, seed=5)

    return task


def _works(task, epoch=0):
    return list(task.epoch(epoch, task.stage))


def test_an_epoch_draws_every_tumour_patch_and_as_many_normal_ones(make):
    task = make()
    seen = Counter()
    for epoch in range(3):
        works = _works(task, epoch)
        labels = [label for work in works for label in work.labels]
        patches = [(s, row) for w in works for s, (row, _) in zip(w.slides, w.detail, strict=True)]
        assert Counter(labels) == {0: 4, 1: 4}
        tumour = {p for p, label in zip(patches, labels, strict=True) if label}
        assert tumour == {("s1", 0), ("s1", 9), ("s3", 0), ("s3", 9)}
        seen.update(p for p, label in zip(patches, labels, strict=True) if not label)
        assert works == _works(make(), epoch)
    assert len(seen) > 8


def test_more_patches_than_there_are_repeat_them_and_all_may_be_used(make):
    labels = [label for w in _works(make(patches=40)) for label in w.labels]
    assert Counter(labels) == {0: 20, 1: 20}
    assert Counter(x for w in _works(make(patches=1)) for x in w.labels) == {0: 1, 1: 1}
    everything = [label for w in _works(make(balanced=False)) for label in w.labels]
    assert Counter(everything) == {0: 2 * 12 + 2 * 10, 1: 4}


def test_a_patch_that_is_drawn_again_is_augmented_anew(make):
    """Twenty draws of four tumour patches were four pictures."""
    task, losses = make(patches=40), {}
    for work in _works(task):
        found = task.step(work, 0, lambda loss: None).losses
        for slide, (row, _), loss in zip(work.slides, work.detail, found, strict=True):
            losses.setdefault((slide, row), []).append(loss)
    repeated = [x for x in losses.values() if len(x) > 2]
    assert len(repeated) >= 4
    assert all(len(set(x)) > 1 for x in repeated)


@pytest.mark.parametrize(
    ("stage", "method"),
    [*((stage, "multistage") for stage in STAGES), ("map", "segmentation"), ("map", "imagenet")],
)
def test_length_counts_the_works_of_each_stage(make, stage, method):
    task = make(stage, method)
    assert task.length(task.stage) == len(_works(task))


@pytest.mark.parametrize(
    ("method", "kept"),
    [
        ("multistage", ["warm", "patches", "map", "both"]),
        ("classifier", ["warm", "patches"]),
        ("imagenet", ["map"]),
        ("segmentation", ["map"]),
    ],
)
def test_suited_leaves_out_what_a_method_has_no_part_for(method, kept):
    training = MultistageTraining(stages=tuple(STAGES.values()))
    suited = training.suited(MultistageConfig(method=method, tile=256))
    assert suited.stages == tuple(STAGES[name] for name in kept)


def test_a_schedule_without_a_stage_for_the_method_is_refused():
    training = MultistageTraining(stages=(STAGES["map"],))
    with pytest.raises(ModelError, match="teaches method 'classifier' anything"):
        training.suited(MultistageConfig(method="classifier"))


def test_the_paper_preset_is_the_papers():
    training = MultistageTraining.model_validate(MultistageTraining.presets["paper"])
    stages = [(s.on, s.trains, s.epochs, s.lr, s.head_lr) for s in training.stages]
    assert stages == [
        ("patches", "all", 30, 1e-4, 1e-4),
        ("map", "head", 50, 1e-4, 1e-4),
        ("map", "all", 10, 1e-9, 1e-7),
    ]
    assert (training.train_batch, training.map_batch, training.crop) == (128, 32, 224 / 256)
    assert (training.tumour_share, training.normal_share) == (0.2, 0.8)


def test_each_stage_trains_its_part(make):
    names = {}
    for stage in STAGES:
        task = make(stage)
        learning = {id(p): lr for lr, ps in task.groups(task.stage) for p in ps}
        parts = task.model.module.named_parameters()
        names[stage] = {n.split(".")[0]: learning[id(p)] for n, p in parts if id(p) in learning}
    assert names == {
        "warm": {"vector": 1e-2, "final": 1e-2},
        "patches": {"vector": 1e-2, "final": 1e-2, "features": 1e-3},
        "map": {"unet": 1e-2},
        "both": {"unet": 1e-2, "features": 1e-3, "vector": 1e-3},
    }


def _step_all(task, epoch=0):
    """Do an epoch; return the losses of its training steps and what they left as gradients."""
    task.model.module.train()
    for parameter in task.model.module.parameters():
        parameter.requires_grad_(True)
    losses = []
    for work in _works(task, epoch):
        outcome = task.step(work, epoch, lambda loss: loss.backward())
        if work.phase == "scan":
            task.keep(work, epoch, outcome.seen)
        losses += outcome.losses
    gradients = {n: p.grad for n, p in task.model.module.named_parameters() if p.grad is not None}
    return losses, gradients


@pytest.mark.parametrize("stage", STAGES)
def test_steps_reach_the_parts_of_their_stage_only(make, stage):
    losses, gradients = _step_all(make(stage))
    assert np.isfinite(losses).all()
    reached = {name.split(".")[0] for name, g in gradients.items() if g.any()}
    assert (
        reached
        == {
            "warm": {"features", "vector", "final"},  # the loop lets the head learn alone
            "patches": {"features", "vector", "final"},
            "map": {"unet"},
            "both": {"features", "vector", "unet"},
        }[stage]
    )


def test_end_to_end_is_the_gradient_of_the_maps_loss(make):
    """One step's gradients are those of autograd through all patches at once, augmented alike."""
    task = make("both", data=Data(train=2), map_batch=2)
    losses, gradients = _step_all(task, epoch=3)
    other = make("both", data=Data(train=2))
    module = other.model.module
    total = 0.0
    for slide_id in ("s0", "s1"):
        grid = other.patches[slide_id].grid
        images = torch.cat(list(other._images(slide_id, grid, 3, 50)))
        vectors = module(images, "vectors")
        loss = other._map_loss(slide_id, vectors, other._way(slide_id, 3))
        loss.backward()
        total += float(loss.detach())
    assert sum(losses) == pytest.approx(total, rel=1e-5)
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_patches_without_a_label_carry_no_loss(make):
    data = Data()
    data.drawn["s1"] += _drawn((2, 1), label="other")
    task = make("map", data=data)
    labels = task.patches["s1"].labels
    assert labels[1 * COLUMNS + 2] == -1
    logits = torch.zeros(len(labels), requires_grad=True)
    task._loss("s1", logits).backward()
    assert logits.grad[1 * COLUMNS + 2] == 0
    assert int((logits.grad != 0).sum()) == len(labels) - 1


def test_vectors_are_made_once_and_again_after_a_resume(make):
    task, resumed = make("map", variants=2), make("map", variants=2)
    works = _works(task)
    scans = [w for w in works if w.phase == "scan"]
    assert len(scans) == 4
    for work in scans:
        task.step(work, 0, None)
    assert set(task._vectors) == {(f"s{i}", 0) for i in range(4)}
    losses = [], []
    for one, kept in zip((task, resumed), losses, strict=True):
        one.step(works[-1], 0, lambda loss, kept=kept: kept.append(float(loss.detach())))
    assert losses[0] == losses[1]
    resumed.step(works[-1], 1, lambda _: None)
    assert {variant for _, variant in resumed._vectors} == {0, 1}
    assert not torch.equal(resumed._vectors["s0", 0], resumed._kept_vectors("s0", 1).half())


def test_vectors_are_brought_to_the_size_that_the_unet_expects_once(make):
    task = make("map")
    gain = task.model.module.gain
    _step_all(task, epoch=1)
    vectors = torch.cat([task._vectors[f"s{i}", 1].float() for i in range(4)])
    assert float((vectors * gain).square().mean()) == pytest.approx(1, rel=1e-5)
    before = float(gain)
    _step_all(task, epoch=2)
    assert float(gain) == before
    both = make("both")
    _step_all(both)
    assert float(both.model.module.gain) == 1


def test_the_gain_is_set_anew_for_vectors_that_were_learnt_anew(make):
    """A model to start from brings the gain of its own vectors."""
    task = make(stages=(STAGES["patches"], STAGES["map"]))
    gain = task.model.module.gain.fill_(5)
    _works(task)
    task.stage = STAGES["map"]
    _step_all(task, epoch=1)
    vectors = torch.cat([task._vectors[f"s{i}", 1].float() for i in range(4)])
    assert float((vectors * gain).square().mean()) == pytest.approx(1, rel=1e-5)
    alone = make(stages=(STAGES["map"], STAGES["patches"]))
    alone.stage = STAGES["patches"]
    alone.model.module.gain.fill_(5)
    _works(alone)
    assert float(alone.model.module.gain) == 5  # no stage that follows would set it


def test_vectors_too_large_for_half_precision_are_kept_as_they_are(make):
    task = make("map")
    large = torch.tensor([[7e4, 1.0]])
    task._vectors_of = lambda slide_id, _: [large if slide_id == "s0" else large / 7]
    assert torch.equal(task._kept_vectors("s0", 0), large)
    task._kept_vectors("s1", 0)
    assert task._vectors["s1", 0].dtype == torch.half


@pytest.mark.parametrize("fine", [1, 4])
@pytest.mark.parametrize("stage", ["patches", "map", "both"])
def test_tuning_scores_are_those_of_infer(make, stage, fine):
    """What the loop sees on a tuning slide is what a user gets, however fine the map is drawn."""
    method = "classifier" if stage == "patches" else "multistage"
    task = make(stage, method)
    task.model.config = task.model.config.model_copy(update={"fine": fine})
    with torch.inference_mode():
        for work in task.evaluation():
            outcome = task.step(work, 0, None)
            *_, score = FAMILY.infer(task.model, task.data.view(work.slides[0]))
            assert outcome.probabilities[0] == pytest.approx(score.probabilities, abs=2e-3)


def test_pictures_are_turned_and_turned_back(make):
    """A network that sees no neighbours gives the same at all orientations."""
    task = make("map", "segmentation")
    unet = task.model.module.unet
    conv = torch.nn.Conv2d(3, 1, 1)
    task.model.module.unet = conv
    with torch.no_grad():
        found = [task._picture_logits("s0", way, None) for way in range(8)]
    assert all(torch.allclose(found[0], other, atol=1e-5) for other in found)
    task.model.module.unet = unet


def test_names_of_annotations_that_are_numbers_are_names():
    stages = MultistageTraining.presets["default"]["stages"]
    for given in (1, "1", [1], ["1"]):
        assert MultistageTraining(stages=stages, tumour=given).tumour == ("1",)
    assert MultistageTraining(stages=stages, tumour=["a", 2]).tumour == ("a", "2")
    assert MultistageTraining(stages=stages, tumour="").tumour == ()


def test_epochs_that_leave_no_stage_on_patches_are_warned_of(caplog):
    training = MultistageTraining(**MultistageTraining.presets["default"])
    assert [stage.on for stage in training.of_length(3)["stages"]] == ["patches", "map", "map"]
    assert not caplog.text
    assert [stage.on for stage in training.of_length(2)["stages"]] == ["map", "map"]
    assert "epochs 2: too few for the stages on patches" in caplog.text
    assert "give 3 or more" in caplog.text
    caplog.clear()
    MultistageTraining(**MultistageTraining.presets["map"]).of_length(1)
    assert not caplog.text


def test_a_multistage_model_starts_from_a_classifier(make):
    classifier, model = make(method="classifier").model, make().model
    with torch.no_grad():
        for parameter in classifier.module.parameters():
            parameter.add_(1)
    given = classifier.module.state_dict()
    fresh = model.module.state_dict().keys() - given.keys()
    assert {name.split(".")[0] for name in fresh} == {"unet", "gain"}
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    MultistageTask.inherit(model, classifier)
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, (before if name in fresh else given)[name])
    with pytest.raises(RuntimeError, match="unet"):
        MultistageTask.inherit(make(method="imagenet").model, classifier)


def test_weights_that_a_method_cannot_use_are_refused(make):
    segmentation = make("map", "segmentation").model
    with pytest.raises(ModelError, match="no backbone: leave --weights out"):
        MultistageTask.initialize(segmentation, "w.safetensors")
    assert MultistageTask.initialize(segmentation, "imagenet") == {
        "backbone_weights": "no backbone"
    }
    with pytest.raises(ModelError, match="needs ImageNet weights"):
        MultistageTask.initialize(make("map", "imagenet").model, "none")


@pytest.mark.parametrize(
    ("slide_id", "drawn", "message"),
    [
        ("s1", Annotations(), "labelled 'tumour', but no tumour is drawn"),
        ("s1", _drawn((90, 2)), "lies outside the slide of 128 x 96 px"),
        # Alone in its file, but the other files say what tumour is called.
        ("s1", _drawn((0, 0), label="Necrosis"), "no annotation is of class 'tumour'; there are"),
        ("s0", _drawn((0, 0)), "labelled 'normal', but 1 annotations of it are 'tumour'"),
    ],
)
def test_annotations_that_do_not_fit_are_refused_before_training(make, slide_id, drawn, message):
    data = Data()
    task = make(data=data)
    task.check(slide_id)
    data.drawn[slide_id] = Annotations(drawn)
    task = make(data=data)
    for other in ("s2", "s3", "t1"):
        task.check(other)
    with pytest.raises(LabelError, match=message):
        task.check(slide_id)


def _named(data, name):
    """Call all that is drawn by another name."""
    for slide_id, drawn in data.drawn.items():
        data.drawn[slide_id] = Annotations([Annotation(a.polygon, name) for a in drawn])
    return data


def test_the_only_class_is_tumour_if_no_slide_has_another(make):
    data = _named(Data(), "_0")
    assert (make(data=data).patches["s1"].labels == 1).sum() == 2
    data.drawn["s3"] = _drawn((0, 0), label="Necrosis")
    said = r"'Necrosis' on s3; '_0' on s1, t1. Say which are tumour with --set tumour=NAME"
    with pytest.raises(LabelError, match=said):
        make(data=data)
    task = make(data=data, tumour=("_0",))
    task.check("s1")
    with pytest.raises(LabelError, match="no annotation is of class '_0'; there are 'Necrosis'"):
        task.check("s3")


def test_tumour_on_a_normal_slide_is_refused_whatever_it_is_called(make):
    data = _named(Data(), "_0")
    data.drawn["s0"] = _drawn((0, 0), label="_0")
    with pytest.raises(LabelError, match="labelled 'normal', but 1 annotations of it are '_0'"):
        make(data=data).check("s0")


def test_a_file_that_cannot_be_read_is_told_of_its_slide(make):
    data = Data()
    annotations = data.annotations

    def damaged(slide_id):
        if slide_id == "s1":
            raise LabelError("s1.geojson: neither JSON nor XML")
        return annotations(slide_id)

    data.annotations = damaged
    task = make(data=data)
    task.check("s3")
    with pytest.raises(LabelError, match=r"s1\.geojson: neither"):
        task.check("s1")


def test_what_is_drawn_as_something_else_has_no_label_on_any_slide(make):
    data = Data()
    data.drawn["s0"] = _drawn((2, 1), label="Artefact")
    data.drawn["s1"] += _drawn((2, 1), label="Artefact")
    task = make(data=data)
    for slide_id, tumour in (("s0", 0), ("s1", 2)):
        labels = task.patches[slide_id].labels
        assert labels[1 * COLUMNS + 2] == -1
        assert ((labels == -1).sum(), (labels == 1).sum()) == (1, tumour)


def test_a_slide_of_which_no_patch_has_a_label_is_refused(make):
    """Its loss was 0, the best there is, in the mean that chooses the epochs."""
    data = Data()
    whole = Annotation(shapely.box(0, 0, COLUMNS * TILE, ROWS * TILE), "Tissue")
    data.drawn["t0"] = Annotations([whole])
    with pytest.raises(LabelError, match=r"none of its 12 patches has a label.*--set normal=NAME"):
        make(data=data).check("t0")
    make(data=data, normal=("tissue",)).check("t0")


def test_a_slide_without_patches_and_a_cohort_without_tumour_patches_are_refused(make):
    data = Data()
    white = from_array(np.full((96, 96, 3), 255, np.uint8), mpp=0.5)
    data.views["s0"] = SlideView(white)
    task = make(data=data)
    task.model.config = task.model.config.model_copy(update={"min_tissue": 0.8})
    with pytest.raises(SlideError, match="holds 80% tissue"):
        task.check("s0")
    data = Data()
    for slide_id in ("s1", "s3"):
        data.drawn[slide_id] = Annotations([Annotation(shapely.box(0, 0, 5, 5), "tumour")])
    with pytest.raises(LabelError, match="no patch of the training slides is tumour"):
        _works(make(data=data))


def test_names_of_annotation_classes_are_one_or_several():
    stages = (STAGES["map"],)
    assert MultistageTraining(stages=stages, tumour="Tumor").tumour == ("Tumor",)
    assert MultistageTraining(stages=stages, tumour=["_0", "_1"]).tumour == ("_0", "_1")
    assert MultistageTraining(stages=stages).normal == ()
