"""Training in several processes, each with a replica of the model.

Consecutive works of one phase are done side by side, one per process: a *round*. After a round
every process knows every outcome, so that all have the same state; gradients are summed when the
optimiser steps. This is data-parallel training like DDP's, but a step may call backward any number
of times (modules with their own losses, a slide streamed in tiles).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import distributed

from slidelens.engine.training.checkpoint import random_state, restore_random

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from lightning.fabric import Fabric
    from torch import Tensor

    from slidelens.engine.training.checkpoint import Checkpoint
    from slidelens.families.training import Outcome, Work

__all__ = ["Replicas", "replica_strategy"]

Round = list[tuple[int, "Work"]]
"""Works with their numbers in the epoch, at most one per process."""


def replica_strategy(processes: int) -> Any:
    """Return Fabric's strategy for a number of processes.

    Fabric starts and connects the processes; the module is not wrapped, since
    :meth:`Replicas.sum_gradients` sums the gradients.
    """
    if processes == 1:
        return "auto"
    from lightning.fabric.strategies.ddp import DDPStrategy

    class ReplicaStrategy(DDPStrategy):
        def setup_module(self, module: torch.nn.Module) -> Any:
            return module

    return ReplicaStrategy()


class Replicas:
    """The processes that train one model, as one of them sees it."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.rank = fabric.global_rank
        self.count = fabric.world_size
        self._random: list[tuple[dict[str, Tensor], dict[str, Any]]] = []
        """State of every process's random generators after the last round."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and reports progress."""
        return self.rank == 0

    def equalise(self, module: torch.nn.Module) -> None:
        """Give every replica the weights of the first."""
        if self.count > 1:
            for tensor in module.state_dict().values():
                distributed.broadcast(tensor, 0)

    def draw_apart(self, seed: int) -> None:
        """Seed every process but the first differently, for dropout and the like."""
        if self.rank:
            from lightning.fabric import seed_everything

            own = np.random.SeedSequence((seed, self.rank)).generate_state(1)
            seed_everything(int(own[0]), verbose=False)

    def rounds(self, works: Iterable[Work]) -> Generator[Round]:
        """Group an epoch's works in order, taking each only when its round needs it."""
        ready: Round = []
        for number, work in enumerate(works):
            if ready and work.phase != ready[0][1].phase:
                yield ready
                ready = []
            ready.append((number, work))
            if len(ready) == self.count:
                yield ready
                ready = []
        if ready:
            yield ready

    def mine(self, works: Round) -> Work | None:
        """Return this process's work of a round; a last round may have none for it."""
        return works[self.rank][1] if self.rank < len(works) else None

    def share(self, outcome: Outcome | None, works: Round) -> list[Outcome]:
        """Return the outcomes of all works of a round."""
        if self.count == 1:
            return [outcome]  # type: ignore[list-item]  # reason: the caller checks it
        found: list[Any] = [None] * self.count
        # With the generators, the first can save at any time, without asking the others for them.
        distributed.all_gather_object(found, (outcome, random_state()))
        self._random = [state for _, state in found]
        return [theirs for theirs, _ in found[: len(works)]]

    def random_states(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and records of the random generators of all processes, by name."""
        states = [random_state()] if self.count == 1 else self._random
        tensors: dict[str, Tensor] = {}
        records: dict[str, Any] = {}
        for rank, (generators, record) in enumerate(states):
            name = _random_name(rank)
            tensors |= {f"{name}.{key}": value for key, value in generators.items()}
            records[name] = record
        return tensors, records

    def restore_random(self, checkpoint: Checkpoint) -> None:
        """Restore each process's generators from what :meth:`random_states` returned.

        If the checkpoint was written by fewer processes, the others keep their seed's state.
        """
        names = [name for name in map(_random_name, range(self.count)) if name in checkpoint.record]
        self._random = [(checkpoint.part(f"{name}."), checkpoint.record[name]) for name in names]
        if self.rank < len(self._random):
            restore_random(*self._random[self.rank])

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Sum the gradients of all replicas; one without gradient counts as zero.

        A parameter without gradient in all replicas keeps none, and the optimiser skips it.
        """
        if self.count == 1 or not parameters:
            return
        there = [int(p.grad is not None) for p in parameters]
        counts = torch.tensor(there, dtype=torch.int32, device=parameters[0].device)
        distributed.all_reduce(counts)
        for parameter, count in zip(parameters, counts.tolist(), strict=True):
            if count == 0:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)

    def mean_gradients(self, parameters: Sequence[torch.nn.Parameter], slides: int) -> bool:
        """Average the gradients of all replicas over ``slides``; return whether there are any."""
        self.sum_gradients(parameters)
        gradients = [p.grad for p in parameters if p.grad is not None]
        if gradients:
            torch._foreach_div_(gradients, float(slides))
        return bool(gradients)

    def average_statistics(self, module: torch.nn.Module) -> None:
        """Replace running statistics (floating-point buffers) by their mean over all replicas.

        Batch norms are left out, since training does not change theirs. Values that are equal in
        all replicas stay identical to the bit.
        """
        if self.count == 1:
            return
        for part in module.modules():
            if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                continue
            for buffer in part.buffers(recurse=False):
                if buffer.is_floating_point():
                    own = buffer.contiguous()
                    found = [torch.empty_like(own) for _ in range(self.count)]
                    distributed.all_gather(found, own)
                    away = torch.stack([one - found[0] for one in found])
                    buffer.copy_(found[0] + away.mean(0))

    def merge(self, state: dict[str, Any], scanned: set[str]) -> dict[str, Any]:
        """Return a task's state merged over all processes.

        ``scanned`` are the slides of this process. Each entry of the state, which maps slide ids,
        is taken from the process that scanned the slide. All processes must call this, even those
        that scanned nothing.
        """
        if self.count == 1:
            return state
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, (sorted(scanned), state))
        merged: dict[str, Any] = {key: dict(value) for key, value in state.items()}
        for slides, theirs in found:
            for key, value in theirs.items():
                own = {slide: value[slide] for slide in slides if slide in value}
                merged.setdefault(key, {}).update(own)
        return merged

    def wait(self) -> None:
        """Wait for all processes: the first one writes what all read."""
        self.fabric.barrier()


def _random_name(rank: int) -> str:
    return f"random-{rank}" if rank else "random"
