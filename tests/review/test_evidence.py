import json
import shutil
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from slidelens import open_slide
from slidelens.engine.provenance import fingerprint
from slidelens.geometry import Box
from slidelens.review.draw import encode, mark_fields, mark_scale
from slidelens.review.errors import list_errors
from slidelens.review.evaluation import read_evaluation
from slidelens.review.evidence import make_evidence
from slidelens.tiling.annotations import read_annotations


class Kept(dict):
    """Takes pictures as the report does."""

    def __call__(self, file):
        name = f"{len(self)}.jpg"
        self[name] = np.asarray(Image.open(BytesIO(file)), np.int16)
        return name


def draw(folder, slide_id, **options):
    saved = read_evaluation(folder)
    cases = [e for e in list_errors(saved) if e.slide_id == slide_id]
    kept = Kept()
    return make_evidence(saved, cases, kept, **options), kept


def of(row, title):
    return next(panel for panel in row.panels if panel.title == title)


def test_overview_and_fields_stand_under_every_method_with_what_it_gives_there(phantoms):
    found, kept = draw(phantoms, "doe_jane_1")
    assert found.notes == []
    assert {"probability", "saliency"} == set(found.kinds)
    assert [row.number for row in found.rows] == list(range(len(found.rows)))
    assert len(found.rows) - 1 >= 3  # one for each method that errs, at least
    for row in found.rows:
        assert [p.title for p in row.panels] == ["", "magnet", "mil", "segmentation", "streaming"]
        assert all(p.picture for p in row.panels)
        assert row.box_um == pytest.approx(row.box.scaled(0.5))
    whats = " ".join(text for row in found.rows for text in row.what)
    for said in ("mil: tile with", "streaming: peak of saliency", "magnet: window"):
        assert said in whats
    assert "segmentation:" not in whats  # it is right
    assert of(found.rows[1], "mil").note.startswith(("P(tumor) 0.", "not looked at"))
    assert "of the colour scale." in of(found.rows[1], "streaming").note
    assert len(kept) == 5 * len(found.rows)


def test_a_field_is_the_slide_there_and_heat_lies_where_the_map_has_it(phantoms):
    found, kept = draw(phantoms, "doe_jane_1")
    row = next(r for r in found.rows if "mil: tile" in r.what[0])
    with open_slide(phantoms.parent / "slides" / "doe_jane_1.tif") as slide:
        true = slide.read(row.box, 0.5).astype(np.int16)
    plain = kept[of(row, "").picture.name]
    assert plain.shape == true.shape  # 224 px of 0.5 µm: the tile, pixel by pixel
    clear = (slice(30, 150), slice(30, 200))  # away from scale bar and marks
    assert np.abs(plain[clear] - true[clear]).mean() < 8
    middle = (slice(90, 150), slice(90, 150))  # the field in what surrounds it
    bare = kept[of(row, "segmentation").picture.name][middle]
    assert np.abs(kept[of(row, "mil").picture.name][middle] - bare).mean() > 15


def test_what_a_false_negative_missed_is_outlined_and_shown(phantoms):
    areas = read_annotations(phantoms.parent / "annotations" / "doe_jane_2.geojson")
    found, kept = draw(phantoms, "doe_jane_2", annotations=areas)
    assert found.annotated
    row = next(r for r in found.rows if any("annotated tumor" in text for text in r.what))
    centre = areas[0].polygon.centroid
    assert row.box.contains(centre.x, centre.y)
    without, plain = draw(phantoms, "doe_jane_2")
    one, other = (k[e.rows[0].panels[0].picture.name] for e, k in ((found, kept), (without, plain)))
    assert (np.abs(one - other).max(-1) > 60).sum() > 100


def test_the_number_of_fields_is_bounded_but_no_method_is_left_out(phantoms):
    assert len(draw(phantoms, "doe_jane_1", fields=1)[0].rows) == 1 + 3
    assert len(draw(phantoms, "doe_jane_2", fields=9)[0].rows) <= 1 + 9


@pytest.fixture
def own(phantoms, tmp_path):
    """A copy of the evaluation that may be damaged."""
    shutil.copytree(phantoms.parent, tmp_path / "own")
    return tmp_path / "own" / "eval"


def point_elsewhere(own, path, **facts):
    for file in own.parent.glob("results/*/doe_jane_1/result.json"):
        content = json.loads(file.read_text())
        content["slide"] |= {"path": str(path), **facts}
        file.write_text(json.dumps(content))


def test_a_slide_that_is_gone_leaves_the_saved_maps(own):
    point_elsewhere(own, own / "gone.tif")
    found, kept = draw(own, "doe_jane_1")
    (note,) = found.notes
    assert note.startswith("The slide's file is gone; the pictures show the saved maps only.")
    assert "--slides FOLDER" in note
    plain = kept[found.rows[0].panels[0].picture.name]
    assert {tuple(c) for c in (plain[5, 5], plain[5, -5])} == {(255, 255, 255)}
    assert np.abs(plain - (226, 214, 221)).max(-1).min() < 6  # tissue, from the saved mask
    heat = kept[of(found.rows[0], "mil").picture.name]
    assert (np.abs(heat - plain).max(-1) > 40).any()
    moved = {"doe_jane_1": own.parent / "slides" / "doe_jane_1.tif"}
    assert draw(own, "doe_jane_1", files=moved)[0].notes == []


def test_another_file_of_the_same_name_and_a_broken_one_are_not_shown(own):
    slides = own.parent / "slides"
    point_elsewhere(own, slides / "doe_jane_1.tif")
    Image.new("RGB", (300, 200)).save(slides / "doe_jane_1.tif")
    assert "not the one that was predicted" in draw(own, "doe_jane_1")[0].notes[0]
    (slides / "doe_jane_1.tif").write_bytes(b"II*\0 no more")
    assert "cannot be opened" in draw(own, "doe_jane_1")[0].notes[0]


def test_a_slide_that_was_replaced_by_one_of_its_size_is_shown_with_a_note(own):
    slide, other = (own.parent / "slides" / f"doe_jane_{i}.tif" for i in (1, 2))
    with open_slide(slide) as opened:
        point_elsewhere(own, slide, fingerprint=fingerprint(opened))
    assert draw(own, "doe_jane_1")[0].notes == []
    shutil.copy(other, slide)
    found, kept = draw(own, "doe_jane_1")
    (note,) = found.notes
    assert "changed or replaced after it was predicted" in note
    assert kept[found.rows[0].panels[0].picture.name].std() > 5, "its pixels, all the same"


def test_results_that_are_gone_or_damaged_are_said(own):
    results = own.parent / "results"
    shutil.rmtree(results / "segmentation" / "doe_jane_1")
    (results / "magnet" / "doe_jane_1" / "trajectory.json").write_text("{")
    for chunk in (results / "streaming" / "doe_jane_1" / "maps.ome.zarr").rglob("c/*/*/*"):
        chunk.write_bytes(b"rubbish")
    found, _ = draw(own, "doe_jane_1")
    assert "The result of segmentation is gone." in found.notes
    assert "Maps or tiles of magnet are damaged." in found.notes
    assert "Maps or tiles of streaming are damaged." in found.notes
    assert (of(found.rows[0], "segmentation").note, of(found.rows[0], "streaming").note) == (
        "no result",
        "its map is damaged",
    )
    assert of(found.rows[0], "mil").picture
    (results / "mil" / "doe_jane_1" / "result.json").write_text('{"schema_version": 2}')
    found, _ = draw(own, "doe_jane_1")
    newer = "The result of mil was rewritten by a newer slidelens; update this one."
    assert newer in found.notes
    assert str(own.parent) not in " ".join(found.notes)
    shutil.rmtree(results)
    found, _ = draw(own, "doe_jane_1")
    assert len(found.notes) == 4
    assert found.rows == []


def test_results_without_maps_or_size_leave_words(phantoms):
    saved = read_evaluation(phantoms)
    case = list_errors(saved)[0]
    from dataclasses import replace

    found = make_evidence(saved, [replace(case, slide_id="ok_1")], Kept())
    assert found.rows == []
    assert "do not state size and resolution" in found.notes[0]


def test_the_scale_bar_is_as_long_as_it_says():
    image = Image.new("RGB", (400, 300), (200, 120, 160))
    um = mark_scale(image, 0.5)
    assert um == 20  # of 200 µm
    dark = (np.asarray(image) < 60).all(-1)
    assert dark[-60:, :100].sum(1).max() == 40


def test_a_mark_lies_on_its_field_and_tiny_ones_are_still_seen():
    image = Image.new("RGB", (200, 100), (128, 128, 128))
    fields = [Box(1100, 40, 100, 100), Box(1350, 150, 1, 1)]
    mark_fields(image, Box(1000, 0, 400, 200), fields, numbers=True)
    pixels = np.asarray(image)
    assert (pixels[40, 49] < 40).all()  # left edge at 50
    assert (pixels[40, 60] == 128).all()
    assert (pixels[60:, 150:] < 40).all(-1).any()


def test_files_hold_no_metadata():
    with Image.open(BytesIO(encode(np.zeros((9, 9, 3), np.uint8)))) as image:
        assert image.format == "JPEG"
        assert not image.getexif()
        assert "comment" not in image.info
