"""Names of models follow from their folders; results of one are not taken by another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slidelens.engine.train import train
from slidelens.engine.training.plan import plan_training
from slidelens.engine.training.record import slides_note
from slidelens.engine.training.start import _name_of
from slidelens.errors import LabelError, ModelError
from train_cohort import make_cohort, request


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("my model", "my-model"),
        ("Modell ä", "Modell-a"),
        ("模型", "model"),
        ("cv/fold-2", "cv-fold-2"),
        ("cv/folds", "folds"),
    ],
)
def test_a_model_is_called_after_its_folder(tmp_path, folder, name):
    assert _name_of(tmp_path / folder) == name


def test_the_order_of_classes_can_be_told(tmp_path):
    cohort = make_cohort(tmp_path)
    labels = cohort / "labels.csv"
    labels.write_text(labels.read_text().replace("normal", "Zyste").replace("tumour", "Krebs"))
    asked = request(cohort, tmp_path / "m")
    assert plan_training(**asked).labels.classes == ("Krebs", "Zyste")
    plan = plan_training(**asked, classes=["Zyste", "Krebs"])
    assert plan.labels.classes == ("Zyste", "Krebs")
    assert plan.file["classes"] == ["Zyste", "Krebs"]
    assert slides_note(plan).startswith("2 classes: Zyste 3, Krebs 3 (positive: Krebs);")
    with pytest.raises(ModelError, match="expected two names or more, each once"):
        plan_training(**asked, classes=["Krebs", "Krebs"])
    with pytest.raises(LabelError, match="neither one of the classes"):
        plan_training(**asked, classes=["a", "b"])


def test_a_tuning_split_of_one_class_chooses_no_threshold(tmp_path):
    cohort = make_cohort(tmp_path)
    labels = cohort / "labels.csv"
    rows = labels.read_text().splitlines()
    tune = next(i for i, row in enumerate(rows) if "tumour" in row and "tune" in row)
    labels.write_text("\n".join(rows[:tune] + rows[tune + 1 :]) + "\n")
    plan = plan_training(**request(cohort, tmp_path / "m"))
    said = slides_note(plan)
    assert "(none of class tumour: no AUC, and no threshold is chosen)" in said
    list(train(**request(cohort, tmp_path / "m")))
    assert json.loads((tmp_path / "m" / "model.json").read_text())["threshold"] is None


def test_what_is_kept_of_a_training_names_places_from_anywhere(tmp_path, monkeypatch):
    make_cohort(tmp_path / "c")
    monkeypatch.chdir(tmp_path)
    plan = plan_training(**request(Path("c"), Path("m")))
    assert plan.file["slides"] == str(tmp_path / "c" / "slides")
    assert plan.file["labels"] == str(tmp_path / "c" / "labels.csv")
    assert plan.file["weights"] == "none"
