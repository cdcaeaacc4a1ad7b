from __future__ import annotations

import csv
import errno
import os
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image
from tiny_family import make_model

import slidelens as sl
from rights import nobody, see_nothing_where_barred
from slidelens.engine import cohort, prediction_table
from slidelens.engine.cohort import predict_cohort
from slidelens.engine.last_run import failed_slides
from slidelens.engine.package import save_model
from slidelens.engine.predict import Progress
from slidelens.engine.prediction_table import Outcome, PredictionTable
from slidelens.engine.slide_folder import find_slides
from slidelens.errors import LabelError, ModelError, ResultError, SlideError, SlideNotFoundError
from slidelens.maps.result import find_results
from slidelens.tiling.tissue import TissueSettings

WHOLE = TissueSettings(method="whole")


def write_slide(folder: Path, name: str, seed: int = 0) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 255, (96, 128, 3), np.uint8)
    Image.fromarray(image).save(path)
    return path


def write_omezarr(path: Path, value: int) -> Path:
    """Write a slide of one grey, 1 µm/px."""
    axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
    axes = [{"name": "c", "type": "channel"}, *axes]
    scale = [{"type": "scale", "scale": [1, 1, 1]}]
    multiscale = {
        "version": "0.4",
        "axes": axes,
        "datasets": [{"path": "0", "coordinateTransformations": scale}],
    }
    group = zarr.open_group(path, mode="w", zarr_format=2)
    pixels = np.full((3, 64, 64), value, np.uint8)
    group.create_array("0", data=pixels, chunks=(1, 32, 32), compressors=None)
    group.attrs["multiscales"] = [multiscale]
    return path


def run(slides, models, out, **options) -> list[Outcome]:
    options = {"mpp": 1.0, "tissue": WHOLE, **options}
    return [e for e in predict_cohort(slides, models, out, **options) if isinstance(e, Outcome)]


def table(out: Path, model: str = "tiny-model") -> dict[str, dict[str, str]]:
    with (out / model / "predictions.csv").open(newline="") as file:
        return {row["slide_id"]: row for row in csv.DictReader(file)}


def test_every_slide_and_model_has_a_folder_and_a_row(tiny, tmp_path):
    slides = [write_slide(tmp_path, f"s{i}.tif", i) for i in range(3)]
    save_model(make_model(name="second", seed=1), tmp_path / "package")
    out = tmp_path / "out"
    outcomes = run(slides, [tiny, tmp_path / "package"], out)
    assert [(o.slide_id, o.model, o.status) for o in outcomes] == [
        (f"s{i}", m, "done") for i in range(3) for m in ("tiny-model", "second")
    ]
    for name in ("tiny-model", "second"):
        rows = table(out, name)
        header = ["slide_id", "status", "error", "prob_normal", "prob_tumour", "seconds"]
        assert list(next(iter(rows.values()))) == header
        for i in range(3):
            result = sl.Result.load(out / name / f"s{i}")
            written = float(rows[f"s{i}"]["prob_tumour"])
            assert written == pytest.approx(result.probabilities["tumour"], abs=1e-7)


def test_events_tell_where_the_run_stands(tiny, tmp_path):
    slides = [write_slide(tmp_path, f"s{i}.tif", i) for i in range(2)]
    events = list(predict_cohort(slides, [tiny], tmp_path / "out", mpp=1.0, tissue=WHOLE))
    steps = [(e.slide_id, e.model) for e in events if isinstance(e, Progress)]
    assert list(dict.fromkeys(steps)) == [("s0", "tiny-model"), ("s1", "tiny-model")]
    assert isinstance(events[-1], Outcome)


def test_a_bad_slide_is_named_and_the_next_is_run(tiny, tmp_path, caplog):
    good = [write_slide(tmp_path, f"good{i}.tif", i) for i in range(2)]
    text = tmp_path / "text.svs"
    text.write_text("not a slide")
    cut = write_slide(tmp_path, "cut.tif")
    cut.write_bytes(cut.read_bytes()[:200])
    out = tmp_path / "out"
    outcomes = run([text, good[0], cut, good[1]], [tiny, make_model(name="second")], out)
    status = {o.slide_id: o.status for o in outcomes}
    assert status == {
        "text": "failed",
        "good0": "done",
        "cut": "failed",
        "good1": "done",
    }
    rows = table(out)
    for name in ("text", "cut"):
        assert rows[name]["status"] == "failed"
        assert f"{name}." in rows[name]["error"]
        assert "/" not in rows[name]["error"]  # the slide's name, and no folder
        assert rows[name]["prob_tumour"] == ""
        assert not (out / "tiny-model" / name).exists()
    assert rows["good1"]["error"] == ""
    assert table(out, "second").keys() == rows.keys()


def test_a_slide_that_fails_while_it_is_read(tiny, tmp_path, monkeypatch, caplog):
    slides = [write_slide(tmp_path, f"s{i}.tif", i) for i in range(3)]
    original = sl.Slide.read

    def read(self, box, mpp=None):
        if self.id == "s1":
            raise RuntimeError("decoder crashed")
        return original(self, box, mpp)

    monkeypatch.setattr(sl.Slide, "read", read)
    outcomes = run(slides, [tiny], tmp_path / "out")
    assert [o.status for o in outcomes] == ["done", "failed", "done"]
    assert "s1.tif" in outcomes[1].error
    assert "decoder crashed" in outcomes[1].error


def test_a_slide_that_cannot_be_closed_does_not_end_the_cohort(tiny, tmp_path, monkeypatch, caplog):
    slides = [write_slide(tmp_path, f"s{i}.tif", i) for i in range(2)]
    monkeypatch.setattr(sl.Slide, "close", lambda self: 1 / 0)
    assert [o.status for o in run(slides, [tiny], tmp_path / "out")] == ["done", "done"]
    assert "s0.tif: cannot be closed (ZeroDivisionError: division by zero)" in caplog.text


def test_one_path_and_one_model_need_no_list(tiny, tmp_path):
    save_model(tiny, tmp_path / "m")
    write_slide(tmp_path / "slides", "s0.tif")
    for slides, model in ((tmp_path / "slides", tiny), (str(tmp_path / "slides"), tmp_path / "m")):
        (outcome,) = run(slides, model, tmp_path / "out")
        assert (outcome.slide_id, outcome.error) == ("s0", "")


def test_an_option_that_no_run_takes_is_refused_before_anything_runs(tiny, tmp_path):
    slide = write_slide(tmp_path, "s0.tif")
    with pytest.raises(ValueError, match="precision is 'fp16'"):
        predict_cohort([slide], [tiny], tmp_path / "out", precision="fp16")


def test_an_unforeseen_error_goes_to_the_log_with_its_traceback(
    tiny, tmp_path, monkeypatch, caplog
):
    slides = [write_slide(tmp_path, f"s{i}.tif", i) for i in range(2)]
    original = sl.Result.save

    def save(self, folder):
        if self.slide.id == "s0":
            raise ZeroDivisionError("a bug")
        original(self, folder)

    monkeypatch.setattr(sl.Result, "save", save)
    outcomes = run(slides, [tiny], tmp_path / "out")
    assert [o.status for o in outcomes] == ["failed", "done"]
    assert outcomes[0].error.endswith("s0.tif: ZeroDivisionError: a bug")
    assert "Traceback" in caplog.text


def test_a_folder_of_other_pixels_is_not_taken_for_the_one_before(tiny, tmp_path):
    """Chunks of one length, in folders of one layout."""

    def slide(value):
        return write_omezarr(tmp_path / "case.ome.zarr", value)

    out = tmp_path / "out"
    assert [o.status for o in run([slide(50)], [tiny], out)] == ["done"]
    before = table(out)["case"]
    assert [o.status for o in run([slide(50)], [tiny], out)] == ["skipped"]
    assert [o.status for o in run([slide(200)], [tiny], out)] == ["done"]
    assert table(out)["case"]["prob_tumour"] != before["prob_tumour"]


@pytest.mark.parametrize("number", [int, np.int64])
def test_a_region_is_the_same_whatever_its_numbers(tiny, tmp_path, number, monkeypatch):
    slide, out = write_slide(tmp_path, "s.tif"), tmp_path / "out"
    region = sl.Box(*map(number, (0, 0, 64, 64)))
    assert [(o.status, o.error) for o in run([slide], tiny, out, region=region)] == [("done", "")]
    monkeypatch.setattr(cohort, "find_tissue", None)  # not called for what is there
    for same in (region, sl.Box(0.0, 0.0, 64.0, 64.0)):
        assert [o.status for o in run([slide], tiny, out, region=same)] == ["skipped"]


def test_results_of_another_model_or_region_are_not_replaced_unasked(tiny, tmp_path):
    slides = [write_slide(tmp_path, f"s{i}.tif", i) for i in range(2)]
    out, region = tmp_path / "out", sl.Box(0, 0, 64, 64)
    run(slides, [tiny], out)
    before = table(out)
    with pytest.raises(ResultError, match=r"s0: holds a result with other weights.*1 more.*--over"):
        run(slides, [make_model(seed=1)], out, replace=False)
    with pytest.raises(ResultError, match=r"s1: holds a result of the whole slide\. Write to"):
        run(slides[1:], [tiny], out, replace=False, region=region)
    assert table(out) == before
    assert [o.status for o in run(slides, [tiny], out, replace=False)] == ["skipped"] * 2
    assert [o.status for o in run(slides[:1], [tiny], out, region=region)] == ["done"]
    with pytest.raises(ResultError, match=r"s0: holds a result of region 0,0,64,64"):
        run(slides, [tiny], out, replace=False)
    (out / "tiny-model" / "s1" / "result.json").write_text('{"schema_version": 2}')
    with pytest.raises(ResultError, match=r"s1: holds a result of a newer slidelens"):
        run(slides[1:], [tiny], out, replace=False)


def test_a_result_of_another_slide_of_this_name_is_not_replaced_unasked(tiny, tmp_path):
    first, other = (write_slide(tmp_path / name, "case.tif", i) for i, name in enumerate("ab"))
    out = tmp_path / "out"
    run([first], tiny, out, replace=False)
    told = rf"case: holds a result of another slide of this name \({first}, not {other}\)\. Write"
    with pytest.raises(ResultError, match=told):
        run([other], tiny, out, replace=False)
    (tmp_path / "c").mkdir()
    moved = first.rename(tmp_path / "c" / "case.tif")
    assert [o.status for o in run([moved], tiny, out, replace=False)] == ["skipped"]
    (made,) = find_results(out)
    assert Path(sl.Result.load(made).slide.path) == moved, "so that it is found"
    assert [o.status for o in run([other], tiny, out, overwrite=True)] == ["done"]
    write_slide(tmp_path / "b", "case.tif", 5)  # a slide that was changed is no other one
    assert [o.status for o in run([other], tiny, out, replace=False)] == ["done"]


def test_a_run_again_skips_what_is_done_and_fills_the_rest(tiny, tmp_path, monkeypatch):
    slides = [write_slide(tmp_path, f"s{i}.tif", i) for i in range(3)]
    out = tmp_path / "out"
    run(slides[:2], [tiny], out)
    searched = []
    original = cohort.find_tissue
    monkeypatch.setattr(
        cohort, "find_tissue", lambda slide, s: searched.append(slide.id) or original(slide, s)
    )
    before = table(out)
    outcomes = run(slides, [tiny], out)
    assert [o.status for o in outcomes] == ["skipped", "skipped", "done"]
    assert searched == ["s2"]
    after = table(out)
    assert after["s0"]["status"] == "skipped"
    assert after["s0"]["prob_tumour"] == before["s0"]["prob_tumour"]
    assert after["s0"]["seconds"] == before["s0"]["seconds"] != "0.00"  # what computing it took
    assert [o.status for o in run(slides, [tiny], out, overwrite=True)] == ["done"] * 3
    assert [o.status for o in run(slides[:1], [tiny], out, mpp=0.5)] == ["done"]


def test_rows_of_earlier_runs_stay(tiny, tmp_path):
    out = tmp_path / "out"
    run([write_slide(tmp_path, "a.tif")], [tiny], out)
    run([write_slide(tmp_path, "b.tif")], [tiny], out)
    assert table(out).keys() == {"a", "b"}


def test_paths_where_nothing_is_are_refused_together_and_leave_nothing(tiny, tmp_path):
    slide, out = write_slide(tmp_path, "a.tif"), tmp_path / "out"
    with pytest.raises(SlideError, match=r"^\S+/b\.svs: no such file or folder\.$"):
        run([slide, tmp_path / "b.svs"], [tiny], out)
    with pytest.raises(SlideError, match=r"(?s)^2 of 3 paths lead nowhere.*b\.svs: .*x\*\.svs: no"):
        run([tmp_path / "b.svs", slide, tmp_path / "x*.svs"], [tiny], out)
    assert not out.exists()


def test_a_table_of_other_classes_is_written_anew(tiny, tmp_path, caplog):
    out = tmp_path / "out"
    (out / "tiny-model").mkdir(parents=True)
    (out / "tiny-model" / "predictions.csv").write_text("slide_id,prob_cat\na,0.5\n")
    run([write_slide(tmp_path, "b.tif")], [tiny], out)
    assert table(out).keys() == {"b"}
    kept = out / "tiny-model" / "predictions.csv.bak"
    assert kept.read_text() == "slide_id,prob_cat\na,0.5\n"
    (said,) = [text for text in caplog.messages if "other columns" in text]
    assert said.endswith(f"kept as {kept}")


@pytest.mark.parametrize(
    "saved",
    [
        lambda text: "\ufeff" + text.replace("\n", "\r\n"),
        lambda text: "sep=;\n" + text.replace(",", ";").replace("0.25", "0,25"),
        lambda text: text.replace(",", "\t"),
        lambda text: text.replace("\n", ",mine\n"),
    ],
    ids=["Excel", "decimal comma", "tabs", "another column"],
)
def test_a_table_that_a_spreadsheet_saved_keeps_its_rows(tmp_path, saved):
    one = Outcome("m", "a", "done", "", {"cat": 0.25, "dog": 0.75}, 1.5)
    before = PredictionTable(tmp_path, ("cat", "dog"))
    before.record(one)
    path = tmp_path / "predictions.csv"
    text = path.read_text()
    path.write_text(saved(text), encoding="utf-8", newline="")
    PredictionTable(tmp_path, ("cat", "dog")).record(replace(one, slide_id="b"))
    assert path.read_text() == text + text.splitlines()[1].replace("a", "b", 1) + "\n"
    assert (tmp_path / "predictions.csv.bak").exists() == ("mine" in saved(text))


def test_a_lone_quotation_mark_in_the_table_is_named(tmp_path):
    PredictionTable(tmp_path, ("cat",)).record(Outcome("m", "a", "failed", "x", {}, 1.0))
    path = tmp_path / "predictions.csv"
    path.write_text(path.read_text() + 'b,failed,"x,,1\n' + "c,done,,0.5,1\n" * 20_000)
    with pytest.raises(ResultError, match=rf"{path}: what begins on line 3 .*lone quotation mark"):
        PredictionTable(tmp_path, ("cat",))


def test_the_table_is_whole_after_each_slide(tiny, tmp_path):
    slides = [write_slide(tmp_path, f"s{i}.tif", i) for i in range(3)]
    out = tmp_path / "out"
    events = predict_cohort(slides, [tiny], out, mpp=1.0, tissue=WHOLE)
    seen = [list(table(out)) for event in events if isinstance(event, Outcome)]
    assert seen == [["s0"], ["s0", "s1"], ["s0", "s1", "s2"]]


def test_cancelling_keeps_what_is_done_and_closes_all(tiny, tmp_path, monkeypatch):
    slides = [write_slide(tmp_path, f"s{i}.tif", i) for i in range(3)]
    out = tmp_path / "out"
    opened = []
    original = cohort.open_slide
    monkeypatch.setattr(
        cohort, "open_slide", lambda *a, **k: opened.append(original(*a, **k)) or opened[-1]
    )
    threads = threading.active_count()
    events = predict_cohort(slides, [tiny], out, mpp=1.0, tissue=WHOLE)
    for event in events:
        if event.slide_id == "s1" and isinstance(event, Progress) and event.stage == "infer":
            break
    events.close()
    assert threading.active_count() == threads
    assert list(table(out)) == ["s0"]
    left = {path.name for path in (out / "tiny-model").iterdir()}
    assert left == {".predictions.lock", "predictions.csv", "s0"}
    assert len(opened) == 3
    for slide in opened:
        with pytest.raises(SlideError, match="closed"):
            slide.read(sl.Box(0, 0, 4, 4))


def test_two_slides_of_one_id_are_refused_before_anything_runs(tiny, tmp_path):
    a, b = write_slide(tmp_path / "a", "s.tif"), write_slide(tmp_path / "b", "s.tiff")
    with pytest.raises(SlideError, match=r"overwrite each other.*a/s.tif.*b/s.tiff"):
        predict_cohort([a, b], [tiny], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_models_of_one_name_or_none_are_refused(tiny, tmp_path):
    slide = write_slide(tmp_path, "s.tif")
    with pytest.raises(ModelError, match="each of its own name"):
        predict_cohort([slide], [tiny, make_model(seed=2)], tmp_path / "out")
    with pytest.raises(ModelError, match="expected one or more"):
        predict_cohort([slide], [], tmp_path / "out")
    with pytest.raises(SlideError, match="no slides given"):
        predict_cohort([], [tiny], tmp_path / "out")


def test_steps_of_a_cohort_show_the_map_so_far(tiny, tmp_path):
    slide = write_slide(tmp_path, "s.tif")
    filled = [
        np.isfinite(event.peek()["probability"].read()).mean()
        for event in predict_cohort([slide], [tiny], tmp_path / "out", mpp=1.0, tissue=WHOLE)
        if isinstance(event, Progress) and event.stage == "infer"
    ]
    assert len(filled) > 2
    assert filled == sorted(filled)
    assert filled[0] < filled[-1]


def test_runs_side_by_side_keep_each_others_rows(tmp_path):
    one, other = (PredictionTable(tmp_path / "m", ("a", "b")) for _ in range(2))
    one.record(Outcome("m", "s1", "failed", "broken", {}, 1.0))
    other.record(Outcome("m", "s2", "done", "", {"a": 0.25, "b": 0.75}, 1.0))
    one.record(Outcome("m", "s3", "done", "", {"a": 0.5, "b": 0.5}, 1.0))
    assert list(table(tmp_path, "m")) == ["s1", "s2", "s3"]
    assert failed_slides(tmp_path / "m") == {"s1"}


def test_rows_of_slides_that_are_skipped_are_written_together(tiny, tmp_path, monkeypatch):
    """With thousands of them most of a second run was spent on writing its table again."""
    slides = [write_slide(tmp_path, f"s{i}.tif", i) for i in range(4)]
    out = tmp_path / "out"
    run(slides, [tiny], out)
    written = []
    original = prediction_table.write_atomic
    monkeypatch.setattr(
        prediction_table, "write_atomic", lambda *a: written.append(a) or original(*a)
    )
    monkeypatch.setattr(prediction_table, "_SKIPPED_S", 1000.0)
    assert [o.status for o in run(slides, [tiny], out)] == ["skipped"] * 4
    assert len(written) == 2
    assert {row["status"] for row in table(out).values()} == {"skipped"}

    events = predict_cohort(slides, [tiny], out, mpp=1.0, tissue=WHOLE, overwrite=True)
    assert next(e for e in events if isinstance(e, Outcome)).status == "done"
    assert table(out)["s0"]["status"] == "done"
    events.close()


def test_a_file_system_without_locks_is_written_with_a_warning(tmp_path, monkeypatch, caplog):
    """As Lustre and NFS may be mounted on a cluster."""

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    for number in (1, 2):
        rows = PredictionTable(tmp_path / "m", ("a", "b"))
        rows.record(Outcome("m", f"s{number}", "done", "", {"a": 0.25, "b": 0.75}, 1.0))
    assert list(table(tmp_path, "m")) == ["s1", "s2"]
    assert caplog.text.count("has no locks (") == 1


def test_a_folder_that_cannot_be_written_is_told_before_anything_runs(tiny, tmp_path):
    slide = write_slide(tmp_path, "s.tif")
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o555)
    with nobody(), pytest.raises(ResultError, match="cannot write the table"):
        predict_cohort([slide], [tiny], tmp_path / "out", mpp=1.0)


def test_the_folder_of_one_model_is_no_results_folder(tiny, tmp_path):
    """Results went to out/model/model/slide, and were then there twice."""
    slide, out = write_slide(tmp_path, "s.tif"), tmp_path / "out"
    run([slide], [tiny], out)
    for inside in (out / "tiny-model", out / "tiny-model" / "s"):
        with pytest.raises(ResultError, match=rf"one model.*Give --out {re.escape(str(out))}\."):
            run([slide], [tiny], inside)
        with pytest.raises(ResultError, match="expected the folder of all results"):
            sl.predict(slide, tiny, out=inside, mpp=1.0)
    assert [p.name for p in find_results(out)] == ["s"]
    save_model(tiny, tmp_path / "package")
    with pytest.raises(ResultError, match="is a model package, and no place for results"):
        run([slide], [tiny], tmp_path / "package")


def test_a_good_run_alone_takes_a_failure_off_the_table(tiny, tmp_path):
    path, out = tmp_path / "s.tif", tmp_path / "out"
    path.write_text("no slide")
    other = write_slide(tmp_path, "other.tif")
    run([path, other], [tiny], out)
    assert failed_slides(out / "tiny-model") == {"s"}
    write_slide(tmp_path, "s.tif")
    result = sl.predict(path, tiny, out=out, mpp=1.0, tissue=WHOLE)
    assert failed_slides(out / "tiny-model") == frozenset()
    row = table(out)["s"]
    assert float(row["prob_tumour"]) == pytest.approx(result.probabilities["tumour"], abs=1e-7)
    assert set(table(out)) == {"s", "other"}


def test_a_folder_stands_for_its_slides_and_a_faulty_table_for_no_slide(tiny, tmp_path):
    slides = [write_slide(tmp_path / "slides", f"s{i}.tif", i) for i in range(2)]
    (tmp_path / "slides" / "labels.csv").write_text("slide_id,label\n")
    out = tmp_path / "out"
    assert [o.slide_id for o in run([tmp_path / "slides"], [tiny], out)] == ["s0", "s1"]
    bad = tmp_path / "mpp.csv"
    bad.write_text("name,mpp\ns0,1\n")
    with pytest.raises(SlideError, match="columns `slide,mpp`"):
        run(slides, [tiny], out, mpp=bad)
    assert {row["status"] for row in table(out).values()} == {"done"}
    empty = tmp_path / "empty"
    empty.mkdir()
    for given in ([empty], [empty, empty], [tmp_path / "slides" / "labels.csv", empty]):
        with pytest.raises(LabelError, match="empty: no slide in this folder"):
            run(given, [tiny], out)


def test_a_folder_without_slides_is_skipped_beside_others(tiny, tmp_path, caplog):
    """``predict slides/*`` and ``predict slides`` are one run."""
    slides = tmp_path / "slides"
    write_slide(slides / "p1", "s0.tif")
    (slides / "p2" / "notes").mkdir(parents=True)
    (slides / "p2" / "diary.txt").touch()
    for given in ([slides], sorted(slides.iterdir())):
        assert [o.slide_id for o in run(given, [tiny], tmp_path / "out")] == ["s0"]
    assert f"skipped, since they are not slides: {slides / 'p2'}\n" in caplog.text


def test_what_a_shell_finds_beside_slides_is_passed_over(tiny, tmp_path, caplog):
    """``predict slides/* --out slides`` and ``predict slides --out slides`` are one run."""
    slides = tmp_path / "slides"
    write_slide(slides, "s0.tif")
    (slides / "cut.svs").write_bytes(b"II*\0")
    (slides / "labels.csv").write_text("slide_id,label\n")
    (slides / "m.mrxs").touch()
    (slides / "m").mkdir()
    (slides / "m" / "Data0000.dat").touch()
    asked = {"s0": "done", "cut": "failed", "m": "failed"}
    for out in (slides, slides / "results"):
        for _ in range(2):
            for given in (sorted(slides.iterdir()), [slides]):
                outcomes = run(given, [tiny], out)
                assert {o.slide_id: o.status.replace("skipped", "done") for o in outcomes} == asked
        assert set(table(out)) == set(asked)
    passed = ["labels.csv", "m", "results", "tiny-model"]
    told = ", ".join(str(slides / name) for name in passed)
    assert f"skipped, since they are not slides: {told}\n" in caplog.text
    caplog.clear()
    run([slides], [tiny], slides)
    assert "tiny-model" not in caplog.text, "a folder of results is none that might hold slides"


def test_a_folder_of_results_or_a_table_alone_is_told(tiny, tmp_path):
    slide = write_slide(tmp_path, "s.tif")
    run([slide], [tiny], tmp_path / "out")
    with pytest.raises(LabelError, match="no slide in this folder"):
        run([tmp_path / "out"], [tiny], tmp_path / "again")
    (only,) = run([tmp_path / "out" / "tiny-model" / "predictions.csv"], [tiny], tmp_path / "again")
    assert "looks like text, not a slide" in only.error
    broken = tmp_path / "broken.tif"
    broken.touch()
    run([broken], [tiny], tmp_path / "failed")
    for failed in (tmp_path / "failed", tmp_path / "failed" / "tiny-model"):
        assert [o.slide_id for o in run([slide, failed], [tiny], tmp_path / "out")] == ["s"]


def test_a_folder_of_slides_may_be_called_as_a_slide_elsewhere(tiny, tmp_path):
    write_slide(tmp_path / "case", "s.tif")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "case.mrxs").touch()
    found = run([tmp_path / "case", tmp_path / "other" / "case.mrxs"], [tiny], tmp_path / "out")
    assert {o.slide_id: o.status for o in found} == {"s": "done", "case": "failed"}


def test_results_do_not_go_into_a_slide(tiny, tmp_path):
    slide = tmp_path / "s.ome.zarr"
    write_omezarr(slide, 50)
    for out in (slide, slide / "results"):
        with pytest.raises(ResultError, match=r"lies in the slide .*s\.ome\.zarr.* another --out"):
            run([slide], [tiny], out)
        with pytest.raises(ResultError, match="lies in the slide"):
            sl.predict(slide, tiny, out=out, mpp=1.0)
        with sl.open_slide(slide) as opened, pytest.raises(ResultError, match="lies in the slide"):
            sl.predict(opened, tiny, out=out)
    assert [o.status for o in run([slide], [tiny], tmp_path)] == ["done"]


def test_a_table_of_labels_chooses_the_slides(tiny, tmp_path):
    slides = tmp_path / "slides"
    for i in range(4):
        write_slide(slides, f"s{i}.tif", i)
    labels = tmp_path / "labels.csv"
    # One class alone, and none of the model's: only the names of the slides matter here.
    labels.write_text("slide_id,label,split\ns3.tif,odd,test\ns0,odd,train\ns1,odd,test\n")

    def ids(folder: str, **options: str) -> list[str]:
        return [o.slide_id for o in run(slides, tiny, tmp_path / folder, labels=labels, **options)]

    assert ids("test", split="test") == ["s3", "s1"]
    assert ids("all") == ["s3", "s0", "s1"]
    twice = [slides / "s1.tif", slides, slides.parent / "slides" / ".." / "slides" / "s2.tif"]
    assert [o.slide_id for o in run(twice, tiny, tmp_path / "twice")] == ["s1", "s0", "s2", "s3"]
    labels.write_text("slide_id,label,split\ns3,,test\ns0,odd,train\n")  # not labelled yet
    assert ids("unlabelled", split="test") == ["s3"]
    labels.write_text("slide_id,split\ns3,test\ns0,train\ns1,test\n")
    with labels.open("a") as file:
        file.write("gone,test\naway,test\nelsewhere,train\n")
    for options, message in (
        ({"split": "test"}, r"no slide for gone, away; found 4 slides"),
        ({"split": "tune"}, r"no slide in split tune; found test \(4\), train \(2\)\."),
    ):
        with pytest.raises(LabelError, match=message):
            ids("refused", **options)
    with pytest.raises(ValueError, match="'test' needs the labels"):
        predict_cohort(slides, tiny, tmp_path / "refused", split="test")
    assert not (tmp_path / "refused").exists()


def test_a_result_that_lost_a_map_is_made_again(tiny, tmp_path):
    path, out = write_slide(tmp_path, "s.tif"), tmp_path / "out"
    run([path], [tiny], out)
    maps = next((out / "tiny-model" / "s").rglob("*/zarr.json"))
    shutil.rmtree(maps.parent.parent)
    assert [o.status for o in run([path], [tiny], out)] == ["done"]
    assert [o.status for o in run([path], [tiny], out)] == ["skipped"]


def test_a_slide_that_may_not_be_looked_at_is_a_failure_with_its_reason(tiny, tmp_path):
    (only,) = run(["x" * 300 + ".svs"], [tiny], tmp_path)
    assert only.status == "failed"
    assert "cannot be read (File name too long)" in only.error
    if os.name != "posix":  # Windows asks for a privilege
        return
    circle = tmp_path / "circle.svs"
    circle.symlink_to(circle)
    with pytest.raises(SlideNotFoundError, match="no such file"):
        run([circle], [tiny], tmp_path)
    with pytest.raises(SlideNotFoundError, match="no such file"):
        sl.predict(circle, tiny, out=tmp_path)


@pytest.mark.parametrize("later", [False, True], ids=["this Python", "3.14"])
def test_a_folder_that_may_not_be_looked_into_is_a_sentence(tmp_path, monkeypatch, caplog, later):
    if later:
        see_nothing_where_barred(monkeypatch)
    with pytest.raises(LabelError, match=r"cannot be read .*too long"):
        find_slides(tmp_path / ("x" * 300))
    write_slide(tmp_path, "s.tif")
    barred = tmp_path / "barred"
    barred.mkdir(mode=0)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    if os.name == "posix":
        with nobody(), pytest.raises(LabelError, match=r"barred/in: cannot be read .Permission"):
            find_slides(Path("barred") / "in")
        with nobody():
            assert set(find_slides(Path())) == {"s"}
        assert "not slides: barred" in caplog.text


def test_a_full_disk_ends_the_run_not_each_slide_after_its_hours(tiny, tmp_path, monkeypatch):
    slides = [write_slide(tmp_path, f"s{i}.tif", i) for i in range(3)]
    out = tmp_path / "out"
    original = sl.Result.save

    def save(self, folder):
        if self.slide.id == "s0":
            return original(self, folder)
        with monkeypatch.context() as full:
            full.setattr("slidelens.maps.ngff.write_maps", no_room)
            return original(self, folder)

    def no_room(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sl.Result, "save", save)
    ends: list[Outcome] = []
    events = predict_cohort(slides, tiny, out, mpp=1.0, tissue=WHOLE)
    with pytest.raises(ResultError, match=r"s1: cannot write the result \(No space left"):
        ends.extend(event for event in events if isinstance(event, Outcome))
    found = [(o.slide_id, o.status, o.left) for o in ends]
    assert found == [("s0", "done", 2), ("s1", "failed", 1)]
    assert {row["status"] for row in table(out).values()} == {"done", "failed"}


def test_a_slide_that_finds_no_room_for_its_claim_is_not_computed(tiny, tmp_path, monkeypatch):
    slides, out = [write_slide(tmp_path, f"s{i}.tif", i) for i in range(2)], tmp_path / "out"
    events = predict_cohort(slides, tiny, out, mpp=1.0, tissue=WHOLE)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("slidelens.engine.turns.claimed", full)
    only = next(events)
    assert (only.slide_id, only.status) == ("s0", "failed")
    with pytest.raises(ResultError, match=r"s0: cannot write the result \(No space left"):
        next(events)


def test_a_table_that_a_spreadsheet_has_open_ends_no_run(tiny, tmp_path, monkeypatch, caplog):
    """On Windows it cannot be replaced meanwhile."""
    slides = [write_slide(tmp_path, f"s{i}.tif", i) for i in range(3)]
    out = tmp_path / "out"
    original = prediction_table.write_atomic

    def write(path, text):
        if "s2" not in text:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        original(path, text)

    monkeypatch.setattr(prediction_table, "write_atomic", write)
    assert [o.status for o in run(slides, [tiny], out)] == ["done"] * 3
    assert caplog.text.count("close the program that has it open") == 2
    assert set(table(out)) == {"s0", "s1", "s2"}

    monkeypatch.setattr(prediction_table, "write_atomic", lambda *_: write("", ""))
    with pytest.raises(ResultError, match="cannot write the table"):
        run(slides, [tiny], out)
    events = predict_cohort(slides, [tiny], out, mpp=1.0, tissue=WHOLE, overwrite=True)
    while not isinstance(next(events), Outcome):
        pass
    caplog.clear()
    events.close()  # as after Ctrl-C, which would not be what ends the program then
    assert caplog.text.count("cannot write the table") == 1


def test_a_table_that_cannot_be_written_costs_no_row_of_another(tiny, tmp_path, monkeypatch):
    slides = [write_slide(tmp_path, f"s{i}.tif", i) for i in range(3)]
    models, out = [tiny, make_model(name="second", seed=1)], tmp_path / "out"
    run(slides, models, out)
    (out / "second" / "predictions.csv").unlink()
    original = prediction_table.write_atomic

    def write(path, text):
        if path.parent.name == "tiny-model":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        original(path, text)

    monkeypatch.setattr(prediction_table, "write_atomic", write)
    with pytest.raises(ResultError, match=r"tiny-model.predictions\.csv: cannot write"):
        run(slides, models, out)  # all are skipped: rows wait for the end
    assert set(table(out, "second")) == {"s0", "s1", "s2"}
