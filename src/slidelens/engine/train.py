"""Train a family on labelled slides: carry out a plan and write a model package."""

from __future__ import annotations

import logging
from contextlib import ExitStack, closing, contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any, Unpack

from filelock import Timeout

from slidelens.engine.learnt import LEARNT_FROM
from slidelens.engine.locks import locked
from slidelens.engine.package import family_of, save_model
from slidelens.engine.training.contents import check_contents, write_contents
from slidelens.engine.training.file import write_train_file
from slidelens.engine.training.plan import plan_training
from slidelens.engine.training.record import (
    SLIDES_TABLE,
    slides_note,
    training_card,
    write_curves,
    write_slides,
)
from slidelens.engine.training.replicas import replica_strategy
from slidelens.engine.training.start import initial_model, task_of
from slidelens.engine.training.state import REQUEST, STATE
from slidelens.errors import LabelError, MissingMppError, ModelError, ResultError, SlideError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    import torch
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

    from slidelens.engine.training.checkpoint import CheckpointStore
    from slidelens.engine.training.loop import TrainProgress
    from slidelens.engine.training.plan import TrainOptions, TrainPlan
    from slidelens.engine.training.samples import TrainSlides
    from slidelens.families.base import Model
    from slidelens.families.training import TrainTask

__all__ = ["train"]

log = logging.getLogger(__name__)

_SHARE = 8
"""Slides that each of several processes checks before it waits for the others: none waits long."""


def train(
    family_name: str,
    slides_dir: str | Path,
    labels_csv: str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    **options: Unpack[TrainOptions],
) -> Generator[TrainProgress]:
    """Train a model and write its package to ``out``; iterate over the result to run it.

    Faults of the input are raised at once, before the first step. A checkpoint is saved every epoch
    and every minute, and when the iterator is closed, but not while several processes scan slides:
    the scan is then repeated. ``out/training/history.csv`` holds the losses. The caller's random
    generators are left alone, and numbers drawn between two steps do not affect training.

    Parameters
    ----------
    family_name, slides_dir, labels_csv, out, options
        As for :func:`~slidelens.engine.training.plan.plan_training`, which tells each: ``classes``,
        ``backbone``, ``weights``, ``epochs``, ``seed``, ``preset``, ``config``, ``overrides``,
        ``annotations``, ``from_model``, ``fraction``, ``fold``, ``device``, ``devices``, ``nodes``,
        ``mpp`` (µm/px, of slides that state none), ``tissue``.
    resume
        Continue from the checkpoint in ``out``, if there is one.

    Yields
    ------
    TrainProgress
        After every step.

    Raises
    ------
    LabelError, ModelError, SlideError, ResultError
        See :func:`~slidelens.engine.training.plan.plan_training` and
        :meth:`~slidelens.engine.training.loop.TrainLoop.run`; slides that cannot be used are listed
        all at once, before training.
    """
    epochs = options.get("epochs")
    if epochs is not None and epochs < 1:
        raise ModelError(f"epochs must be at least 1, not {epochs}.")
    return _run(plan_training(family_name, slides_dir, labels_csv, out, **options), resume)


def _run(plan: TrainPlan, resume: bool) -> Generator[TrainProgress]:
    """Check the folder now; return the iterator that does the rest."""
    from slidelens.engine.training.checkpoint import CheckpointStore
    from slidelens.engine.training.own_random import with_own_random

    if (plan.out / "model.json").exists():
        raise ModelError(
            f"{plan.out} already holds a model; give another folder, or --from to fine-tune it."
        )
    store = CheckpointStore(plan.out / STATE)
    if store.exists and not resume:
        raise ModelError(
            f"{plan.out} holds an unfinished training; continue it with --resume, or give another "
            "folder."
        )
    if store.exists:  # now: what it leaves behind must not tell of other settings
        store.check_settings(plan.settings)
        check_contents(plan)
    elif resume:
        log.warning("%s holds no unfinished training: it begins at the start", plan.out)
    return with_own_random(_steps(plan, store))


def _steps(plan: TrainPlan, store: CheckpointStore) -> Generator[TrainProgress]:
    """Train; of several processes, the first reports progress."""
    from slidelens.engine.contract import blaming

    fabric, device = _fabric(plan)
    steps = _work(plan, store, fabric, device)
    with blaming(plan.family, plan.config, "to train"), closing(steps):
        for step in steps:
            if fabric.global_rank == 0:
                yield step


def _work(
    plan: TrainPlan, store: CheckpointStore, fabric: Fabric, device: torch.device
) -> Generator[TrainProgress]:
    from slidelens.engine.training.loop import TrainLoop, TrainProgress

    start = perf_counter()
    with ExitStack() as held:
        goes_on = store.exists and fabric.global_rank == 0
        if goes_on:  # before the slides are looked at, which takes long
            held.enter_context(_alone(plan.out))
        model, origin = initial_model(plan, device)
        network = fabric.setup_module(model.module)
        slides = held.enter_context(closing(_open(plan, device)))
        task = task_of(plan.family)(model, network, slides, plan.training, plan.seed)
        yield from _check_slides(task, plan, fabric)
        loop = TrainLoop(fabric, task, plan.training, store, plan.settings)
        if loop.replicas.is_first:
            if not goes_on:
                held.enter_context(_alone(plan.out))
            _keep_request(plan)
        loop.replicas.draw_apart(plan.seed)
        yield from loop.run(resume=store.exists)
        if loop.replicas.is_first:
            with _writing(plan.out / STATE) as folder:
                write_curves(folder, loop)
            model.card |= training_card(plan, loop, origin, device, model.card.get(LEARNT_FROM))
            _publish(model, plan.out)
            store.clear()
    loop.replicas.wait()  # none ends, or goes on to another training, before the model is there
    last = loop.history[-1]
    yield TrainProgress(
        "done",
        epoch=last["epoch"],
        epochs=last["epoch"],
        train_loss=last["train_loss"],
        tune_loss=loop.metrics["loss"],
        tune_auc=loop.metrics["auc"],
        seconds=perf_counter() - start,
    )


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Lock a folder against other training runs, which would overwrite the weights."""
    with ExitStack() as held:
        with _writing(out / STATE) as folder:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(locked(folder / ".lock", timeout=0))
            except Timeout as error:
                raise ModelError(
                    f"{out}: another training is at work in this folder; wait for it, or give "
                    "another one."
                ) from error
        yield


def _keep_request(plan: TrainPlan) -> None:
    """Write the configuration, slides and contents used beside the history, to repeat the run."""
    with _writing(plan.out / STATE) as folder:
        folder.mkdir(parents=True, exist_ok=True)
        write_train_file(folder / REQUEST, plan.file)
        write_slides(folder / SLIDES_TABLE, plan)
        write_contents(plan)


@contextmanager
def _writing(folder: Path) -> Iterator[Path]:
    """Provide a folder to write into; ``OSError`` becomes ``ResultError``."""
    try:
        yield folder
    except OSError as error:
        raise ResultError(f"cannot write {folder}: {error.strerror or error}.") from error


def _fabric(plan: TrainPlan) -> tuple[Fabric, torch.device]:
    """Start Fabric on the plan's devices and seed every generator."""
    from slidelens.engine.device import autocast_plugin, pick_device, uses_bf16

    try:
        from lightning.fabric import Fabric, seed_everything
        from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    except ImportError as error:
        raise ModelError(
            f"training needs packages that are not installed ({error.name}): "
            "pip install 'slidelens[train]'."
        ) from error
    device = pick_device(plan.device)
    _check_devices(plan, device)
    processes = plan.devices * plan.nodes
    auto = family_of(plan.family).auto_bf16
    bf16 = uses_bf16(device, plan.training.precision, auto=auto)
    for name in ("lightning.fabric", "lightning.pytorch"):  # they announce their precision
        logging.getLogger(name).setLevel(logging.WARNING)
    only = [device.index or 0] if device.type == "cuda" and processes == 1 else plan.devices
    plugins: list[Any] = [autocast_plugin(device)] if bf16 else []
    if processes == 1:  # whatever the job of a cluster has: it is not asked
        plugins.append(LightningEnvironment())
    try:
        fabric = Fabric(
            accelerator=device.type,
            devices=only,
            num_nodes=plan.nodes,
            strategy=replica_strategy(processes),
            precision=None if bf16 else "32-true",
            plugins=plugins,
        )
        if processes > 1:
            _check_job(plan, fabric)
        fabric.launch()
    except (RuntimeError, ValueError) as error:
        many = "one process" if processes == 1 else f"{processes} processes"
        raise ModelError(f"cannot start training in {many} ({device.type}): {error}") from error
    seed_everything(plan.seed, verbose=False)
    return fabric, device if processes == 1 else fabric.device


def _check_devices(plan: TrainPlan, device: torch.device) -> None:
    import torch

    if plan.devices < 1 or plan.nodes < 1:
        raise ModelError("training needs at least one device and one node.")
    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device.type)
    if there is not None and plan.devices > there:
        raise ModelError(
            f"--devices {plan.devices}: this machine has {there} of {device.type}; give at most "
            "that many, or --nodes for several machines."
        )


def _check_job(plan: TrainPlan, fabric: Fabric) -> None:
    """Refuse a cluster's job of another number of processes: it would train with those it has."""
    job: ClusterEnvironment = fabric.strategy.cluster_environment  # type: ignore[attr-defined]
    processes = plan.devices * plan.nodes
    if job.creates_processes_externally and job.world_size() != processes:
        raise RuntimeError(
            f"its job has {job.world_size()} processes, and --devices {plan.devices} --nodes "
            f"{plan.nodes} is {processes}. Begin the command with srun in a job of "
            f"--nodes={plan.nodes} --ntasks-per-node={plan.devices}, or on one machine leave "
            "--ntasks out of the job."
        )


def _open(plan: TrainPlan, device: torch.device) -> TrainSlides:
    from slidelens.engine.training.samples import TrainSlides
    from slidelens.families.training import Sample

    train, tune = (
        [Sample(row.slide_id, row.label) for row in plan.labels.of(split)]
        for split in ("train", "tune")
    )
    budget = plan.training.cache_mb << 20
    return TrainSlides(
        train,
        tune,
        plan.files,
        device=device,
        cache_bytes=budget,
        mpp=plan.mpp,
        stain=plan.config.stain_normalization,
        annotations=plan.annotations,
        config=plan.config,
        tissue=plan.tissue,
    )


def _check_slides(task: TrainTask[Any], plan: TrainPlan, fabric: Fabric) -> Iterator[TrainProgress]:
    """Look at every slide before the first step, so that a bad one does not end a night's work.

    A check may encode the slide's tiles, and keep the vectors on the disk. So of several processes
    each begins with slides of its own, and looks at those of the others when these are done.
    """
    from slidelens.engine.training.loop import TrainProgress

    slides = [row.slide_id for row in plan.labels.rows]
    note, done = slides_note(plan), 0
    faults: dict[int, str] = {}
    without_mpp = False
    for own, numbers in _shares(len(slides), fabric.global_rank, fabric.world_size):
        if not own:
            fabric.barrier()
        for number in numbers:
            try:
                task.check(slides[number])
            except (LabelError, SlideError) as error:
                faults[number] = f"{slides[number]}: {error}"
                without_mpp |= isinstance(error, MissingMppError)
            done += 1
            yield TrainProgress("open", done, len(slides), slides[number], note=note)
            note = ""
    if faults:
        listed = "\n  ".join(faults[number] for number in sorted(faults))
        raise SlideError(
            f"{len(faults)} of {len(slides)} slides cannot be used for training; repair them or "
            f"take them out of the labels:\n  {listed}"
            + ("\n(For `slidelens train` the option is --slide-mpp.)" if without_mpp else "")
        )


def _shares(count: int, rank: int, processes: int) -> Iterator[tuple[bool, list[int]]]:
    """Yield slide numbers: some of this process's own, then those of the others beside them."""
    if processes == 1:
        yield True, list(range(count))
        return
    for start in range(0, count, _SHARE * processes):
        some = range(start, min(start + _SHARE * processes, count))
        yield True, [n for n in some if n % processes == rank]
        yield False, [n for n in some if n % processes != rank]


def _publish(model: Model[Any], out: Path) -> None:
    """Put the package into its folder beside the history; ``model.json`` comes last."""
    staging = save_model(model, out / STATE / "package")
    for name in ("weights.safetensors", "model.json"):
        (staging / name).replace(out / name)
    staging.rmdir()
