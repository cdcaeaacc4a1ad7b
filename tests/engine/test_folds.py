"""Cross-validation, trainings from files, several processes: each end to end on tiny slides."""

from __future__ import annotations

import csv
import json
import logging
import os

import pytest
import torch
import yaml
from safetensors.torch import load_file

from slidelens.engine.evaluate import evaluate
from slidelens.engine.folds import _Once, train_folds
from slidelens.engine.metrics import auc
from slidelens.engine.package import load_model
from slidelens.engine.train import train
from slidelens.engine.training.file import read_train_file, train_arguments
from slidelens.errors import ModelError
from train_cohort import make_cohort, request
from warm import run_warm


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("cohort"), train=6, tune=2)


def test_folds_hold_out_every_slide_and_resume(cohort, tmp_path, monkeypatch):
    asked = request(cohort, tmp_path / "cv")
    steps = train_folds(**asked, folds=2)
    for step in steps:
        if step.fold == 2 and step.doing == "train":
            break
    steps.close()
    assert not (tmp_path / "cv" / "folds.json").exists()
    with pytest.raises(ModelError, match="finished folds"):
        train_folds(**asked, folds=2)
    with pytest.raises(ModelError, match="leave one of the two out"):  # of a fold's own config.yaml
        train_folds(**asked, folds=2, fold=(1, 3))
    first = (tmp_path / "cv" / "fold-1" / "weights.safetensors").stat().st_mtime_ns
    rest = list(train_folds(**asked, folds=2, resume=True))
    assert {step.fold for step in rest} == {2}
    assert first == (tmp_path / "cv" / "fold-1" / "weights.safetensors").stat().st_mtime_ns

    summary = json.loads((tmp_path / "cv" / "folds.json").read_text())
    rows = list(csv.DictReader((tmp_path / "cv" / "out_of_fold.csv").open()))
    assert sorted(row["slide_id"] for row in rows) == [f"s{i}" for i in range(8)]
    for fold in summary["folds"]:
        own = [row for row in rows if row["fold"] == str(fold["fold"])]
        assert fold["auc"] == auc(
            [row["label"] == "tumour" for row in own], [float(row["prob_tumour"]) for row in own]
        )
    assert rest[-1].doing == "done"
    assert rest[-1].tune_auc == summary["auc_mean"]
    scores = [float(row["prob_tumour"]) for row in rows]
    assert summary["auc_pooled"] == auc([row["label"] == "tumour" for row in rows], scores)
    low, high = summary["auc_pooled_ci"]
    assert 0 <= low <= summary["auc_pooled"] <= high <= 1
    assert summary["bootstrap"]["drawn"] == "slides"
    monkeypatch.setattr("slidelens.engine.evaluate._pictures", lambda *_: {})  # they take long
    whole = evaluate(tmp_path / "cv/out_of_fold.csv", cohort / "labels.csv", tmp_path / "eval")
    assert whole.metrics["models"]["cv"]["auc"] == summary["auc_pooled"]
    assert whole.metrics["models"]["cv"]["threshold_source"] == "folds"
    assert load_model(tmp_path / "cv" / "fold-2", "cpu").card["training_data"]["slides"]

    # All is done: the same request says so, another is not answered with these figures.
    (again,) = train_folds(**asked, folds=2, resume=True)
    assert (again.doing, again.tune_auc) == ("done", summary["auc_mean"])
    with pytest.raises(ModelError, match=r"fold-1 was trained with other settings \(seed"):
        train_folds(**(asked | {"seed": 9}), folds=2, resume=True)
    fewer = asked | {"overrides": {**asked["overrides"], "smoothing": "0.1"}}
    with pytest.raises(ModelError, match=r"other settings \(smoothing: 0.0, now 0.1\)"):
        train_folds(**fewer, folds=2, resume=True)
    (tmp_path / "cv" / "fold-3").mkdir()
    with pytest.raises(ModelError, match="holds fold-3 of another cross-validation"):
        train_folds(**asked, folds=2, resume=True)


def test_folds_warn_once_of_labels_and_of_nothing_to_resume(cohort, tmp_path, caplog):
    out, labels = tmp_path / "cv", tmp_path / "labels.csv"
    labels.write_text(
        (cohort / "labels.csv").read_text().replace("tumour", "b").replace("normal", "a")
    )
    steps = train_folds(**request(cohort, out) | {"labels_csv": labels}, folds=2, resume=True)
    assert caplog.text.count("holds no unfinished training") == 1
    logging.getLogger("slidelens").warning("between two steps")
    logging.getLogger("slidelens").warning("between two steps")
    list(steps)
    assert caplog.text.count("between two steps") == 2
    assert caplog.text.count("holds no unfinished training") == 1
    assert caplog.text.count("do not tell which is the positive one") == 1
    assert (out / "folds.json").exists()


def test_cross_validations_in_two_threads_leave_the_log_as_it_was():
    logger, one, other = logging.getLogger("slidelens"), _Once(), _Once()
    before = logger.propagate, list(logger.handlers)
    one.__enter__()
    other.__enter__()
    one.__exit__()
    other.__exit__()
    assert (logger.propagate, logger.handlers) == before


def test_less_than_two_folds_are_refused(cohort, tmp_path):
    with pytest.raises(ModelError, match="seed must be from 0 to"):
        list(train_folds("mil", tmp_path, tmp_path / "l.csv", tmp_path / "o", folds=2, seed=-1))
    with pytest.raises(ModelError, match="at least 2 folds"):
        train_folds(**request(cohort, tmp_path / "cv"), folds=1)


def test_the_configuration_that_is_kept_trains_the_same_model(cohort, tmp_path):
    list(train(**request(cohort, tmp_path / "first", fraction=0.5)))
    kept = tmp_path / "first" / "training" / "config.yaml"
    content = yaml.safe_load(kept.read_text())
    assert content["fraction"] == 0.5
    assert content["stages"][0]["trains"] == "head"
    options, fields = read_train_file(kept)
    list(train(**train_arguments(options | {"out": tmp_path / "again"}, fields)))
    one, two = ((tmp_path / n / "weights.safetensors").read_bytes() for n in ("first", "again"))
    assert one == two


def test_the_program_trains_from_a_file_and_the_command_line_comes_first(cohort, tmp_path):
    file = tmp_path / "train.yaml"
    asked = request(cohort, tmp_path / "unused")
    stages = json.loads(asked["overrides"].pop("stages"))
    numbers = {k: json.loads(v) for k, v in asked["overrides"].items() if k != "precision"}
    content = {"slides": str(cohort / "slides"), "labels": str(cohort / "labels.csv"), "seed": 5}
    content |= {"out": str(tmp_path / "unused"), "weights": "none", "backbone": "squeezenet1_1"}
    file.write_text(yaml.safe_dump({**content, **numbers, "precision": "fp32", "stages": stages}))
    out = tmp_path / "m"
    command = ["train", "mil", "--config", file, "--out", out, "--seed", "1", "--device", "cpu"]
    done = run_warm("-m", "slidelens", *command)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "unused").exists()
    assert load_model(out, "cpu").card["training"]["seed"] == 1


def test_two_processes_train_the_model_that_one_trains_with_twice_the_steps_per_update(
    cohort, tmp_path
):
    """A round of two processes adds the gradients of two steps, as accumulation over two does."""
    asked = {"train_batch": "1", "optimizer": "sgd", "average": "false"}
    single = tmp_path / "single"
    list(train(**request(cohort, single, overrides={**asked, "accumulate": "2"})))
    fields = request(cohort, single, overrides={**asked, "accumulate": "1"})["overrides"]
    out = tmp_path / "double"
    done = run_warm(
        *("-m", "slidelens", "train", "mil", "--slides", cohort / "slides"),
        *("--labels", cohort / "labels.csv", "--out", out, "--backbone", "squeezenet1_1"),
        *("--weights", "none", "--seed", "1", "--device", "cpu", "--devices", "2", "--json"),
        *(part for k, v in fields.items() for part in ("--set", f"{k}={v}")),
        env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epochs"] == 3  # one process speaks
    mine, theirs = (load_file(place / "weights.safetensors") for place in (single, out))
    for name, value in mine.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-6)
    one, two = (
        (place / "training" / "tune.csv").read_text().splitlines() for place in (single, out)
    )
    assert [row.split(",")[:2] for row in one] == [row.split(",")[:2] for row in two]
