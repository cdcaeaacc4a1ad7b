"""What a user can get wrong, and what a machine can do, while ``slidelens train`` runs."""

from __future__ import annotations

import json
import random
import re
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from slidelens.engine.training.file import write_train_file
from slidelens.engine.training.plan import plan_training
from slidelens.families import FAMILIES
from slidelens.testing.phantom import write_cohort
from train_cohort import STAGES, TILE, make_cohort
from warm import Warm, run_warm

ONE = '[{"epochs": 1, "lr": 0.001, "head_lr": 0.001, "trains": "head"}]'
LIMIT = 5 << 20
"""Bytes: a checkpoint has 3 MB in a stage that trains the head alone, 9 MB where all learns."""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("cohort"))


def _words(cohort: Path, out: Path, labels: Path | None = None, stages: str = STAGES) -> list[str]:
    words = ["train", "mil", "--slides", cohort / "slides", "--out", out, "--device", "cpu"]
    words += ["--labels", labels or cohort / "labels.csv", "--backbone", "squeezenet1_1"]
    words += ["--weights", "none", "--seed", 1, "--tile", TILE, "--min-tissue", 0]
    words += ["--precision", "fp32", "--train-batch", 2, "--warm-steps", 2]
    return [*map(str, words), "--set", f"stages={stages}"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("s0,0\ns1,2\ns2,0\ns3,2", r"no slide has 1"),
        ("s0,normal", r"all 1 slides are labelled 'normal'; at least two classes"),
        ("s0,normal\ns1,tumour", r"too few to split into train and tune"),
        ("s0,a,train\ns1,b,tune\ns2,a,tune", r"classes without a slide in split train: b"),
        ("s0,a,train\ns1,b,train", r"too few to split into train and tune"),
        ("s0,a,test\ns1,b,test", r"classes without a slide in split train: a, b"),
        ("s0,a\ns1,b\ns0,a\ns1,b\ns2,a", r"slides twice: s0 \(2 times\), s1 \(2 times\)"),
        ("s0,a\ns0.tif,b\ns1,a\ns3,b", r"slides twice: s0 \(2 times\)"),
        ("s0,a\nnowhere,b\ngone.svs,b", r"no slide for nowhere, gone\.svs"),
        ("s0,a\ns1,", r"rows without slide_id or label: line 3"),
        ("s0,a,train\ns1,b,holdout", r"splits that are not one of .*s1 \('holdout'\)"),
    ],
)
def test_labels_that_cannot_be_learnt_from(slidelens, cohort, tmp_path, rows, message):
    labels = tmp_path / "labels.csv"
    header = "slide_id,label,split" if rows.split("\n")[0].count(",") == 2 else "slide_id,label"
    labels.write_text(f"{header}\n{rows}\n")
    done = slidelens(*_words(cohort, tmp_path / "m", labels))
    assert done.code == 1
    assert re.search(message, " ".join(done.err.split())), done.err
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("seed", [-1, 5_000_000_000])
def test_a_seed_that_no_generator_takes(slidelens, cohort, tmp_path, seed):
    out = tmp_path / "m"
    done = slidelens(*_words(cohort, out), "--seed", seed)
    assert done.code == 2
    bound = "at least 0" if seed < 0 else "at most 4294967295"
    assert f"'--seed': must be {bound}, not '{seed}'\n" in done.err
    file = tmp_path / "train.yaml"
    file.write_text(f"seed: {seed}\n")
    words = ["--slides", cohort / "slides", "--labels", cohort / "labels.csv", "--out", out]
    done = slidelens("train", "mil", *words, "--config", file)
    assert done.code == 1
    assert f"train.yaml: seed: must be {bound}, not {seed}.\n" in done.err
    assert not out.exists()


@pytest.fixture
def planned(slidelens, cohort, tmp_path, monkeypatch):
    """Plan a training as the program does, instead of carrying it out."""
    made = []

    def plan(family, *, resume, **options):
        made.append(plan_training(family, **options))
        return (_ for _ in ())

    monkeypatch.setattr("slidelens.engine.train.train", plan)

    def run(*words):
        places = ["--labels", cohort / "labels.csv", "--out", tmp_path / "planned"]
        done = slidelens("train", *words, *places)
        assert done.code == 0, done.err
        return made.pop()

    return run


def test_tissue_is_asked_for_as_in_predict_where_no_field_is_called_so(planned, slidelens, cohort):
    slides = ("--slides", cohort / "slides")
    assert planned("mil", *slides, "--tissue", "otsu").tissue.method == "otsu"
    made = planned("magnet", *slides, "--tissue", "--slide-tissue", "min_area=0")
    assert (made.config.tissue, made.tissue.min_area) == (True, 0)
    done = slidelens("train", "mil", "--tissue", "purple")
    assert (done.code, "value for --tissue: method" in done.err) == (2, True), done.err


def test_a_preset_of_the_command_line_comes_before_the_fields_of_a_file(planned, cohort, tmp_path):
    slides, file = ("--slides", cohort / "slides"), tmp_path / "config.yaml"
    write_train_file(file, planned("mil", *slides, "--preset", "paper", "--smoothing", "0.1").file)
    kept = planned("mil", "--config", file).training
    assert (kept.optimizer, kept.weight_decay, len(kept.stages)) == ("sgd", 0, 2)
    usual = planned("mil", *slides, "--smoothing", "0.1").training
    assert planned("mil", "--config", file, "--preset", "default").training == usual
    beside = planned("mil", "--config", file, "--preset", "default", "--patience", "3")
    assert beside.training == usual.model_copy(update={"patience": 3})


def test_bags_stand_in_for_slides_however_they_are_given(planned, tmp_path):
    (tmp_path / "bags").mkdir()
    for number in range(6):
        with h5py.File(tmp_path / "bags" / f"s{number}.h5", "w") as file:
            file["features"], file["coords"] = np.zeros((2, 8), np.float32), np.zeros((2, 2), int)
    words = ("mil", "--pooling", "abmil", "--set", "bag_dim=8")
    ways = (("--bags", tmp_path / "bags"), ("--set", f"bags={tmp_path / 'bags'}"))
    one, other = (planned(*words, *way) for way in ways)
    assert one.settings == other.settings
    assert one.request["slides"] == str(tmp_path / "bags")


def test_a_label_that_the_model_to_start_from_does_not_know(slidelens, cohort, tmp_path):
    base = tmp_path / "base"
    assert slidelens(*_words(cohort, base, stages=ONE)).code == 0
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id,label\ns0,normal\ns1,tumour\ns2,necrosis\ns3,stroma\n")
    words = ["--slides", str(cohort / "slides"), "--labels", str(labels), "--from", str(base)]
    done = slidelens("train", "mil", *words, "--out", tmp_path / "m")
    assert done.code == 1
    found = " ".join(done.err.split())
    assert re.search(r"neither one of the classes normal, tumour .*s2 \('necrosis'\), s3", found)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(
    slidelens, cohort, tmp_path
):
    rates = {"lr": 1e30, "head_lr": 1e30}
    stages = json.dumps([*json.loads(ONE), {"epochs": 1, **rates, "start": "last"}])
    done = slidelens(*_words(cohort, tmp_path / "m", stages=stages))
    assert done.code == 1
    found = " ".join(done.err.split())
    assert re.search(r"stopped in epoch 2: the \w+ of slides? s\d.* not .*finite", found), found
    record = _record(tmp_path / "m")
    assert record["position"]["epoch"] == 1
    tensors = load_file(tmp_path / "m" / "training" / record["tensors"])
    assert all(t.isfinite().all() for k, t in tensors.items() if k.startswith("model."))


def test_a_full_disk_leaves_the_old_checkpoint_and_the_training_goes_on(cohort, tmp_path):
    out = tmp_path / "m"
    full = Warm("-m", "slidelens", *_words(cohort, out), before=_small_files)
    said = full.communicate()[1]
    assert full.returncode == 1
    assert "Traceback" not in said
    assert re.search(r"cannot save .*is as it was. Make room, .*--resume", " ".join(said.split()))
    record = _record(out)
    assert record["position"]["epoch"] == 1
    assert load_file(out / "training" / record["tensors"])
    assert run_warm("-m", "slidelens", *_words(cohort, out), "--resume").returncode == 0
    assert (out / "model.json").exists()


def test_sigkill_then_resume_gives_the_weights_of_a_run_without_it(slidelens, cohort, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert slidelens(*_words(cohort, whole)).code == 0
    child = Warm("-m", "slidelens", *_words(cohort, killed))
    while not (killed / "training" / "checkpoint.json").exists():
        assert child.poll() is None, child.communicate()
        time.sleep(0.01)  # another process writes it: there is nothing to wait on
    time.sleep(random.uniform(0, 0.1))  # the kill is to come at any moment of what is left
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert slidelens(*_words(cohort, killed), "--resume").code == 0
    wanted, found = (load_file(out / "weights.safetensors") for out in (whole, killed))
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)


def test_a_family_that_is_not_here_is_told_with_those_that_are(slidelens):
    done = slidelens("train", "mill", "--slides", "slides")
    assert done.code == 2
    assert re.search(r"'mill' can be trained here; there are .*\bmil\b.*Plugins", done.err), (
        done.err
    )


def test_a_family_that_only_runs_is_not_trained(slidelens, monkeypatch):
    monkeypatch.setitem(FAMILIES._loaded, "mil", replace(FAMILIES.get("mil"), trainer=None))
    done = slidelens("train", "mil")
    assert done.code == 2
    assert "family 'mil' only runs models, and cannot be trained." in " ".join(done.err.split())


def _job(monkeypatch, **of_slurm: str) -> None:
    """Let the command find itself in a job of SLURM."""
    one = {"JOB_ID": "1", "JOB_NAME": "train", "NNODES": "1", "NODELIST": "localhost"}
    one |= {"PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in (one | of_slurm).items():
        monkeypatch.setenv(f"SLURM_{name}", value)


def test_one_process_trains_in_a_job_of_any_shape(slidelens, cohort, tmp_path, monkeypatch):
    """``-n 2`` without tasks per node is no matter of a training that starts no others."""
    _job(monkeypatch, NTASKS="2")
    done = slidelens(*_words(cohort, tmp_path / "m", stages=ONE))
    assert done.code == 0, done.err
    assert (tmp_path / "m" / "model.json").exists()


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (
            {"NTASKS": "1"},
            r"start training in 2 processes \(cpu\): its job has 1 processes, .* is 2\. .* srun",
        ),
        ({"NTASKS": "2"}, r"cannot start training in 2 processes \(cpu\): .*--ntasks-per-node=2"),
        ({"NTASKS": "4", "NTASKS_PER_NODE": "4"}, r"its job has 4 processes"),
        ({"NTASKS": "2", "NTASKS_PER_NODE": "1"}, r"cannot start training .* does not match"),
    ],
)
def test_a_job_of_another_number_of_processes(slidelens, cohort, tmp_path, monkeypatch, job, said):
    """A training in fewer processes than were asked for would learn as another one."""
    _job(monkeypatch, **job)
    done = slidelens(*_words(cohort, tmp_path / "m", stages=ONE), "--devices", "2")
    assert done.code == 1
    assert re.search(said, " ".join(done.err.split())), done.err
    assert not (tmp_path / "m" / "model.json").exists()


def _record(out: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out / "training" / "checkpoint.json").read_text())
    return record


def _small_files() -> None:
    """Let no file grow past the limit, as on a disk that is full: the system refuses to write."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))


@pytest.mark.parametrize(
    ("command", "said"), [("train", "--resume"), ("predict", "runs the others")]
)
def test_who_stops_a_run_is_told_how_it_goes_on(tmp_path, command, said):
    write_cohort(tmp_path / "cohort", 6, size=(1024, 1024))
    call = {
        "train": "train mil --slides cohort/slides --labels cohort/labels.csv --weights none "
        "--backbone squeezenet1_1 --out m",
        "predict": "predict cohort/slides --model demo-mil --out r",
    }[command]
    run = Warm("-m", "slidelens", *call.split(), cwd=tmp_path)
    run.stderr.readline()  # the first word of progress
    run.send_signal(signal.SIGINT)
    _, told = run.communicate(timeout=120)
    assert run.returncode == 130, told
    assert said in told.splitlines()[-1]
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "expected a mapping"),
        ("family: local\nseed: 1", "run slidelens train local"),
        ("a: [", "is not YAML"),
        (
            "slides: a\nlabels b.csv\nseed: 1",
            "is not YAML from line 2 on: could not find expected ':'",
        ),
        ("slides: s\nlabels: l\nout: o\ntiel: 3", "tiel"),
        ("seed: one", "train.yaml: seed: must be a whole number, not 'one'"),
        ("epochs: 0", "epochs: must be at least 1, not 0."),
        ("fold: 3", "fold: must be a list, not 3."),
        ("slides: [a, b]", "slides: must be text, not ['a', 'b']."),
    ],
)
def test_a_file_that_is_no_training_is_named(slidelens, tmp_path, text, message):
    file = tmp_path / "train.yaml"
    file.write_text(text)
    done = slidelens("train", "mil", "--config", file, "--out", tmp_path / "m")
    assert done.code == 1
    assert message in done.err


def test_what_neither_file_nor_command_line_gives_is_asked_for(slidelens, tmp_path):
    done = slidelens("train", "mil", "--out", tmp_path / "m")
    assert done.code == 2
    assert "missing --slides, --labels" in done.err
