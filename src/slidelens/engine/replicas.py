"""Training in several processes, each with a replica of the model: what they share, and when.

Consecutive works of one phase are done side by side, one per process: a *round*. After a round
every process knows every outcome, so that all of them keep the same books; the gradients are summed
when the optimiser steps. This is data-parallel training as DDP does it, but a step may call
backward as often as it likes (modules with losses of their own, a slide streamed in tiles).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from lightning.fabric import Fabric

    from slidelens.families.training import Outcome, Work

__all__ = ["Replicas", "replica_strategy"]

Round = list[tuple[int, "Work"]]
"""Works with their numbers in the epoch, at most one per process."""


def replica_strategy(processes: int) -> Any:
    """Return Fabric's strategy for so many processes: its own for one.

    Fabric starts the processes and connects them; the module stays as it is, since gradients are
    summed by :meth:`Replicas.sum_gradients`.
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

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and tells of progress."""
        return self.rank == 0

    def equalise(self, module: torch.nn.Module) -> None:
        """Give every replica the weights of the first."""
        if self.count > 1:
            for tensor in module.state_dict().values():
                distributed.broadcast(tensor, 0)

    def rounds(self, works: Iterable[Work]) -> Generator[Round]:
        """Group an epoch's works, in their order; none is taken before its round needs it."""
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
            assert outcome is not None
            return [outcome]
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, outcome)
        return found[: len(works)]

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Sum the gradients of all replicas; one without gradient counts as zero.

        A parameter without gradient in all of them keeps none: the optimiser leaves it as it is.
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

    def merge(self, state: dict[str, Any], scanned: set[str]) -> dict[str, Any]:
        """Return a task's state with what every process scanned.

        ``scanned`` are the slides of this process. Where a value of the state maps slide ids, each
        entry is taken from the process that scanned the slide. All processes must call it, those
        that scanned nothing too.
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
        """Wait until every process is here: before reading what the first one wrote."""
        self.fabric.barrier()
