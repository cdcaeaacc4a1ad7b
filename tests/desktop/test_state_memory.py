from __future__ import annotations

from pathlib import Path

from slidelens.desktop.state.memory import Bookmark, Memory, memory_file


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


def test_bookmarks_by_slide(tmp_path):
    memory = Memory(tmp_path / "m.json")
    mark = Bookmark("gland", 120.5, 30.0, 0.5)
    memory.set_bookmarks("a", [mark])
    assert memory.bookmarks("a") == [mark]
    assert memory.bookmarks("b") == []
    memory.set_bookmarks("a", [])
    assert memory.bookmarks("a") == []


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
    assert memory.recent_slides() == memory.bookmarks("a") == []
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
