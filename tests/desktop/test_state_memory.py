from __future__ import annotations

import json
from pathlib import Path

from slidelens.desktop.state.bookmarks import Bookmark, Marked
from slidelens.desktop.state.memory import Memory, memory_file
from slidelens.geometry import Mpp, Size


def test_recent_slides_newest_first_without_doubles_or_gone_ones(tmp_path):
    memory = Memory(tmp_path / "m.json")
    assert memory.recent_slides() == []
    slides = [tmp_path / f"{i}.tif" for i in range(15)]
    for slide in slides:
        slide.touch()
        memory.opened(slide)
    memory.opened(slides[5])
    slides[14].unlink()
    recent = Memory(tmp_path / "m.json").recent_slides()
    assert recent[0] == slides[5]
    assert recent[1] == slides[13]
    assert len(recent) == 11
    before = memory.forget_slides()
    assert memory.recent_slides() == []
    memory.restore_slides(before)
    assert memory.recent_slides() == recent


def slide(path, size=(1000, 800), mpp=(0.5, 0.5)):
    return Marked(Path(path).stem, Path(path), Size(*size), Mpp(*mpp))


def test_bookmarks_by_slide(tmp_path):
    memory = Memory(tmp_path / "m.json")
    mark = Bookmark("gland", 120.5, 30.0, 0.5)
    a, b = slide(tmp_path / "a.tif"), slide(tmp_path / "b.tif")
    memory.set_bookmarks(a, [mark])
    assert memory.bookmarks(a) == [mark]
    assert memory.bookmarks(a._replace(mpp=Mpp(0.25, 0.3))) == [mark], "whatever its resolution"
    assert memory.bookmarks(b) == []
    memory.set_bookmarks(a, [])
    assert memory.bookmarks(a) == []
    in_memory = Marked("a", None, Size(9, 9), Mpp(1, 1))
    memory.set_bookmarks(in_memory, [mark])
    assert memory.bookmarks(in_memory) == [mark]
    assert memory.bookmarks(a) == []


def test_slides_of_one_name_have_their_own_bookmarks_which_move_with_the_file(tmp_path):
    memory = Memory(tmp_path / "m.json")
    mark = Bookmark("gland", 120.5, 30.0, 0.5)
    (tmp_path / "a.tif").touch()
    memory.set_bookmarks(slide(tmp_path / "a.tif"), [mark])
    moved = slide(tmp_path / "there" / "a.tif")
    assert memory.bookmarks(moved) == [], "another slide of this name: the first is still there"
    (tmp_path / "a.tif").unlink()
    assert memory.bookmarks(moved) == [mark]
    assert memory.bookmarks(moved._replace(size=Size(1000, 801))) == []
    memory.set_bookmarks(moved, [])
    assert memory.bookmarks(moved) == [], "nor do the removed ones come back"


def test_bookmarks_of_older_versions_are_read(tmp_path):
    path = tmp_path / "m.json"
    rows = [{"name": "gland", "x": 120.0, "y": 30.0, "scale": 0.5}, {"name": "damaged"}]
    path.write_text(json.dumps({"bookmarks": {"a": rows, "b": 3}, "marks": {"x": 1}}))
    memory = Memory(path)
    a = slide(tmp_path / "a.tif", mpp=(0.25, 0.5))
    assert memory.bookmarks(a) == [Bookmark("gland", 480.0, 60.0, 2.0)]
    assert memory.bookmarks(slide(tmp_path / "b.tif")) == []
    memory.set_bookmarks(a, [])
    assert memory.bookmarks(a) == []


def test_models_and_trainings_that_are_gone_are_left_out(tmp_path):
    memory = Memory(tmp_path / "m.json")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        memory.add_model(tmp_path / name)
        memory.training_began(tmp_path / name)
    (tmp_path / "one").rmdir()
    assert memory.models() == memory.trainings() == [tmp_path / "two"]
    memory.training_ended(tmp_path / "two")
    assert memory.trainings() == []


def test_a_damaged_file_is_begun_anew(tmp_path):
    path = tmp_path / "m.json"
    path.write_text('{"slides": 3, "bookmarks": {"a": [{"name": 1}]}, "reviewer": []')
    assert Memory(path).text("reviewer", "nobody") == "nobody"
    path.write_text('{"slides": 3, "bookmarks": {"a": [{"name": 1}]}, "reviewer": []}')
    memory = Memory(path)
    assert memory.recent_slides() == memory.bookmarks(slide("a.tif")) == []
    memory.set_text("reviewer", "Ada")
    assert memory.text("reviewer") == "Ada"


def test_it_lies_in_the_home_of_the_person():
    assert memory_file().is_relative_to(Path.home())


def test_a_file_that_cannot_be_written_is_logged(tmp_path, caplog):
    (tmp_path / "file").touch()
    memory = Memory(tmp_path / "file" / "m.json")
    memory.set_text("reviewer", "Ada")
    assert "settings are not kept" in caplog.text
    assert memory.text("reviewer") == ""
