"""The optimiser of a training stage, and its state as tensors and JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from slidelens.families.training import TrainConfig

__all__ = ["make_optimizer", "optimizer_state", "restore_optimizer"]

_OF_GROUP = ("lr", "full_lr", "weight_decay")
"""Rates that an optimiser keeps for each group of parameters."""


def make_optimizer(
    groups: Sequence[tuple[float, list[nn.Parameter]]], config: TrainConfig
) -> Optimizer:
    """Make the optimiser named by ``config`` for groups of learning rate and parameters.

    Each group keeps its learning rate as ``full_lr`` too, for schedules that change ``lr``.
    """
    made = [{"params": parameters, "lr": lr, "full_lr": lr} for lr, parameters in groups]
    decay = config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(made, momentum=config.momentum, weight_decay=decay)
    return torch.optim.AdamW(made, weight_decay=decay)


def optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return an optimiser's tensors (``<parameter>.<name>``) and its groups without parameters."""
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": torch.as_tensor(value)
        for index, values in state["state"].items()
        for name, value in values.items()
        if value is not None
    }
    return tensors, state["param_groups"]


def restore_optimizer(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Restore the state of an optimiser of the same parameters, but for its rates.

    These are as it was made: a run may be resumed with others.
    """
    own = [{n: group[n] for n in _OF_GROUP if n in group} for group in optimizer.param_groups]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for group, rates in zip(optimizer.param_groups, own, strict=True):
        group.update(rates)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                # The same layout in memory, so that the same instructions do the next step.
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
