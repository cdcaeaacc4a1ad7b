"""Each exporter, read back by what knows nothing of slidelens."""

from __future__ import annotations

import csv
import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
import zarr
from ome_zarr_models.v05.image import Image

from slidelens.errors import PluginError, ResultError
from slidelens.export import EXPORTERS, Exporter, export_result
from slidelens.geometry import Affine, Mpp
from slidelens.maps.map import Map
from slidelens.maps.regions import Region, positive_regions
from slidelens.maps.result import ModelInfo, Result, SlideInfo

SLIDELENS_API = 1
OF_ANY_RESULT = [name for name in EXPORTERS if name != "contact-sheet"]  # of trajectories alone
BARE = Result(SlideInfo(id="bare"), ModelInfo(name="m"), {"x": 1.0})


def test_every_exporter_loads_and_is_named_as_it_calls_itself() -> None:
    assert EXPORTERS.names() == [
        "geojson",
        "ome-zarr",
        "clam-h5",
        "wsinfer-csv",
        "camelyon16-csv",
        "contact-sheet",
        "lesions-csv",
    ]
    for name in EXPORTERS:
        exporter = EXPORTERS.get(name)
        assert isinstance(exporter, Exporter)
        assert exporter.name == name
        assert exporter.about.endswith(".")


def test_a_name_that_is_too_long_with_its_ending_is_told_of_that_slide(tmp_path: Path) -> None:
    """It ended the export of all results that followed."""
    long = Result(SlideInfo(id="n" * 250), ModelInfo(name="m"), {"x": 1.0})
    with pytest.raises(ResultError, match=r"n\.geojson: cannot be written \(File name too long\)"):
        export_result(long, "geojson", f"{tmp_path}/")


def test_a_folder_takes_the_slides_name(tmp_path: Path, result: Result) -> None:
    for name in OF_ANY_RESULT:
        written = export_result(result, name, f"{tmp_path}/{name}/")
        assert written == tmp_path / name / f"Fall 7 µ{EXPORTERS.get(name).suffix}"
        assert written.exists()


def test_what_is_in_the_folder_already_is_replaced_only_on_demand(
    tmp_path: Path, result: Result
) -> None:
    drawn = tmp_path / "Fall 7 µ.geojson"
    drawn.write_text("outlines of a week")
    with pytest.raises(ResultError, match=r"Fall 7 µ.geojson: is there already.*--overwrite"):
        export_result(result, "geojson", tmp_path)
    assert drawn.read_text() == "outlines of a week"
    assert export_result(result, "geojson", tmp_path, overwrite=True) == drawn
    assert "FeatureCollection" in drawn.read_text()


def test_geojson(tmp_path: Path, result: Result) -> None:
    path = export_result(result, "geojson", tmp_path / "out.geojson")
    features = json.loads(path.read_text())["features"]
    assert len(features) == len(result.regions)
    shapes = [shapely.from_geojson(json.dumps(one["geometry"])) for one in features]
    assert sum(s.area for s in shapes) == pytest.approx(sum(r.polygon.area for r in result.regions))


def test_ome_zarr(tmp_path: Path, result: Result) -> None:
    path = export_result(result, "ome-zarr", tmp_path / "out.ome.zarr")
    group = zarr.open_group(path, mode="r")
    Image.from_zarr(group["probability"])
    np.testing.assert_array_equal(group["probability/0"][:], result.maps["probability"].read())
    with pytest.raises(ResultError, match=r"out.ome.zarr: is there already.*--overwrite"):
        export_result(result, "ome-zarr", path)
    export_result(result, "ome-zarr", path, overwrite=True)  # replaces its own kind
    for overwrite in (False, True, True):  # also where it has another name
        assert (
            export_result(result, "ome-zarr", tmp_path / "maps", overwrite=overwrite).name == "maps"
        )
    with pytest.raises(ResultError, match="maps: is there already"):
        export_result(result, "ome-zarr", tmp_path / "maps")
    (tmp_path / "mine.ome.zarr").mkdir()
    slide = zarr.create_group(tmp_path / "Fall 7 µ.ome.zarr", attributes={"ome": {}})
    slide.create_array("0", shape=(9, 9), dtype="u1")
    for taken in ("mine.ome.zarr", "Fall 7 µ.ome.zarr"):
        with pytest.raises(ResultError, match="a slide, perhaps"):
            export_result(result, "ome-zarr", tmp_path / taken, overwrite=True)
    with pytest.raises(ResultError, match="is there already"):
        export_result(result, "ome-zarr", tmp_path)
    assert "0" in zarr.open_group(tmp_path / "Fall 7 µ.ome.zarr", mode="r")


def test_wsinfer_csv(tmp_path: Path, result: Result) -> None:
    path = export_result(result, "wsinfer-csv", tmp_path / "out.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["minx", "miny", "width", "height", "prob_normal", "prob_tumor"]
    assert result.tiles is not None
    assert len(rows) == len(result.tiles)
    assert float(rows[5]["minx"]) == result.tiles.boxes[5, 0]


def test_camelyon16_csv(tmp_path: Path) -> None:
    values = np.zeros((2, 8, 10))
    values[1, 1:3, 1:4] = [[0.6, 0.7, 0.6], [0.6, np.nan, 0.95]]
    values[1, 5, 5] = 0.99
    values[1, 4:7, 4:7] = np.where(values[1, 4:7, 4:7] > 0, 0.99, 0.55)
    one = Map.from_array("p", "probability", ("n", "t"), values, Affine(50, 50), Mpp(0.5, 0.5))
    result = Result(
        SlideInfo(id="a"),
        ModelInfo(name="m"),
        {"n": 0, "t": 1},
        maps=[one],
        regions=positive_regions(one),
    )
    path = export_result(result, "camelyon16-csv", tmp_path / "a.csv")
    assert path.read_text() == "0.99,275,275\n0.95,175,125\n"
    # Drawn by somebody, within the cell of which nothing is known.
    unknown = Region(shapely.box(105, 105, 115, 115), "t", float("nan"), float("nan"))
    drawn = Result(
        result.slide,
        result.model,
        result.probabilities,
        maps=[one],
        regions=[*result.regions, unknown],
    )
    path = export_result(drawn, "camelyon16-csv", tmp_path / "b.csv")
    assert path.read_text() == "0.99,275,275\n0.95,175,125\n"


def test_lesions_are_not_looked_for_in_a_map_of_another_class(tmp_path: Path) -> None:
    values = np.full((8, 10), 0.9)
    maps = [
        Map.from_array(name, "probability", (name,), values, Affine(50, 50), Mpp(0.5, 0.5))
        for name in ("score", "t")
    ]
    regions = positive_regions(maps[1])
    about = (SlideInfo(id="a"), ModelInfo(name="m"), {"n": 0, "t": 1})
    for number, name in enumerate(("camelyon16-csv", "lesions-csv")):
        with pytest.raises(ResultError, match="no probability map of class t"):
            export_result(Result(*about, maps=maps[:1], regions=regions), name, tmp_path / "x")
        both = export_result(
            Result(*about, maps=maps, regions=regions), name, tmp_path / f"{number}"
        )
        assert "0.9" in both.read_text()


def test_what_a_result_lacks_is_told(tmp_path: Path) -> None:
    for name, match in (
        ("ome-zarr", "no maps"),
        ("clam-h5", "no feature vectors to export"),
        ("wsinfer-csv", "no table of tiles"),
        ("camelyon16-csv", "no probability map"),
        ("docx", "no format 'docx'; there are geojson, ome-zarr"),
    ):
        with pytest.raises(ResultError, match=match):
            export_result(BARE, name, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, result: Result) -> None:
    (tmp_path / "file").write_text("x")
    for name in OF_ANY_RESULT:
        with pytest.raises(ResultError, match="cannot be written"):
            export_result(result, name, tmp_path / "file" / "deeper")


def test_a_slide_is_not_replaced(tmp_path: Path, result: Result) -> None:
    slide = tmp_path / "slide.tif"
    tifffile.imwrite(slide, np.zeros((64, 64, 3), np.uint8), tile=(32, 32))
    with pytest.raises(ResultError, match="is a slide, which is not replaced"):
        export_result(result, "geojson", slide)


def test_plugins_add_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("shout", f"{__name__}:SHOUT", EXPORTERS.group)
    monkeypatch.setitem(EXPORTERS.__dict__, "_installed", {"shout": [entry]})
    monkeypatch.delitem(EXPORTERS.__dict__, "_plugins", raising=False)
    assert export_result(BARE, "shout", tmp_path).read_text() == "BARE"


def _half(result: Result, path: Path) -> None:
    path.write_text("half")
    path.with_suffix(".log").write_text("died")
    raise RuntimeError("died in the middle")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda r, p: None, r"'bad' wrote nothing at bare\.txt; expected a file"),
        (lambda r, p: p.mkdir(), r"'bad' wrote a folder at bare\.txt; expected a file"),
        (_half, r"'bad' .* failed to write .*bare\.txt: RuntimeError: died in the middle"),
    ],
)
def test_what_a_plugin_wrote_by_halves_does_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any, message: str
) -> None:
    entry = EntryPoint("bad", "anywhere:BAD", EXPORTERS.group)
    monkeypatch.setitem(EXPORTERS.__dict__, "_installed", {"bad": [entry]})
    monkeypatch.delitem(EXPORTERS.__dict__, "_plugins", raising=False)
    monkeypatch.setitem(EXPORTERS._loaded, "bad", Exporter("bad", "Fails.", ".txt", write))
    (tmp_path / "bare.txt").write_text("work of another day")
    with pytest.raises(PluginError, match=message):
        export_result(BARE, "bad", tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["bare.txt"]
    assert (tmp_path / "bare.txt").read_text() == "work of another day"


SHOUT = Exporter(
    "shout", "The slide's id, loudly.", ".txt", lambda r, p: p.write_text(r.slide.id.upper())
)
