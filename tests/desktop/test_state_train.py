"""Labelling and training without a window."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from slidelens.desktop.state.labelling import LabelBook, class_names
from slidelens.desktop.state.train import (
    Split,
    TrainRequest,
    TrainState,
    free_name,
    read_history,
    resumable,
)
from slidelens.desktop.worker.messages import Message
from slidelens.errors import LabelError

SLIDES = {name: Path(f"/slides/{name}.svs") for name in ("a", "b", "c")}


def test_every_label_is_in_the_file_at_once(tmp_path):
    path = tmp_path / "new" / "labels.csv"
    book = LabelBook(path, SLIDES)
    assert not path.exists()
    book.set(["a", "c"], "tumor")
    book.set(["b"], "normal")
    assert path.read_text() == "slide_id,label\na,tumor\nc,tumor\nb,normal\n"
    book.set(["c"], "normal")
    book.set(["a"], "")
    assert book.labels == {"b": "normal", "c": "normal"}
    assert book.counts == {"normal": 2}
    book.undo()
    book.undo()
    assert LabelBook(path, SLIDES).labels == {"a": "tumor", "b": "normal", "c": "tumor"}
    with pytest.raises(LabelError, match="no slide z"):
        book.set(["z"], "tumor")


def test_a_table_that_is_there_keeps_rows_columns_and_names(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("slide_id;grade;label;patient\na.svs;3;tumor;p1\nelsewhere;1;normal;p2\n")
    book = LabelBook(path, SLIDES)
    assert book.labels == {"a": "tumor"}
    assert book.classes == ("normal", "tumor")
    book.set(["a", "b"], "normal")
    assert path.read_text().splitlines() == [
        "slide_id,grade,label,patient",
        "a.svs,3,normal,p1",
        "elsewhere,1,normal,p2",
        "b,,normal,",
    ]


def test_rows_that_name_a_slide_by_its_path_are_its_rows(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("slide_id,label\nC:\\slides\\a.svs,tumor\n/slides/b.svs,normal\n")
    book = LabelBook(path, SLIDES)
    assert book.labels == {"a": "tumor", "b": "normal"}
    book.set(["a"], "normal")
    assert path.read_text().splitlines()[1:] == ["C:\\slides\\a.svs,normal", "/slides/b.svs,normal"]


def test_a_table_of_other_columns_is_refused(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("slide,grade\na,3\n")
    with pytest.raises(LabelError, match="no column slide_id and label"):
        LabelBook(path, SLIDES)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LabelError, match="is not UTF-8 text"):
        LabelBook(path, SLIDES)


def test_class_names_are_read_from_a_line():
    assert class_names(" normal,tumor , ,normal") == ("normal", "tumor")


def request(tmp_path, **changes):
    made = TrainRequest("mil", tmp_path, tmp_path / "l.csv", tmp_path / "models" / "my-model")
    return replace(made, **changes)


def test_what_is_missing_is_said_in_order(tmp_path):
    assert "folder with your slides" in request(tmp_path, slides=None, labels=None).missing()
    assert "table of labels" in request(tmp_path, labels=None).missing()
    assert "outlines" in request(tmp_path).missing(annotated=True)
    assert "name" in request(tmp_path, out=tmp_path / "?").missing()
    assert request(tmp_path).missing() == ""
    (tmp_path / "models" / "my-model").mkdir(parents=True)
    (tmp_path / "models" / "my-model" / "model.json").write_text("{}")
    assert "already a model called my-model" in request(tmp_path).missing()
    assert free_name(tmp_path / "models", "my-model") == "my-model-2"


def test_a_model_to_fine_tune_leaves_no_room_for_weights(tmp_path):
    facts = request(tmp_path, base=tmp_path / "demo", weights="imagenet").facts()
    assert facts["from_model"] == str(tmp_path / "demo")
    assert facts["weights"] is None


PLAN = {
    "classes": ["normal", "tumor"],
    "split": {"train": [12, 2], "tune": [2, 0]},
    "slides": [["a", 0, "train"], ["b", 1, "tune"]],
    "epochs": 4,
    "out": "x",
}


def test_split_is_told_with_what_to_beware_of():
    split = Split.of(PLAN)
    assert split.text == (
        "14 slides for training, 2 for tuning, at most 4 epochs; positive: tumor."
    )
    assert "No slide of tumor to tune on" in split.warning
    assert "Only 2 slides of tumor against 12" in replace(split, tune=(1, 1)).warning
    assert replace(split, tune=(1, 1), train=(4, 2)).warning == ""
    assert split.slides[1] == ("b", "tumor", "tune")


def progress(doing, done=0, total=0, epoch=1, seconds=0.0, **losses):
    facts = {"doing": doing, "done": done, "total": total, "slide": "", "epoch": epoch}
    facts |= {"epochs": 4, "seconds": seconds, "train_loss": None, "tune_loss": None}
    return Message(1, "progress", facts | {"tune_auc": None} | losses)


def test_progress_time_and_curves_follow_the_messages(tmp_path):
    state = TrainState(tmp_path)
    assert state.text == "Starting the worker…"
    assert not state.feed(progress("open", 3, 10))
    assert state.fraction is None
    assert state.text == "Checking the slides, 3 of 10"
    state.feed(progress("train", 0, 10, seconds=100))
    state.feed(progress("train", 5, 10, seconds=110))
    assert state.fraction == pytest.approx(0.125)
    assert state.left == pytest.approx(70)
    assert state.text == "Epoch 1 of 4: learning, 5 of 10; at most about 1 min left"
    assert state.feed(progress("epoch", 1, 4, train_loss=0.5, tune_loss=0.6, tune_auc=0.9))
    assert state.fraction == 0.25
    state.feed(progress("epoch", 2, 4, epoch=2, train_loss=0.4, tune_loss=0.5, tune_auc=0.8))
    assert [r.tune_auc for r in state.rows] == [0.9, 0.8]
    # an epoch that a resumed run does again replaces itself
    state.feed(progress("epoch", 2, 4, epoch=2, train_loss=0.3, tune_loss=0.5, tune_auc=0.7))
    assert [r.train_loss for r in state.rows] == [0.5, 0.3]
    assert "Best AUC on the tuning slides: 0.900" in state.summary("done", "")


def test_unfinished_trainings_are_known_by_their_files(tmp_path):
    state = TrainState(tmp_path)
    assert not resumable(tmp_path)
    assert state.summary("cancelled", "") == "Paused; nothing has been learnt yet."
    folder = tmp_path / "training"
    folder.mkdir()
    (folder / "config.yaml").write_text("family: mil\n")
    (folder / "history.csv").write_text(
        "epoch,stage,lr,train_loss,tune_loss,tune_auc\n1,1,0.1,0.7,0.6,\n"
    )
    assert resumable(tmp_path)
    (row,) = read_history(tmp_path)
    assert (row.train_loss, row.tune_auc) == (0.7, None)
    assert "progress is kept" in state.summary("cancelled", "")
    assert state.summary("died", "It was killed.").endswith("from the last checkpoint.")
    (tmp_path / "model.json").write_text("{}")
    assert not resumable(tmp_path)


def test_what_others_write_to_the_table_meanwhile_is_kept(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("slide_id,label\na,normal\nb,normal\n")
    book = LabelBook(path, SLIDES)
    path.write_text("slide_id,label\na,tumor\nb,normal\nz,tumor\n")
    book.set(["b"], "tumor")
    assert path.read_text() == "slide_id,label\na,tumor\nb,tumor\nz,tumor\n"
    path.write_text(path.read_text() + "y,normal\n")
    book.undo()
    assert path.read_text() == "slide_id,label\na,tumor\nb,normal\nz,tumor\ny,normal\n"


def test_rows_that_were_taken_out_come_back_where_they_were(tmp_path):
    path = tmp_path / "labels.csv"
    text = "slide_id,grade,label\na,3,tumor\nz,1,tumor\nb,2,normal\n"
    path.write_text(text)
    book = LabelBook(path, SLIDES)
    book.set(["a", "b", "c"], "")
    assert path.read_text() == "slide_id,grade,label\nz,1,tumor\n"
    book.undo()
    assert path.read_text() == text
