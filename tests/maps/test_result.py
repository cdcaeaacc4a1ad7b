"""Result folders: round trip, minimal and malformed files, and all or nothing."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rights import nobody, see_nothing_where_barred
from sample_results import make_result
from slidelens.errors import ResultError
from slidelens.geometry import Affine, Mpp
from slidelens.maps.map import Map
from slidelens.maps.result import (
    ModelInfo,
    Result,
    SlideInfo,
    Tiles,
    find_results,
    results_root,
)

MINIMAL = {"slide": {"id": "a"}, "model": {"name": "m"}, "probabilities": {"x": 0.5}}


def write(folder: Path, content: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(
        content if isinstance(content, str) else json.dumps(content)
    )
    return folder


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_everything_comes_back(tmp_path: Path, result: Result) -> None:
    read = {name: one.read() for name, one in result.maps.items()}
    affines = {name: one.affine for name, one in result.maps.items()}
    result.save(tmp_path / "m" / "a")
    back = Result.load(tmp_path / "m" / "a")
    assert back.slide == result.slide
    assert back.model == result.model
    assert list(back.probabilities.items()) == [("normal", 0.25), ("tumor", 0.75)]
    assert back.classes == ("normal", "tumor")
    assert (back.timings, back.software) == (result.timings, result.software)
    assert back.settings == result.settings
    assert back.settings_sha256 == "abcd"
    assert list(back.maps) == ["probability", "saliency", "tissue"]
    for name, one in back.maps.items():
        np.testing.assert_array_equal(one.read(), read[name])
        np.testing.assert_allclose(one.affine, affines[name], rtol=1e-14, atol=1e-9)
        assert one.kind == result.maps[name].kind
    assert back.tiles is not None
    assert result.tiles is not None
    np.testing.assert_array_equal(back.tiles.boxes, result.tiles.boxes)
    np.testing.assert_array_equal(back.tiles.probabilities, result.tiles.probabilities)
    np.testing.assert_array_equal(back.tiles.attention, result.tiles.attention)
    assert len(back.regions) == len(result.regions) > 10
    for mine, theirs in zip(back.regions, result.regions, strict=True):
        assert mine.polygon.equals(theirs.polygon)
        assert mine == type(mine)(mine.polygon, theirs.label, theirs.area_mm2, theirs.probability)


def test_the_folder_is_as_promised(tmp_path: Path, result: Result) -> None:
    result.save(tmp_path / "a")
    assert names(tmp_path / "a") == [
        "features.safetensors",
        "maps.ome.zarr",
        "regions.geojson",
        "result.json",
        "tiles.csv",
    ]
    content = json.loads((tmp_path / "a" / "result.json").read_text())
    assert content["schema_version"] == 1
    assert content["slide"] == {
        "id": "Fall 7 µ",
        "path": "/somewhere/a.svs",
        "width": 3000,
        "height": 2000,
        "mpp": 0.2527,
        "mpp_source": "file",
    }
    assert content["maps"][0] == {
        "name": "probability",
        "kind": "probability",
        "path": "maps.ome.zarr/probability",
        "mpp": pytest.approx(32.0),
    }
    assert content["maps"][2]["path"] == "maps.ome.zarr/labels/tissue"
    assert content["settings_sha256"] == "abcd"
    assert content["settings"] == {
        "region": [0, 10, 2000, 1500.5],
        "precision": "fp32",
        "config": {"tile": 256, "overlap": 32, "pooling": None},
        "options": {"overlap": 32},
        "tissue": {},
    }
    for entry in content["maps"]:
        assert (tmp_path / "a" / entry["path"] / "zarr.json").is_file()


def test_after_saving_maps_are_read_from_the_folder(tmp_path: Path, result: Result) -> None:
    before = result.maps["probability"]
    result.save(tmp_path / "a")
    assert result.path == tmp_path / "a"
    assert result.maps["probability"] is not before
    np.testing.assert_array_equal(result.maps["probability"].read(), before.read())


def test_a_loaded_result_can_replace_itself_and_be_copied(tmp_path: Path, result: Result) -> None:
    result.save(tmp_path / "a")
    first = result.maps["saliency"].read()
    back = Result.load(tmp_path / "a")
    back.save(tmp_path / "a")
    back.save(tmp_path / "b")
    again = Result.load(tmp_path / "b")
    np.testing.assert_array_equal(again.maps["saliency"].read(), first)
    assert len(again.regions) == len(result.regions)
    assert again.tiles is not None
    assert names(tmp_path) == ["a", "b"]


def test_results_are_sent_to_other_processes(tmp_path: Path, result: Result) -> None:
    read = {name: one.read() for name, one in result.maps.items()}
    saved = pickle.loads(pickle.dumps(result))  # of memory: with all that it holds
    saved.save(tmp_path / "m" / "a")
    for back in (pickle.loads(pickle.dumps(result)), pickle.loads(pickle.dumps(saved))):
        assert (back.slide, back.probabilities) == (result.slide, result.probabilities)
        assert len(back.regions) == len(result.regions)
        for name, one in back.maps.items():
            np.testing.assert_array_equal(one.read(), read[name])
            np.testing.assert_array_equal(np.asarray(one.levels[0]), read[name])
    assert len(pickle.dumps(saved)) < len(pickle.dumps(result))  # files stay where they are


def test_the_least_a_reader_needs(tmp_path: Path) -> None:
    back = Result.load(write(tmp_path / "a", MINIMAL))
    assert (back.slide.id, back.model.name, back.probabilities) == ("a", "m", {"x": 0.5})
    assert back.slide.size is back.slide.resolution is back.tiles is back.settings_sha256 is None
    assert back.maps == {}
    assert back.regions == ()


def test_unknown_keys_are_ignored(tmp_path: Path) -> None:
    more = {**MINIMAL, "new": [1], "slide": {"id": "a", "stain": "HE"}, "schema_version": 1}
    assert Result.load(write(tmp_path / "a", more)).slide.id == "a"


@pytest.mark.parametrize("theirs", ["fast", {"region": "all"}, {"config": [1]}, None])
def test_settings_of_another_writer_are_passed_over(tmp_path: Path, theirs: object) -> None:
    back = Result.load(write(tmp_path / "a", {**MINIMAL, "settings": theirs}))
    assert (back.slide.id, back.settings) == ("a", None)


def test_settings_may_be_told_in_part_or_with_more(tmp_path: Path) -> None:
    told = {"region": [0, 0, 5, 5], "workers": 4}
    settings = Result.load(write(tmp_path / "a", {**MINIMAL, "settings": told})).settings
    assert settings is not None
    assert (settings.region, settings.precision, settings.config) == ((0, 0, 5, 5), "auto", {})


def test_oblong_pixels_keep_both_resolutions(tmp_path: Path) -> None:
    one = Map.from_array("p", "probability", ("x",), np.eye(4), Affine(3, 4), Mpp(0.5, 0.25))
    slide = SlideInfo(id="a", width=12, height=16, mpp=(0.5, 0.25))
    Result(slide, ModelInfo(name="m"), {"x": 1.0}, maps=[one]).save(tmp_path / "a")
    back = Result.load(tmp_path / "a")
    assert back.slide.resolution == Mpp(0.5, 0.25)
    np.testing.assert_allclose(back.maps["p"].affine, (3, 4, 0, 0), atol=1e-12)


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path, result: Result) -> None:
    result.save(tmp_path / "a")
    for name in ("tiles.csv", "regions.geojson"):
        (tmp_path / "a" / name).write_text("?")
    code = (
        "import sys; from slidelens.maps.result import Result\n"
        f"r = Result.load({str(tmp_path / 'a')!r})\n"
        "assert list(r.maps) == ['probability', 'saliency', 'tissue'], r.maps\n"
        "heavy = {'zarr', 'shapely', 'scipy', 'skimage', 'matplotlib', 'PIL', 'torch', 'pandas'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    back = Result.load(tmp_path / "a")
    with pytest.raises(ResultError, match=r"tiles\.csv: no column minx"):
        _ = back.tiles
    with pytest.raises(ResultError, match=r"regions\.geojson: not a GeoJSON"):
        _ = back.regions


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "holds a list, expected an object"),
        ("[" * 100_000, "not"),
        ({}, r"key 'slide'"),
        ({**MINIMAL, "slide": {}}, r"key 'slide\.id'"),
        (
            {**MINIMAL, "slide": {"id": "../../evil"}},
            r"key 'slide\.id': must be fit for the name of a file",
        ),
        ({**MINIMAL, "slide": {"id": ""}}, r"key 'slide\.id'"),
        ({**MINIMAL, "model": {"name": 7}}, r"key 'model\.name'"),
        ({**MINIMAL, "probabilities": {"x": 1.5}}, r"key 'probabilities\.x'"),
        ({**MINIMAL, "probabilities": {"x": float("nan")}}, r"key 'probabilities\.x'"),
        ({**MINIMAL, "probabilities": [1]}, r"key 'probabilities'"),
        ({**MINIMAL, "probabilities": {}}, r"key 'probabilities'"),
        ({**MINIMAL, "slide": {"id": "a", "mpp": 0}}, r"key 'slide\.mpp"),
        ({**MINIMAL, "slide": {"id": "a", "width": -1}}, r"key 'slide\.width'"),
        ({**MINIMAL, "maps": [{"name": "p", "kind": "?", "path": "p"}]}, r"key 'maps\.0\.kind'"),
        (
            {**MINIMAL, "maps": [{"name": "p", "kind": "labels", "path": "../p"}]},
            r"key 'maps\.0\.path': must lie inside the result folder",
        ),
        (
            {**MINIMAL, "maps": [{"name": "p", "kind": "labels", "path": "/p"}]},
            r"key 'maps\.0\.path'",
        ),
        ({**MINIMAL, "schema_version": 2}, "by a newer slidelens.*Update slidelens"),
        ({**MINIMAL, "schema_version": "1.0"}, r"key 'schema_version'"),
    ],
)
def test_malformed_results_are_told_by_file_and_key(
    tmp_path: Path, content: object, message: str
) -> None:
    write(tmp_path / "a", content)
    with pytest.raises(ResultError, match=message) as caught:
        Result.load(tmp_path / "a")
    assert str(tmp_path / "a" / "result.json") in str(caught.value)


def test_what_is_no_result_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bytes").mkdir()
    (tmp_path / "bytes" / "result.json").write_bytes(b"\xff\xfe")
    for name, match in (
        ("missing", "no such file; expected a result folder"),
        ("file", "cannot be read"),
        ("empty", "no such file"),
        ("bytes", "cannot be read"),
    ):
        with pytest.raises(ResultError, match=match):
            Result.load(tmp_path / name)


def test_a_failure_while_writing_leaves_no_half_folder(
    tmp_path: Path, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Tiles, path: Path) -> None:
        path.write_text("half a tab")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Tiles, "write", full)
    with pytest.raises(ResultError, match=r"cannot write the result.*No space left"):
        result.save(tmp_path / "a")
    assert names(tmp_path) == []


def test_a_failed_replacement_leaves_the_old_result(
    tmp_path: Path, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    result.save(tmp_path / "a")
    newer = make_result()
    newer.probabilities = {"normal": 0.0, "tumor": 1.0}

    def fails(staging: Path, target: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("slidelens.files._publish", fails)
    with pytest.raises(ResultError, match="Input/output error"):
        newer.save(tmp_path / "a")
    assert names(tmp_path) == ["a"]
    assert Result.load(tmp_path / "a").probabilities["tumor"] == 0.75
    monkeypatch.undo()
    newer.save(tmp_path / "a")
    assert Result.load(tmp_path / "a").probabilities["tumor"] == 1.0
    assert names(tmp_path) == ["a"]


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, result: Result) -> None:
    """Root may write everywhere, so be nobody for a moment."""
    tmp_path.chmod(0o555)
    with nobody(), pytest.raises(ResultError, match=r"cannot write the result.*Permission denied"):
        result.save(tmp_path / "a")


def test_what_is_no_number_is_not_saved(tmp_path: Path, result: Result) -> None:
    result.probabilities["tumor"] = float("nan")
    with pytest.raises(ResultError, match="cannot be saved"):
        result.save(tmp_path / "a")
    assert names(tmp_path) == []


def test_other_peoples_folders_are_not_replaced(tmp_path: Path, result: Result) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("mine", "file"):
        with pytest.raises(ResultError, match="is not a result, so it is not replaced"):
            result.save(tmp_path / name)
    assert names(tmp_path / "mine") == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    for name in (".DS_Store", "Thumbs.db", "._x"):  # left by file browsers
        (tmp_path / "empty" / name).touch()
    result.save(tmp_path / "empty")
    assert Result.load(tmp_path / "empty").slide.id == result.slide.id


def test_a_result_whose_folder_was_replaced_is_not_mixed_with_the_new_one(
    tmp_path: Path, result: Result
) -> None:
    result.save(tmp_path / "a")
    kept = Result.load(tmp_path / "a")
    read = Result.load(tmp_path / "a")
    assert read.tiles is not None
    newer = make_result()
    newer.probabilities = {"normal": 0.0, "tumor": 1.0}
    newer.save(tmp_path / "a")
    for part in (
        lambda: kept.tiles,
        lambda: kept.regions,
        lambda: kept.features,
        lambda: kept.maps["probability"].read(),
        lambda: read.maps["tissue"].shape,
        lambda: kept.save(tmp_path / "b"),
    ):
        with pytest.raises(ResultError, match=r"a: was replaced by another result since"):
            part()
    assert len(read.tiles) == len(Result.load(tmp_path / "a").tiles)
    assert newer.maps["probability"].read().shape == newer.maps["probability"].shape


def test_what_people_put_into_a_result_is_carried_over(tmp_path: Path, result: Result) -> None:
    place = tmp_path / "a"
    result.save(place)
    (place / "mine.geojson").write_text("outlined by hand")
    (place / "notes").mkdir()
    (place / "notes" / "x.txt").write_text("x")
    (place / "link").symlink_to("mine.geojson")
    (place / ".DS_Store").touch()
    (place / "trajectory.json").write_text("of the result before")
    for _ in range(2):
        make_result().save(place)
    assert names(place) == [
        "features.safetensors",
        "link",
        "maps.ome.zarr",
        "mine.geojson",
        "notes",
        "regions.geojson",
        "result.json",
        "tiles.csv",
    ]
    assert (place / "link").is_symlink()
    assert (place / "link").read_text() == "outlined by hand"
    assert (place / "notes" / "x.txt").read_text() == "x"
    assert names(tmp_path) == ["a"]


def test_map_names_are_folder_names() -> None:
    one = Map.from_array("../p", "probability", ("x",), np.eye(4), Affine(1, 1), Mpp(1, 1))
    with pytest.raises(ValueError, match="map names"):
        Result(SlideInfo(id="a"), ModelInfo(name="m"), {"x": 1.0}, maps=[one])


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_results_behind_a_link_are_found_once(tmp_path: Path, result: Result) -> None:
    result.save(tmp_path / "out" / "m" / "a")
    result.save(tmp_path / "elsewhere" / "b")
    (tmp_path / "out" / "latest").symlink_to("m")
    (tmp_path / "out" / "m" / "up").symlink_to("..")
    (tmp_path / "out" / "other").symlink_to(tmp_path / "elsewhere")
    result.save(tmp_path / "out" / ".store" / "c")  # which is not looked into itself
    (tmp_path / "out" / "m" / "c").symlink_to("../.store/c")
    found = [path.relative_to(tmp_path).as_posix() for path in find_results(tmp_path / "out")]
    assert found == ["out/m/a", "out/m/c", "out/other/b"]
    assert [path.name for path in find_results(tmp_path / "out" / "latest")] == ["a", "c"]


def test_the_results_folder_is_found_from_within(
    tmp_path: Path, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    result.save(tmp_path / "out" / "m" / "a")
    (tmp_path / "out" / "m" / ".predictions.lock").touch()
    for inside in ("m", "m/a"):
        assert results_root(tmp_path / "out" / inside) == tmp_path / "out"
    monkeypatch.chdir(tmp_path / "out" / "m")
    assert results_root(".") == tmp_path / "out"
    result.save(tmp_path / "mine" / "a")  # somebody's own folder, of no model's name
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "result.json").write_text('{"status": "ok"}')  # another program's
    for other in ("out", "mine", "theirs", "nowhere", "out/m/.predictions.lock"):
        assert results_root(tmp_path / other) == tmp_path / other


def test_find_results_passes_over_what_is_unfinished(tmp_path: Path) -> None:
    passed = ("m/.d.tmp-host-1-aa", "m/.d.old-host-1-aa", "m/.deleted-b-0123abcd", ".store/e")
    for place in ("m/b", "m/a", "n/c", "m/.hidden slide", *passed):
        write(tmp_path / place, MINIMAL)
    (tmp_path / "m" / "predictions.csv").write_text("x")
    found = [p.relative_to(tmp_path).as_posix() for p in find_results(tmp_path)]
    assert found == ["m/.hidden slide", "m/a", "m/b", "n/c"]
    assert list(find_results(tmp_path / "m" / "a")) == [tmp_path / "m" / "a"]
    with pytest.raises(ResultError, match="no such folder"):
        list(find_results(tmp_path / "x"))


@pytest.mark.skipif(os.name != "posix", reason="takes a folder's permissions away")
@pytest.mark.parametrize("later", [False, True], ids=["this Python", "3.14"])
@pytest.mark.parametrize("mode", [0, 0o444], ids=["not listed", "not entered"])
def test_find_results_passes_over_what_may_not_be_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    mode: int,
    later: bool,
) -> None:
    if later:
        see_nothing_where_barred(monkeypatch)
    monkeypatch.chdir(tmp_path)
    for place in ("m/a", "m/c", "lost+found/x"):
        write(Path(place), MINIMAL)
    tmp_path.chmod(0o755)
    barred = Path("lost+found")
    barred.chmod(mode)
    try:
        with nobody():
            found = [path.as_posix() for path in find_results(".")]
            with pytest.raises(ResultError, match=r"lost\+found: cannot be read \(Permission"):
                list(find_results(barred))
    finally:
        barred.chmod(0o755)
    assert found == ["m/a", "m/c"]
    assert len(caplog.messages) == 1
    assert "lost+found: cannot be read (Permission denied)" in caplog.text


def test_features_are_read_when_asked_for(tmp_path: Path, result: Result) -> None:
    given = result.features
    assert given is not None
    result.save(tmp_path / "a")
    for one in (result, Result.load(tmp_path / "a")):
        assert one.features is not None
        np.testing.assert_array_equal(one.features.vectors, given.vectors)
        assert one.features.vectors.dtype == np.float16
        assert one.features.facts == given.facts
    Result.load(tmp_path / "a").save(tmp_path / "b")
    assert Result.load(tmp_path / "b").features is not None
    (tmp_path / "a" / "features.safetensors").write_bytes(b"short")
    with pytest.raises(ResultError, match="cannot read the tiles' features"):
        _ = Result.load(tmp_path / "a").features
