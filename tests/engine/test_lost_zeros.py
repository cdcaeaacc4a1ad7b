"""Labels whose ids lost the zeros before their numbers."""

from __future__ import annotations

import pytest

from sample_evaluation import write_result
from slidelens.engine.evaluate import EvaluationOptions, evaluate
from slidelens.engine.labels import read_labels
from slidelens.engine.lost_zeros import zeros_hint
from slidelens.errors import LabelError


def test_ids_that_would_meet_with_zeros_are_told():
    told = zeros_hint(["12", "3", "x"], ["0012", "003", "y"])
    assert told.startswith(" The ids seem to have lost zeros (3 is 003)")
    assert "column of text" in told


@pytest.mark.parametrize(
    ("unknown", "there"),
    [(["1"], ["2", "s001"]), (["a1"], ["0a1"]), ([], ["001"]), (["01"], ["001"]), (["1"], ["000"])],
)
def test_ids_that_do_not_meet_for_other_reasons_have_no_hint(unknown, there):
    assert zeros_hint(unknown, there) == ""


@pytest.mark.parametrize("allow_missing", [True, False])
def test_an_evaluation_tells_that_its_labels_lost_zeros(tmp_path, allow_missing):
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id,label\n1,normal\n2,tumor\n")
    for name in ("001", "002"):
        write_result(tmp_path / "results", "m", name, {"normal": 0.5, "tumor": 0.5})
    options = EvaluationOptions(allow_missing=allow_missing)
    with pytest.raises(LabelError, match=r"(?s)labels\.csv: .* lost zeros \(1 is 001\)"):
        evaluate(tmp_path / "results", labels, tmp_path / "eval", options)


def test_a_training_tells_that_its_labels_lost_zeros(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("slide_id,label\n1,normal\n2,tumor\n")
    files = {name: tmp_path / f"{name}.tif" for name in ("001", "002")}
    with pytest.raises(LabelError, match=r"no slide for 1, 2; .* lost zeros \(1 is 001\)"):
        read_labels(path).with_files(files)
