"""Which annotations belong to which slide, and what a training that needs them refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from slidelens.engine.annotations import annotation_files, find_annotations
from slidelens.engine.labels import LabelledSlide, LabelTable
from slidelens.engine.training.samples import TrainSlides
from slidelens.errors import LabelError

TABLE = LabelTable(
    Path("labels.csv"),
    ("normal", "tumour"),
    tuple(LabelledSlide(f"s{i}", i % 2, "train") for i in range(6)),
)


def _write(folder, *names, text='{"type": "FeatureCollection", "features": []}'):
    for name in names:
        (folder / name).write_text(text)


def test_files_are_found_by_the_slides_name(tmp_path):
    _write(tmp_path, "s1.geojson", "s3.SVS.json", "s5.XML", "s2.ome.tif.geojson", "notes.txt")
    _write(tmp_path, "other.xml", "s3.old.json", "s4.tif.txt")
    found = find_annotations(tmp_path, TABLE)
    assert {k: v.name for k, v in found.items()} == {
        "s1": "s1.geojson",
        "s3": "s3.SVS.json",
        "s5": "s5.XML",
        "s2": "s2.ome.tif.geojson",
    }
    assert "other" in annotation_files(tmp_path)


def test_all_positive_slides_without_a_file_are_listed_at_once(tmp_path):
    _write(tmp_path, "s3.geojson")
    with pytest.raises(LabelError, match=r"for 2 positive slides: s1, s5\..*'normal' need none"):
        find_annotations(tmp_path, TABLE)


@pytest.mark.parametrize("other", ["s1.xml", "s1.tif.geojson"])
def test_two_files_for_one_slide_are_refused(tmp_path, other):
    _write(tmp_path, "s1.geojson", other)
    with pytest.raises(LabelError, match=rf"s1\.geojson and {other}; keep the one that counts"):
        annotation_files(tmp_path)


def test_no_folder_is_refused(tmp_path):
    with pytest.raises(LabelError, match="no such folder of annotations"):
        annotation_files(tmp_path / "none")


def test_training_reads_them_and_a_slide_without_a_file_has_none(tmp_path):
    square = '{"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]]]}'
    _write(tmp_path, "s1.json", text=square)
    _write(tmp_path, "s3.json", text="{")
    files = {name: tmp_path / f"{name}.json" for name in ("s1", "s3")}
    data = TrainSlides([], [], {}, device=None, cache_bytes=0, annotations=files)
    (drawn,) = data.annotations("s1")
    assert drawn.polygon.area == 81
    assert data.annotations("s0") == []
    with pytest.raises(LabelError, match=r"s3\.json: not valid JSON"):
        data.annotations("s3")


def test_a_file_from_a_mac_is_of_the_slide_of_its_name(tmp_path):
    composed, apart = "M\u00fc1", "Mu\u03081"
    _write(tmp_path, f"{apart}.geojson")
    assert annotation_files(tmp_path) == {composed: tmp_path / f"{apart}.geojson"}
