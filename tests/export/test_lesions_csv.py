"""The table of lesions, read back."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from slidelens.errors import ResultError
from slidelens.export import export_result
from slidelens.maps.lesions import find_lesions
from slidelens.maps.result import ModelInfo, Result, SlideInfo


def test_a_row_per_lesion_largest_first(tmp_path: Path, result: Result) -> None:
    path = export_result(result, "lesions-csv", tmp_path / "l.csv")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    lesions = find_lesions(result.regions, result.maps["probability"])
    assert len(rows) == len(lesions) > 0
    sizes = [float(row["diameter_mm"]) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    np.testing.assert_allclose(sizes, [x.diameter_mm for x in lesions], atol=1e-4)
    for row, lesion in zip(rows, lesions, strict=True):
        assert row["class"] == "tumor"
        assert float(row["peak_probability"]) >= float(row["mean_probability"]) >= 0.5
        assert float(row["minx"]) <= float(row["peak_x"])
        assert float(row["area_mm2"]) == pytest.approx(lesion.area_mm2, abs=1e-4)
    assert [row["lesion"] for row in rows] == [str(n + 1) for n in range(len(rows))]


def test_a_result_without_a_map_is_refused(tmp_path: Path) -> None:
    bare = Result(SlideInfo(id="bare"), ModelInfo(name="m"), {"x": 1.0})
    with pytest.raises(ResultError, match="no probability map"):
        export_result(bare, "lesions-csv", tmp_path / "l.csv")
