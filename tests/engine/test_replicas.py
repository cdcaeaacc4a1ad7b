"""Training in several processes: their part is played by threads, which start at once."""

from __future__ import annotations

import json
import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, local
from time import sleep
from types import SimpleNamespace

import pytest
import torch

from slidelens.engine import train as training
from slidelens.engine.folds import train_folds
from slidelens.engine.package import load_model, save_model
from slidelens.engine.training import loop, replicas
from slidelens.engine.training.checkpoint import Checkpoint, CheckpointStore
from slidelens.families.base import FamilyConfig, Model
from slidelens.families.mil_tiles import MilTiles
from slidelens.families.multistage_train import MultistageTask
from slidelens.families.slide_training import SlideImages
from slidelens.families.streaming_train import StreamingTask
from slidelens.families.training import Outcome, Sample, Stage, TrainConfig, TrainTask, Work
from train_cohort import annotate, make_cohort, request


class _Meeting:
    """Two replicas in two threads, as Fabric and torch.distributed have them in two processes.

    Whoever is out of step fails, instead of waiting for ever.
    """

    world_size = 2

    def __init__(self):
        self._barrier = Barrier(2, timeout=120)
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

    def setup_module(self, module):
        return module

    def setup_optimizers(self, optimizer):
        return optimizer

    def all_gather_object(self, found, value):
        found[:] = self._meet("gather", value)

    def all_gather(self, found, tensor):
        for place, theirs in zip(found, self._meet("tensors", tensor), strict=True):
            place.copy_(theirs)

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


def test_the_first_of_two_processes_sums_up_the_folds(meeting, monkeypatch, tmp_path):
    """The other one waits for the models, says nothing, and needs none of the tables."""
    save = training.save_model

    def slowly(*given):
        time.sleep(0.3)  # a large model, or a slow disk: the other process has to wait
        return save(*given)

    monkeypatch.setattr(training, "save_model", slowly)
    monkeypatch.setattr(training, "_fabric", lambda _: (meeting, torch.device("cpu")))
    stages = '[{"epochs": 1, "lr": 0.001, "head_lr": 0.001, "trains": "head"}]'
    cohort = make_cohort(tmp_path / "cohort")
    asked = request(cohort, tmp_path / "cv", overrides={"stages": stages})
    models, seeds = [], []
    monkeypatch.setattr(
        replicas.Replicas, "draw_apart", lambda self, seed: seeds.append((self.rank, seed))
    )

    def run(rank):
        steps = list(train_folds(**asked, folds=2))
        models.extend(tmp_path.glob("cv/*/model.json") if rank else ())
        return steps

    first, second = meeting.both(run)
    assert [step.fold for step in first if step.doing == "done"] == [2]
    of_fold = [max(s.seconds for s in first[:-1] if s.fold == fold) for fold in (1, 2)]
    assert first[-1].seconds >= sum(of_fold) > max(of_fold)
    assert (second, len(models)) == ([], 2)
    assert sorted(seeds) == [(0, 1), (0, 1), (1, 1), (1, 1)]
    assert (
        json.loads((tmp_path / "cv" / "folds.json").read_text())["auc_mean"] == first[-1].tune_auc
    )


HEAD = '[{"epochs": 1, "lr": 0.001, "head_lr": 0.001, "trains": "head"}]'
MAP = '[{"epochs": 1, "lr": 0.001, "head_lr": 0.001, "trains": "head", "on": "map"}]'


@pytest.mark.parametrize(
    ("family", "looks", "fields"),
    [
        ("mil", (MilTiles, "vectors"), {"pooling": "abmil", "stages": HEAD}),
        ("streaming", (StreamingTask, "_forward"), {"layers": "features.2", "stages": HEAD}),
        ("local", (SlideImages, "__getitem__"), {"modules": "2", "stages": HEAD}),
        ("multistage", (MultistageTask, "_vectors_of"), {"stages": MAP, "depth": "1"}),
    ],
)
def test_two_processes_look_at_each_slide_once(
    meeting, monkeypatch, tmp_path, family, looks, fields
):
    """What one has encoded or scanned the other need not; each has half of the slides."""
    owner, name = looks
    seen = []
    real = getattr(owner, name)

    def look(self, *given, **named):
        seen.append(getattr(meeting._own, "rank", 0))
        return real(self, *given, **named)

    monkeypatch.setattr(owner, name, look)
    cohort = annotate(make_cohort(tmp_path / "cohort", train=18, tune=4))

    def asked(out, **options):
        given = request(cohort, tmp_path / out, **options)
        fixed = {"precision": "fp32"} | fields
        if family == "mil":
            fixed |= {"bag_cache": str(tmp_path / f"bags-{out}")}
        if family in ("mil", "multistage"):
            fixed |= {"min_tissue": "0"}
        if family != "local":
            fixed |= {"tile": "32"}
        if family == "multistage":
            given |= {"annotations": cohort / "annotations"}
        return given | {"family_name": family, "overrides": fixed, "config": {"mpp": 0.5}}

    list(training.train(**asked("alone")))
    alone = len(seen)
    seen.clear()
    monkeypatch.setattr(training, "_fabric", lambda _: (meeting, torch.device("cpu")))
    monkeypatch.setattr(replicas.Replicas, "draw_apart", lambda *_: None)
    # Threads share random numbers: only a model's weights are the same in both from the start.
    base = tmp_path / "alone"
    meeting.both(lambda _: list(training.train(**asked("both", from_model=base))))
    assert len(seen) == alone >= 22
    assert seen.count(0) == seen.count(1)


def test_a_process_without_a_slide_to_learn_from_has_the_gain_too(meeting, monkeypatch, tmp_path):
    """Four slides are one batch: the second process scans two of them, and learns from none."""
    cohort = annotate(make_cohort(tmp_path / "cohort"))

    def asked(out, **options):
        fixed = {"precision": "fp32", "min_tissue": "0", "tile": "32", "depth": "1", "stages": MAP}
        given = request(cohort, tmp_path / out, **options) | {"overrides": fixed}
        annotations = cohort / "annotations"
        return given | {"family_name": "multistage", "annotations": annotations}

    list(training.train(**asked("base")))
    base = load_model(tmp_path / "base", "cpu")
    alone = float(base.module.gain)
    base.module.gain.fill_(1)
    save_model(base, tmp_path / "begun")
    monkeypatch.setattr(training, "_fabric", lambda _: (meeting, torch.device("cpu")))
    monkeypatch.setattr(replicas.Replicas, "draw_apart", lambda *_: None)
    begun = tmp_path / "begun"
    meeting.both(lambda _: list(training.train(**asked("both", from_model=begun))))
    both = float(load_model(tmp_path / "both", "cpu").module.gain)
    assert both == pytest.approx(alone)
    assert alone != pytest.approx(1)


def test_running_statistics_are_averaged_and_those_of_norms_left(meeting):
    def average(rank):
        module = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.BatchNorm1d(1))
        module[0].register_buffer("mean", torch.tensor([1.0, 0.1 + 2 * rank]))
        module[0].register_buffer("count", torch.tensor(rank))
        module[1].running_mean.fill_(rank)
        replicas.Replicas(meeting).average_statistics(module)
        return module[0].mean.tolist(), module[0].count.item(), module[1].running_mean.item()

    for rank, (mean, count, frozen) in enumerate(meeting.both(average)):
        assert mean == pytest.approx([1.0, 1.1])
        assert (count, frozen) == (rank, rank)


def test_every_process_draws_numbers_of_its_own():
    def seed(rank, seed=7):
        torch.manual_seed(seed)
        replicas.Replicas(SimpleNamespace(global_rank=rank, world_size=3)).draw_apart(seed)
        return torch.initial_seed()

    assert seed(0) == 7
    assert len({seed(0), seed(1), seed(2), seed(1, 8)}) == 4
    assert seed(1) == seed(1)


class _Draws(_Scans):
    """Learns from random numbers of the process's own, whose running mean is a buffer."""

    def __init__(self, config, generator):
        super().__init__(3, config)
        self.generator = generator
        self.model.module.register_buffer("mean", torch.zeros(1))

    def epoch(self, epoch, stage):
        for sample in self.data.train:
            yield Work("train", (sample.slide_id,), (sample.label,))

    def length(self, stage):
        return len(self.data.train)

    def step(self, work, epoch, backward):
        if work.phase == "train":
            drawn = torch.rand(1, 1, generator=self.generator)
            self.model.module.mean.lerp_(drawn[0], 0.5)
            backward(self.model.module(drawn).square().sum())
        return Outcome((1.0,), ((0.5, 0.5),))


@pytest.fixture
def generators(meeting, monkeypatch):
    """One per replica, in the place of the global ones, which threads share."""
    found = [torch.Generator(), torch.Generator()]

    def state():
        return {"torch": found[meeting.global_rank].get_state()}, {}

    def restore(tensors, record):
        found[meeting.global_rank].set_state(tensors["torch"])

    monkeypatch.setattr(replicas, "random_state", state)
    monkeypatch.setattr(replicas, "restore_random", restore)
    return found


def test_processes_resume_to_the_same_weights_from_any_step(
    meeting, generators, monkeypatch, tmp_path
):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(loop, "SAVE_SHARE", 0.0)
    config = TrainConfig(stages=(Stage(epochs=2, lr=0.1, head_lr=0.1),), patience=0)

    def run(folder, seed):
        """Train; what a kill would leave after each step lies beside the folder."""
        resume = CheckpointStore(folder).exists

        def one(rank):
            task = _Draws(config, generators[rank].manual_seed(seed + rank))
            store = CheckpointStore(folder)
            if rank and resume:  # the second is the slower one to read
                monkeypatch.setattr(
                    store, "load", lambda: sleep(0.05) or CheckpointStore.load(store)
                )
            steps = loop.TrainLoop(meeting, task, config, store, {})
            for number, _ in enumerate(steps.run(resume=resume)):
                if rank == 0 and not resume:
                    shutil.copytree(folder, tmp_path / f"killed-{number}")
            return {k: v.tolist() for k, v in task.model.module.state_dict().items()}

        first, second = meeting.both(one)
        assert first == second
        return first

    whole = run(tmp_path / "whole", 1)
    killed = sorted(tmp_path.glob("killed-*"))
    assert len(killed) > 8
    for folder in killed:
        assert run(folder, 5) == whole, folder.name


def test_a_process_that_the_checkpoint_does_not_know_draws_as_it_was_seeded(meeting, generators):
    given = torch.Generator().manual_seed(9).get_state()
    seeded = generators[1].manual_seed(2).get_state()
    checkpoint = Checkpoint({"random.torch": given}, {"random": {}})

    def restore(rank):
        replicas.Replicas(meeting).restore_random(checkpoint)
        return generators[rank].get_state()

    first, second = meeting.both(restore)
    assert torch.equal(first, given)
    assert torch.equal(second, seeded)
