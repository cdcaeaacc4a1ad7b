"""Checkpoints that survive a kill and a full disk: safetensors and JSON, never pickle.

``checkpoint.json`` names the tensors' file and is replaced last and atomically, so both always
match; the previous checkpoint stays until then.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from slidelens.engine.training.state import (
    REQUEST,
    VERSION,
    changed_settings,
    rates_apart,
    read_state,
)
from slidelens.errors import ModelError, ResultError
from slidelens.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

__all__ = [
    "Checkpoint",
    "CheckpointStore",
    "average_weights",
    "random_state",
    "restore_random",
]

_RECORD = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and everything else as JSON values."""

    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any] = field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names start with ``prefix``, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


class CheckpointStore:
    """One folder with the latest checkpoint and the weights of single epochs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def exists(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return (self.folder / _RECORD).is_file()

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint.

        Raises
        ------
        ResultError
            The disk is full or cannot be written; the previous checkpoint is kept.
        """
        old = self._record()["tensors"] if self.exists else None
        number = int(old.removeprefix("checkpoint-").split(".")[0]) + 1 if old else 0
        name = f"checkpoint-{number}.safetensors"
        record = {"schema_version": VERSION, "tensors": name, **checkpoint.record}
        self._write(name, _bytes(checkpoint.tensors))
        self._write(_RECORD, json.dumps(record, ensure_ascii=False))
        if old:
            (self.folder / old).unlink(missing_ok=True)

    def load(self) -> Checkpoint:
        """Read the checkpoint back.

        Raises
        ------
        ModelError
            It is missing or damaged.
        """
        record = self._record()
        return Checkpoint(self._tensors(record.pop("tensors")), record)

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Refuse to resume from a checkpoint made with other settings than other rates.

        Which these are says :func:`~slidelens.engine.training.state.rates_apart`.

        Raises
        ------
        ModelError
            The settings differ, or the checkpoint is missing or damaged.
        """
        both = (self._record()["settings"], json.loads(json.dumps(settings)))
        changed = changed_settings(*(rates_apart(one)[1] for one in both))
        if changed:
            raise ModelError(
                f"the checkpoint in {self.folder} was made with other settings "
                f"({', '.join(changed)}); resume with the same ones, or train into another folder."
            )

    def stopped(self, epoch: int, reason: str) -> ModelError:
        """Return the error that ends a run in an epoch (from 0) which ``reason`` made useless."""
        file, out = self.folder / REQUEST, self.folder.parent
        remedy = "Lower the learning rate, set clip_norm"
        if self.exists:
            remedy = (
                f"Lower lr and head_lr in {file}, or set clip_norm there, and go on from the last "
                f"good checkpoint with --config {file} --out {out} --resume"
            )
        return ModelError(
            f"training stopped in epoch {epoch + 1}: {reason}. {remedy}, or look at that slide."
        )

    def save_weights(self, epoch: int, weights: Mapping[str, Tensor]) -> None:
        """Keep the weights at the end of an epoch; errors as :meth:`save`."""
        self._write(_epoch_file(epoch), _bytes(weights))

    def load_weights(self, epoch: int) -> dict[str, Tensor]:
        """Read the weights of an epoch; errors as :meth:`load`."""
        return self._tensors(_epoch_file(epoch))

    def keep_weights(self, epochs: set[int]) -> None:
        """Remove the weights of all other epochs."""
        kept = {_epoch_file(epoch) for epoch in epochs}
        for path in self.folder.glob("epoch-*.safetensors"):
            if path.name not in kept:
                path.unlink()

    def clear(self) -> None:
        """Remove checkpoint and weights, the record first."""
        (self.folder / _RECORD).unlink(missing_ok=True)
        for pattern in ("checkpoint-*.safetensors", "epoch-*.safetensors"):
            for path in self.folder.glob(pattern):
                path.unlink()

    def _record(self) -> dict[str, Any]:
        return read_state(self.folder / _RECORD, "the checkpoint", "Train again without --resume")

    def _tensors(self, name: str) -> dict[str, Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self.folder / name
        try:
            return load(path.read_bytes())
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"cannot read checkpoint {path}: {error}; train again without --resume."
            ) from error

    def _write(self, name: str, content: bytes | str) -> None:
        try:
            write_atomic(self.folder / name, content)
        except OSError as error:
            kept = f"; the checkpoint in {self.folder} is as it was" if self.exists else ""
            raise ResultError(
                f"cannot save {self.folder / name}: {error.strerror or error}{kept}. Make room, "
                "then continue with --resume."
            ) from error


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state of torch's (CPU, CUDA, MPS), numpy's and Python's global generators."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.backends.mps.is_available():
        tensors["mps"] = torch.mps.get_rng_state()
    if torch.cuda.is_available():
        tensors |= {f"cuda.{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  # reason: the global one
    version, internal, gauss = random.getstate()
    record = {
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "python": [version, list(internal), gauss],
    }
    return tensors, record


def restore_random(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Restore the global generators from the result of :func:`random_state`."""
    torch.set_rng_state(tensors["torch"])
    if "mps" in tensors and torch.backends.mps.is_available():
        torch.mps.set_rng_state(tensors["mps"])
    numbers = sorted(int(k.removeprefix("cuda.")) for k in tensors if k.startswith("cuda."))
    cuda = [tensors[f"cuda.{number}"] for number in numbers]
    if cuda and torch.cuda.device_count() == len(cuda):
        torch.cuda.set_rng_state_all(cuda)
    name, keys, *rest = record["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))  # noqa: NPY002  # reason: as above
    version, internal, gauss = record["python"]
    random.setstate((version, tuple(internal), gauss))


def average_weights(weights: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of several state dicts; integer buffers are those of the middle one.

    Unchanged tensors, such as a frozen backbone's, stay identical to the bit: cached feature bags
    depend on their checksum. Izmailov et al. 2018, as in streaming-prostate-2020, section IV.A.1.
    """
    centre = weights[(len(weights) - 1) // 2]
    return {
        key: value + torch.stack([w[key] - value for w in weights]).mean(0)
        if value.is_floating_point()
        else value
        for key, value in centre.items()
    }


def _epoch_file(epoch: int) -> str:
    return f"epoch-{epoch:05d}.safetensors"


def _bytes(tensors: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    return save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
