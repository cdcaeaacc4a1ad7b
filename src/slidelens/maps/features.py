"""The feature vectors of a slide's tiles, as a file beside their table."""

from __future__ import annotations

from dataclasses import dataclass, field
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.errors import ResultError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["TileFeatures", "VectorSpool"]

_NAME = "features"


@dataclass(frozen=True, eq=False)
class TileFeatures:
    """Feature vectors of N tiles, in the order of the table of tiles.

    Attributes
    ----------
    vectors
        ``(N, D)`` float16 or float32.
    facts
        What made them: ``tile``, ``overlap`` (px), ``mpp``, ``orientations``,
        ``stain_normalization``, ``backbone``, ``backbone_sha256``.
    """

    vectors: NDArray[Any]
    facts: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.vectors)

    def write(self, path: Path) -> None:
        """Write a safetensors file."""
        from safetensors.numpy import save_file

        save_file({_NAME: np.ascontiguousarray(self.vectors)}, path, metadata=dict(self.facts))

    @classmethod
    def read(cls, path: Path) -> TileFeatures:
        """Read the file.

        Raises
        ------
        ResultError
            A file that is damaged or holds something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as file:
                return cls(file.get_tensor(_NAME), dict(file.metadata() or {}))
        except (OSError, SafetensorError) as error:
            raise ResultError(f"{path}: cannot read the tiles' features ({error}).") from error


class VectorSpool:
    """Vectors of a run, batch by batch into a temporary file: memory stays flat on any slide."""

    def __init__(self, facts: Mapping[str, str]) -> None:
        self._facts = facts
        self._file = TemporaryFile()  # noqa: SIM115  # reason: closed by close()
        self._rows = 0

    def add(self, vectors: NDArray[Any]) -> None:
        """Append ``(N, D)``; every batch has the same D and type."""
        self._file.write(np.ascontiguousarray(vectors).data)
        self._rows += len(vectors)
        self._like = vectors[:0]

    def finish(self) -> TileFeatures:
        """Return all vectors, mapped from the file; they outlive :meth:`close`."""
        self._file.flush()
        shape = (self._rows, *self._like.shape[1:])
        return TileFeatures(np.memmap(self._file, self._like.dtype, "r", shape=shape), self._facts)

    def close(self) -> None:
        """Give the file back; its space is free when the vectors are gone too."""
        self._file.close()
