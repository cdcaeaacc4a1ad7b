"""Feature vectors of a slide's tiles, in a file beside the tile table."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.errors import ResultError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
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
        """Write a safetensors file.

        Raises
        ------
        OSError
            The disk is full, or the folder cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        path.touch()
        mode = path.stat().st_mode  # as for any new file; save_file lets only its owner read it
        try:
            save_file({_NAME: np.ascontiguousarray(self.vectors)}, path, metadata=dict(self.facts))
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            told = [int(number[1]), os.strerror(int(number[1]))] if number else [str(error)]
            raise OSError(*told) from error
        path.chmod(mode)

    @classmethod
    def read(cls, path: Path) -> TileFeatures:
        """Read the file.

        Raises
        ------
        ResultError
            The file is damaged or holds something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as file:
                return cls(file.get_tensor(_NAME), dict(file.metadata() or {}))
        except (OSError, SafetensorError) as error:
            raise ResultError(f"{path}: cannot read the tiles' features ({error}).") from error


class VectorSpool:
    """Vectors of a run, batch by batch into a temporary file: memory stays constant on any slide.

    A file that cannot be written, whenever that is noticed, raises ``ResultError``.
    """

    def __init__(self, facts: Mapping[str, str]) -> None:
        self._facts = facts
        with _spooling():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  # reason: closed by close()
        self._rows = 0

    def add(self, vectors: NDArray[Any]) -> None:
        """Append ``(N, D)``; every batch has the same D and type."""
        with _spooling():
            self._file.write(np.ascontiguousarray(vectors).data)
        self._rows += len(vectors)
        self._like = vectors[:0]

    def finish(self) -> TileFeatures:
        """Return all vectors, mapped from the file; they outlive :meth:`close`."""
        with _spooling():
            self._file.flush()
        shape = (self._rows, *self._like.shape[1:])
        return TileFeatures(np.memmap(self._file, self._like.dtype, "r", shape=shape), self._facts)

    def close(self) -> None:
        """Delete the file; its space is freed once the vectors are gone too."""
        with suppress(OSError):  # what a full disk did not take is written once more, in vain
            self._file.close()


@contextmanager
def _spooling() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        place, why = tempfile.tempdir or "TMPDIR", error.strerror or error
        raise ResultError(
            f"{place}: cannot keep the tiles' features ({why}). Free some space, or set TMPDIR to "
            "a disk that has it."
        ) from error
