"""What a training leaves behind: which slides it used, and how its epochs went."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from slidelens.engine.training import curves
from slidelens.engine.training.curves import curves_picture
from slidelens.engine.training.history import chosen_threshold
from slidelens.engine.training.plan import plan_training
from slidelens.engine.training.record import slides_note, write_slides


@pytest.fixture
def plan(tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    rows = ["slide_id,label,split,patient"]
    for number in range(26):
        (slides / f"s{number}.tif").touch()
        split = "test" if number >= 20 else ""
        rows.append(f"s{number}.tif,{'ab'[number % 2]},{split},p{number // 2}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))

    def make(labels=tmp_path / "labels.csv", **options):
        return plan_training("mil", slides, labels, tmp_path / "m", **options)

    return make


def test_the_slides_that_were_used_give_the_same_training_again(plan, tmp_path):
    made = plan(seed=3, fraction=0.5)
    write_slides(tmp_path / "slides.csv", made)
    again = plan(labels=tmp_path / "slides.csv", seed=4)
    assert again.labels.rows == made.labels.rows
    assert len(made.labels.of("train")) == 8  # half of 8 patients, 2 slides each
    assert {row.slide_id for row in again.tested} == {f"s{n}.tif" for n in range(20, 26)}
    folds = plan(fold=(1, 2))
    assert folds.tested == made.tested


def test_what_is_learnt_from_is_told_with_its_patients_and_what_stays_out(plan):
    assert slides_note(plan()) == (
        "2 classes: a 10, b 10 (positive: b); 16 slides of 8 patients for training, 4 slides of "
        "2 patients for tuning; 6 in split test are not used"
    )
    alone = slides_note(plan(fraction=0.01))
    assert "2 slides of 1 patient for training" in alone


def _scored(negative, positive):
    cases = [(0, score) for score in negative] + [(1, score) for score in positive]
    return {f"s{i}": (label, 0.0, [1 - x, x]) for i, (label, x) in enumerate(cases)}


def test_the_operating_point_of_rare_positive_slides_finds_them(caplog):
    scores = _scored([*np.linspace(0, 0.5, 196), 0.8, 0.85, 0.9, 0.95], np.linspace(0.7, 0.75, 10))
    assert chosen_threshold(scores, ("a", "b")) == pytest.approx(0.6)
    assert not caplog.text


def test_an_operating_point_that_rests_on_little_is_warned_of(caplog):
    assert chosen_threshold(_scored([0.1] * 10, [0.5] * 3), ("a", "b")) == pytest.approx(0.3)
    assert "threshold 0.3 was chosen on only 3 slides of b for tuning" in caplog.text
    caplog.clear()
    assert chosen_threshold(_scored([0.6] * 10, [0.4] * 10), ("a", "b")) == pytest.approx(0.2)
    assert "no threshold tells b from a on the tuning split" in caplog.text
    assert chosen_threshold(_scored([0.6] * 10, []), ("a", "b")) is None
    three = {f"s{i}": (i % 3, 0.0, [0.3, 0.3, 0.4]) for i in range(9)}
    assert chosen_threshold(three, ("a", "b", "c")) is None


@pytest.mark.parametrize("area", [0.7, None])
def test_curves_mark_the_epochs_of_the_model(area):
    losses = {"train_loss": 0.5, "tune_loss": 0.6, "tune_auc": area}
    rows = [{"epoch": e, "stage": 1 + (e > 2), **losses} for e in range(1, 7)]
    early, late = (
        np.asarray(Image.open(BytesIO(curves_picture(rows, chosen))).convert("L"), int)
        for chosen in ([1, 2], [5, 6])
    )
    half = early.shape[1] // 2
    darker = (early < late).sum(0)
    assert darker[:half].sum() > 10 * darker[half:].sum()


@pytest.mark.parametrize(("area", "panels"), [(0.7, 2), (None, 1)])
def test_curves_have_no_panel_without_a_curve(area, panels, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "written", lambda figure: drawn.append(figure) or b"")
    losses = {"train_loss": 0.5, "tune_loss": 0.6}
    rows = [{"epoch": e, "stage": 1, **losses, "tune_auc": area} for e in (1, 2)]
    curves_picture([{**rows[0], "tune_auc": None}, rows[1]], [2])
    (figure,) = drawn
    assert len(figure.axes) == panels
    assert all(axes.get_legend().get_texts() for axes in figure.axes)
    assert figure.axes[-1].get_xlabel().startswith("epoch")
