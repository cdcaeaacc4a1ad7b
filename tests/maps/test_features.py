"""Feature vectors of a run lie in a file while they come, and read as they were."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from slidelens.errors import ResultError
from slidelens.maps.features import TileFeatures, VectorSpool


def test_vectors_come_back_batch_by_batch_and_are_not_held(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(n, 7)).astype(np.float16) for n in (5, 1, 9)]
    spool = VectorSpool({"tile": "224"})
    for batch in batches:
        spool.add(batch)
    found = spool.finish()
    spool.close()
    assert isinstance(found.vectors, np.memmap)
    np.testing.assert_array_equal(found.vectors, np.concatenate(batches))
    found.write(tmp_path / "f.safetensors")
    again = TileFeatures.read(tmp_path / "f.safetensors")
    assert again.facts == {"tile": "224"}
    np.testing.assert_array_equal(again.vectors, found.vectors)


def test_everybody_may_read_them_who_may_read_other_files(tmp_path: Path) -> None:
    """A lab shares its results; a file of the owner alone would be missing for the others."""
    (tmp_path / "other").touch()
    TileFeatures(np.ones((2, 3), np.float16)).write(tmp_path / "f.safetensors")
    assert (tmp_path / "f.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("r+b", 64) as file:
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda: file)
        spool = VectorSpool({})
        with pytest.raises(ResultError, match=r"features \(No space left.*set TMPDIR"):
            spool.add(np.ones((500, 7), np.float16))
        spool.close()

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(OSError, match="No space left"):  # which saving a result looks for
        TileFeatures(np.ones((2, 3), np.float16)).write(tmp_path / "f")
