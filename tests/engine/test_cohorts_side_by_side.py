"""Runs of several processes over the same slides: each slide is computed once, none is lost."""

from __future__ import annotations

import csv
import errno
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from test_cohort import WHOLE, run, table, write_slide

from rights import nobody
from slidelens.engine import cohort
from slidelens.engine.cohort import predict_cohort
from slidelens.engine.last_run import PREDICTIONS
from slidelens.engine.locks import claimed
from slidelens.engine.predict import Progress
from slidelens.engine.prediction_table import Outcome, PredictionTable
from slidelens.files import beside
from warm import Warm

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills processes as POSIX does")


@pytest.fixture
def start():
    """Start a process of ``cohort_run.py``; those that still run at the end are killed."""
    program = Path(__file__).with_name("cohort_run.py")
    processes: list[Warm] = []

    def begin(how: str, out: Path, slides: list[Path]) -> Warm:
        processes.append(Warm(program, how, out, *slides))
        return processes[-1]

    yield begin
    for process in processes:
        kill(process)


def kill(process: Warm) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(60)


def until(process: Warm, line: str) -> None:
    assert process.stdout is not None
    for found in process.stdout:
        if found.strip() == line:
            return
    raise AssertionError(f"it ended before it said {line!r}")


def hidden(out: Path) -> set[str]:
    return {p.name for p in (out / "tiny-model").iterdir() if p.name.startswith(".")}


def test_each_slide_is_computed_by_one_of_three(start, tmp_path):
    slides = [write_slide(tmp_path / "slides", f"s{i}.tif", i) for i in range(9)]
    out = tmp_path / "out"
    processes = [start("run", out, slides) for _ in range(3)]
    said = [process.communicate(timeout=300)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    for lines in said:  # whoever ends first, ends when all is there
        outcomes = [line for line in lines if ": " in line]
        assert Counter(line.split(": ")[0] for line in outcomes) == {f"s{i}": 1 for i in range(9)}
    assert Counter(line for lines in said for line in lines if line.endswith(": done")) == {
        f"s{i}: done": 1 for i in range(9)
    }
    assert sorted(table(out)) == [f"s{i}" for i in range(9)]
    assert hidden(out) == {".predictions.lock"}


def test_a_slide_of_another_run_is_waited_for_and_done_if_that_is_killed(start, tiny, tmp_path):
    slides = [write_slide(tmp_path, f"s{i}.tif", i) for i in range(3)]
    out = tmp_path / "out"
    other = start("hold", out, slides)
    until(other, "s0 infer")
    events = []
    for event in predict_cohort(slides, tiny, out, mpp=1.0, tissue=WHOLE):
        events.append(event)
        if isinstance(event, Progress) and event.stage == "wait" and other.poll() is None:
            assert (event.slide_id, event.total) == ("s0", 1)
            assert set(table(out)) == {"s1", "s2"}
            kill(other)
    outcomes = [e for e in events if isinstance(e, Outcome)]
    assert [o.status for o in outcomes] == ["done"] * 3
    assert outcomes[-1].slide_id == "s0"
    assert set(table(out)) == {"s0", "s1", "s2"}
    assert hidden(out) == {".predictions.lock"}


def test_a_run_that_has_time_takes_a_slide_that_another_only_opened_ahead(start, tiny, tmp_path):
    slides = [write_slide(tmp_path, f"s{i}.tif", i) for i in range(2)]
    out = tmp_path / "out"
    other = start("hold", out, slides)
    until(other, "s0 infer")
    events = predict_cohort(slides, tiny, out, mpp=1.0, tissue=WHOLE)
    assert next(e for e in events if isinstance(e, Outcome)).slide_id == "s1"
    events.close()


def test_a_run_that_was_left_half_way_keeps_no_run_of_its_own_process_waiting(tiny, tmp_path):
    """As a notebook may leave it."""
    slide, out = write_slide(tmp_path, "s.tif"), tmp_path / "out"
    left = predict_cohort([slide], tiny, out, mpp=1.0, tissue=WHOLE)
    assert next(e for e in left if isinstance(e, Progress) and e.stage == "infer")
    assert beside(out / "tiny-model" / "s", "claim").exists()
    assert [o.status for o in run([slide], tiny, out)] == ["done"]
    left.close()
    assert hidden(out) == {".predictions.lock"}


def test_a_claim_of_ours_is_known_by_whatever_path_it_is_made(tmp_path, monkeypatch):
    """A run that was left half-way kept one that named the folder otherwise waiting for ever."""
    monkeypatch.chdir(tmp_path)
    with claimed(Path("out/m/s")) as first, claimed(tmp_path / "out" / "m" / "s") as second:
        assert (first, second) == (True, True)


def test_a_slide_that_another_run_takes_meanwhile_is_closed_and_left_to_it(
    start, tiny, tmp_path, monkeypatch
):
    """It was free when it was opened ahead, and is not when its turn comes."""
    slides = [write_slide(tmp_path, f"s{i}.tif", i) for i in range(3)]
    opened = []
    original = cohort.open_slide
    monkeypatch.setattr(
        cohort, "open_slide", lambda *a, **k: opened.append(original(*a, **k)) or opened[-1]
    )
    out = tmp_path / "out"
    events = predict_cohort(slides, tiny, out, mpp=1.0, tissue=WHOLE)
    assert next(e for e in events if isinstance(e, Progress) and e.slide_id == "s0")
    other = start("hold", out, slides[1:2])
    until(other, "s1 infer")
    ends = []
    for event in events:
        if isinstance(event, Outcome):
            ends.append((event.slide_id, event.status))
        elif event.stage == "wait":
            kill(other)
    assert ends == [("s0", "done"), ("s2", "done"), ("s1", "done")]
    assert Counter(slide.id for slide in opened) == {"s0": 1, "s1": 2, "s2": 1}
    assert all(slide._closed for slide in opened)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK])
def test_without_locks_both_compute_and_a_killed_one_blocks_nobody(
    start, tiny, tmp_path, monkeypatch, code
):
    """ENOSYS is Lustre's: a file that stood for the lock would stay when its process is killed."""
    slides = [write_slide(tmp_path, f"s{i}.tif", i) for i in range(2)]
    out = tmp_path / "out"

    def none(*_):
        raise OSError(code, os.strerror(code))

    other = start("hold", out, slides)
    until(other, "s0 infer")
    monkeypatch.setattr("fcntl.flock", none)
    assert [o.status for o in run(slides, tiny, out)] == ["done"] * 2
    kill(other)
    assert sorted(table(out)) == ["s0", "s1"]
    assert [o.status for o in run(slides, tiny, out)] == ["skipped"] * 2


def test_a_row_that_another_run_has_written_over_is_written_again(tmp_path):
    """Without locks it may be: both read the table, and the later one writes what it read."""
    ours = PredictionTable(tmp_path / "m", ("a", "b"))
    values = {"a": 0.25, "b": 0.75}
    ours.record(Outcome("m", "s1", "done", "", values, 1.0))
    path = tmp_path / "m" / PREDICTIONS
    before = path.read_text()
    ours.record(Outcome("m", "s2", "done", "", values, 1.0))
    path.write_text(before.replace("s1,done", "s1,skipped") + "s3,failed,broken,,,1.00\n")
    ours.flush()
    with path.open(newline="") as file:
        rows = {row["slide_id"]: row["status"] for row in csv.DictReader(file)}
    assert rows == {"s1": "skipped", "s2": "done", "s3": "failed"}


def test_two_people_share_a_folder_that_both_may_write(tiny, tmp_path):
    """Their files are read-only for each other, the locks are not."""
    slide, out = write_slide(tmp_path, "s.tif"), tmp_path / "out"
    for path in (tmp_path, *tmp_path.parents[:3]):
        path.chmod(path.stat().st_mode | 0o055)
    run([slide], tiny, out)
    for path in (out, out / "tiny-model"):
        path.chmod(0o777)
    with nobody():
        assert [o.status for o in run([slide], tiny, out)] == ["skipped"]
