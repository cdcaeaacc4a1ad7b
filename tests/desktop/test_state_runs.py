from __future__ import annotations

import os
from pathlib import Path
from time import time

import pytest
from known_slides import make_result, make_slide

from slidelens.desktop.state import library
from slidelens.desktop.state.library import Trash, entries
from slidelens.desktop.state.runs import RunRequest, RunState
from slidelens.desktop.worker.messages import Message
from slidelens.engine.progress import time_text
from slidelens.errors import ResultError
from slidelens.geometry import Box, Mpp


def state(slides: int = 1, models: int = 1) -> RunState:
    return RunState(
        RunRequest(
            tuple(Path(f"s{i}.svs") for i in range(slides)),
            tuple((Path(f"m{i}"), {"overlap": i}) for i in range(models)),
            Path("out"),
            region=Box(1, 2, 3, 4),
        )
    )


def progress(stage: str, done: int = 0, total: int = 0, **more) -> Message:
    facts = {"stage": stage, "slide": "s0", "model": "m0", "done": done, "total": total}
    return Message(1, "progress", facts | more)


def outcome(status: str = "done", error: str = "") -> Message:
    facts = {"slide": "s0", "model": "m0", "status": status, "error": error, "folder": "out/m0/s0"}
    return Message(1, "outcome", facts | {"probabilities": {"normal": 0.1, "tumor": 0.9}})


def test_request_reaches_the_worker_as_json_values():
    facts = state(1, 2).request.facts()
    assert facts["models"] == [
        {"path": "m0", "options": {"overlap": 0}},
        {"path": "m1", "options": {"overlap": 1}},
    ]
    assert facts["region"] == (1, 2, 3, 4)


def test_fraction_and_time_left_over_several_parts():
    run = state(models=2)
    assert run.fraction is None
    run.feed(progress("infer", 25, 100, seconds=10, eta=30))
    assert run.fraction == pytest.approx(0.125)
    assert run.left == pytest.approx(30 + 40)
    assert run.text == "m0 (1 of 2): Predicting 25 of 100, about 1 min left"
    finding = run.feed(outcome())
    assert finding.text == "m0: tumor 90.0%"
    assert run.found == "m0: tumor 90.0% (region)"
    assert run.fraction == pytest.approx(0.5)
    run.feed(progress("infer", 50, 100, seconds=20, eta=20))
    assert run.fraction == pytest.approx(0.75)
    run.feed(outcome())
    assert run.found.splitlines() == ["m0: tumor 90.0% (region)"] * 2
    many = state(slides=2)
    many.feed(outcome())
    assert many.found == "s0, m0: tumor 90.0% (region)"


def test_slides_of_another_run_are_waited_for():
    run = state(slides=3)
    run.feed(outcome())
    run.feed(progress("wait", 0, 2))
    assert run.text == "2 slides are being computed by another run"
    assert run.fraction == pytest.approx(1 / 3)
    run.feed(progress("wait", 0, 1))
    assert run.text == "1 slide is being computed by another run"


def test_how_it_ended_in_one_sentence():
    run = state(models=2)
    run.feed(outcome())
    assert run.summary("cancelled", "") == "Stopped; 1 of 2 finished and were kept."
    run.feed(outcome("failed", "no tissue"))
    assert run.summary("done", "") == "1 done, 1 failed."
    assert run.findings[1].text == "m0: no tissue"
    assert run.summary("died", "The worker was killed") == "The worker was killed"
    assert state().summary("cancelled", "") == "Stopped."


@pytest.mark.parametrize(
    ("seconds", "text"), [(3, "3 s"), (23, "25 s"), (170, "about 3 min"), (9000, "about 2.5 h")]
)
def test_times_as_one_says_them(seconds, text):
    assert time_text(seconds) == text


@pytest.fixture
def results(tmp_path):
    for model in ("m1", "m2"):
        slide = make_slide(0.5, "a")
        make_result(slide, Mpp(0.5, 0.5), model).save(tmp_path / model / "a")
    (tmp_path / "m2" / "bad").mkdir()
    (tmp_path / "m2" / "bad" / "result.json").write_text("{")
    return tmp_path


def test_results_are_listed_newest_first_damaged_ones_with_the_reason(results):
    found = entries([results, results / "m1", results / "gone"])
    assert [(e.model, e.slide) for e in found] == [("m2", "a"), ("m1", "a"), ("m2", "bad")]
    assert found[0].score.endswith("%")
    assert "not JSON" in found[2].error
    assert found[2].score == "damaged"
    (results / "m2" / "bad" / "result.json").write_text('{"schema_version": 2}')
    newer = entries([results])[2]
    assert newer.score == "newer version"
    assert "Update slidelens" in newer.about


def test_a_deleted_result_can_be_brought_back(results):
    trash = Trash()
    folder = results / "m1" / "a"
    hidden = trash.delete(folder)
    assert not folder.exists()
    assert len(entries([results])) == 2
    trash.restore(hidden)
    assert len(entries([results])) == 3
    with pytest.raises(ResultError, match="was not deleted"):
        trash.restore(hidden)


def test_each_of_several_deleted_results_can_be_brought_back_until_the_window_closes(results):
    trash = Trash()
    first, second = results / "m1" / "a", results / "m2" / "a"
    hidden = trash.delete(first)
    trash.delete(second)
    trash.restore(hidden)
    assert first.exists()
    assert not second.exists()
    trash.empty()
    assert [p.name for p in (results / "m2").iterdir()] == ["bad"]
    assert first.exists()


def test_a_newer_result_is_not_replaced(results):
    trash = Trash()
    folder = results / "m1" / "a"
    hidden = trash.delete(folder)
    folder.mkdir()
    with pytest.raises(ResultError, match="a newer one is there"):
        trash.restore(hidden)


def test_deletions_of_the_same_folder_all_come_back(results):
    trash, folder = Trash(), results / "m1" / "a"
    first = trash.delete(folder)
    (folder / "second").mkdir(parents=True)
    second = trash.delete(folder)
    trash.restore(second)
    assert (folder / "second").is_dir()
    assert trash.exchange(first) not in (None, first, second)
    assert (folder / "result.json").is_file()
    assert not (folder / "second").exists()


def test_an_exchange_that_fails_leaves_all_as_it_was(results):
    trash, folder = Trash(), results / "m1" / "a"
    hidden = trash.delete(folder)
    (folder / "second").mkdir(parents=True)
    hidden.rename(results / "taken")  # by another program
    with pytest.raises(ResultError, match="cannot be restored"):
        trash.exchange(hidden)
    assert (folder / "second").is_dir()


def test_what_a_window_that_crashed_left_deleted_is_removed_after_a_day(results, monkeypatch):
    keep = [
        results / "m1" / ".deleted-by hand",
        results / "m1" / "deleted-a-0123abcd",
        results / "m1" / "a" / ".deleted-a-0123abcd",
        results / "m1" / ".other-a-0123abcd",
    ]
    for path in keep:
        path.mkdir()
    outside = results.parent / "outside"
    outside.mkdir()
    link = results / "m1" / ".deleted-link-0123abcd"
    link.symlink_to(outside)
    crashed = Trash()
    os.utime(results / "m2" / "a", (0, 0))  # made long ago, but deleted now
    crashed.delete(results / "m2" / "a")
    crashed.delete(results / "m2" / "bad")
    mine = Trash()
    hidden = mine.delete(results / "m1" / "a")
    (left,) = results.glob("m1/.deleted-a-*")
    keep[2] = left / keep[2].name
    mine.sweep(results)
    assert len(list(results.glob("m2/.deleted-*"))) == 2, "another window may bring it back"
    monkeypatch.setattr(library, "time", lambda: time() + 25 * 3600)
    mine.sweep(results)
    mine.sweep(results / "gone")
    assert not list((results / "m2").iterdir())
    assert all(path.is_dir() for path in keep)
    assert link.is_symlink()
    mine.restore(hidden)
