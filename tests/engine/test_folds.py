"""Cross-validation, trainings from files, several processes: each end to end on tiny slides."""

from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, local
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from slidelens.engine import loop, replicas
from slidelens.engine.checkpoint import CheckpointStore
from slidelens.engine.folds import train_folds
from slidelens.engine.metrics import auc
from slidelens.engine.package import load_model
from slidelens.engine.train import train
from slidelens.engine.train_file import read_train_file
from slidelens.errors import ModelError
from slidelens.families.base import FamilyConfig, Model
from slidelens.families.training import Outcome, Sample, Stage, TrainConfig, TrainTask, Work
from train_cohort import make_cohort, request


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("cohort"), train=6, tune=2)


def test_folds_hold_out_every_slide_and_resume(cohort, tmp_path):
    asked = request(cohort, tmp_path / "cv")
    steps = train_folds(**asked, folds=2)
    for step in steps:
        if step.fold == 2 and step.doing == "train":
            break
    steps.close()
    assert not (tmp_path / "cv" / "folds.json").exists()
    with pytest.raises(ModelError, match="finished folds"):
        train_folds(**asked, folds=2)
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
    options, fields = read_train_file(kept, "mil")
    places = {"slides_dir": options.pop("slides"), "labels_csv": options.pop("labels")}
    list(train("mil", out=tmp_path / "again", config=fields, **places, **options))
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
    done = _run(command)
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
    done = _run(
        [
            *("train", "mil", "--slides", cohort / "slides", "--labels", cohort / "labels.csv"),
            *("--out", out, "--backbone", "squeezenet1_1", "--weights", "none", "--seed", "1"),
            *("--device", "cpu", "--devices", "2", "--json"),
            *(part for k, v in fields.items() for part in ("--set", f"{k}={v}")),
        ]
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


class _Meeting:
    """Two replicas in two threads, as Fabric and torch.distributed have them in two processes.

    Whoever is out of step fails, instead of waiting for ever.
    """

    world_size = 2

    def __init__(self):
        self._barrier = Barrier(2, timeout=20)
        self._given = [None, None]
        self._own = local()

    def both(self, do):
        """Call ``do(rank)`` in each; return what they return."""

        def one(rank):
            self._own.rank = rank
            try:
                return do(rank)
            except BaseException:
                self._barrier.abort()
                raise

        with ThreadPoolExecutor(2) as threads:
            return list(threads.map(one, (0, 1)))

    def _meet(self, kind, value):
        self._given[self.global_rank] = kind, pickle.dumps(value)
        self._barrier.wait()
        kinds, values = zip(*self._given, strict=True)
        self._barrier.wait()
        assert kinds == (kind, kind)
        return [pickle.loads(value) for value in values]

    @property
    def global_rank(self):
        return self._own.rank

    def barrier(self):
        self._meet("barrier", None)

    def backward(self, loss):
        loss.backward()

    def setup_optimizers(self, optimizer):
        return optimizer

    def all_gather_object(self, found, value):
        found[:] = self._meet("gather", value)

    def all_reduce(self, tensor):
        tensor.copy_(sum(self._meet("reduce", tensor)))

    def broadcast(self, tensor, source):
        tensor.copy_(self._meet("broadcast", tensor.detach())[source])


@pytest.fixture
def meeting(monkeypatch):
    found = _Meeting()
    monkeypatch.setattr(replicas, "distributed", found)
    return found


class _Scans(TrainTask[FamilyConfig]):
    """Scans every slide, then learns twice from what the scans of this epoch left."""

    training = TrainConfig

    def __init__(self, count, config):
        data = SimpleNamespace(
            train=[Sample(f"s{i}", i % 2) for i in range(count)],
            tune=[Sample("t0", 0), Sample("t1", 1)],
        )
        model = Model("m", "tiny", FamilyConfig(), ("a", "b"), torch.nn.Linear(1, 1))
        super().__init__(model, model.module, data, config, seed=0)
        self.found = {}
        self.learnt = []

    @classmethod
    def initialize(cls, model, weights):
        return {}

    def groups(self, stage):
        return [(1e-3, list(self.model.module.parameters()))]

    def epoch(self, epoch, stage):
        for sample in self.data.train:
            yield Work("scan", (sample.slide_id,), (sample.label,))
        for _ in range(2):
            samples = self.data.train
            yield Work("train", tuple(s.slide_id for s in samples), tuple(s.label for s in samples))

    def length(self, stage):
        return len(self.data.train) + 2

    def step(self, work, epoch, backward):
        if work.phase == "scan":
            self.found[work.slides[0]] = epoch
            return Outcome()
        if work.phase == "tune":
            return Outcome((1.0,), ((0.5, 0.5),))
        self.learnt.append((epoch, {slide: self.found[slide] for slide in work.slides}))
        backward(self.model.module(torch.ones(len(work.slides), 1)).sum())
        return Outcome((1.0,) * len(work.slides))

    def state(self):
        return {"found": self.found}

    def load_state(self, state):
        self.found = dict(state["found"])


def _train_both(meeting, folder, count, stop=None):
    """Train two replicas on ``count`` slides, at most until a step; return what each learnt from.

    ``folder`` is then as closing left it; beside it, ``killed`` is as a kill would have.
    """
    stage = Stage(epochs=2, lr=1e-3, head_lr=1e-3)
    config = TrainConfig(stages=(stage,), patience=0)

    def one(rank):
        task, store = _Scans(count, config), CheckpointStore(folder)
        resume = store.exists
        meeting.barrier()  # all have looked
        steps = loop.TrainLoop(meeting, task, config, store, {}).run(resume=resume)
        for step in steps:
            if (step.doing, step.epoch, step.done) == stop:
                if rank == 0:
                    folder.mkdir(exist_ok=True)
                    shutil.copytree(folder, folder.with_name("killed"))
                steps.close()
        return task.learnt

    return meeting.both(one)


@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("epoch", [1, 2])
def test_processes_that_are_stopped_while_scanning_learn_from_all_scans_of_the_epoch(
    meeting, monkeypatch, tmp_path, count, epoch
):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(loop, "SAVE_SHARE", 0.0)
    closed = tmp_path / "closed"
    _train_both(meeting, closed, count, ("scan", epoch, min(count, 2)))
    for folder in (closed, tmp_path / "killed"):
        for learnt in _train_both(meeting, folder, count):
            assert learnt[-1][0] == 1
            for now, scanned in learnt:
                assert scanned == {f"s{i}": now for i in range(count)}


def test_a_parameter_without_gradient_in_every_process_keeps_none(meeting):
    def sums(rank):
        everywhere, once, nowhere = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
        everywhere.grad = torch.full((2,), rank + 1.0)
        once.grad = torch.full((2,), 5.0) if rank == 0 else None
        replicas.Replicas(meeting).sum_gradients([nowhere, everywhere, once])
        return [None if p.grad is None else p.grad.tolist() for p in (nowhere, everywhere, once)]

    assert meeting.both(sums) == [[None, [3.0, 3.0], [5.0, 5.0]]] * 2


def test_works_are_taken_when_their_round_needs_them(meeting):
    taken = []

    def works():
        for number, phase in enumerate(["scan"] * 3 + ["train"] * 2):
            taken.append(number)
            yield Work(phase, (f"s{number}",), (0,))

    def rounds(rank):
        if rank:
            return []
        found = replicas.Replicas(meeting).rounds(works())
        return [([number for number, _ in one], taken[-1]) for one in found]

    # Only what is of another phase says that a round has fewer works than processes.
    assert meeting.both(rounds)[0] == [([0, 1], 1), ([2], 3), ([3, 4], 4)]


def _run(arguments: list[object]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    program = Path(sys.executable).with_name("slidelens")
    return subprocess.run(
        [str(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
