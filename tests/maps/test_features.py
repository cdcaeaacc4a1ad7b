"""Feature vectors of a run lie in a file while they come, and read as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np

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
