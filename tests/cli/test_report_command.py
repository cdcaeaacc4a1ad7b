import json
import re
from pathlib import Path

import pytest


def test_the_report_is_written_and_told(slidelens, folder, tmp_path):
    out = tmp_path / "new" / "report.html"
    slidelens("review", folder, "set", "b", "--category", "Inflammation", "--reviewer", "ann")
    done = slidelens("report", folder, "--out", out, "--title", "Board <7>", "--json")
    assert done.code == 0
    told = json.loads(done.out)
    assert (told["html"], told["pdf"]) == (str(out), None)
    assert (told["errors"], told["slides"], told["decided"]) == (6, 4, 2)
    assert len(told["notes"]) == 4  # these results hold no maps
    text = out.read_text()
    assert "<title>Board &lt;7&gt;</title>" in text
    assert "Inflammation" in text


def test_a_folder_takes_the_report_under_its_usual_name(slidelens, folder, tmp_path):
    (tmp_path / "there").mkdir()
    for place in (tmp_path / "there", f"{tmp_path}/new/"):
        done = slidelens("report", folder, "--out", place, "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out)["html"] == str(Path(place) / "report.html")
        assert (Path(place) / "report.html").is_file()


def test_options_reach_the_report(slidelens, folder, tmp_path):
    out = tmp_path / "r.html"
    points = ("--operating-point", "max-accuracy", "--operating-point", "weak:0.95")
    done = slidelens("report", folder, "--out", out, *points, "--identify", "--near", "0")
    assert done.code == 0
    assert "4 errors on 4 slides, 0 decided" in done.out  # good errs on b, weak on d, e and f
    text = out.read_text()
    assert re.findall(r'href="#case-\d+">(\w+)<', text) == ["e", "d", "f", "b"]
    assert "Near misses" not in text


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--operating-point", "best"), 2, "expected stored, max-accuracy"),
        (("--operating-point", "x:0.5"), 2, "no model 'x'"),
        (("--fields", "0"), 2, "--fields"),
        (("--reviewer", "cy"), 1, "no decision by 'cy'"),
        (("--slides", "nowhere"), 1, "nowhere: no such folder of slides"),
        (("--model", "nowhere"), 1, "nowhere is not a model package"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(slidelens, folder, tmp_path, arguments, code, said):
    done = slidelens("report", folder, "--out", tmp_path / "r.html", *arguments)
    assert done.code == code
    assert said in " ".join(done.err.split())
    assert not (tmp_path / "r.html").exists()


def test_a_folder_that_is_no_evaluation_is_named(slidelens, tmp_path):
    done = slidelens("report", tmp_path, "--out", tmp_path / "r.html")
    assert done.code == 1
    assert "expected a folder written by `slidelens evaluate --out`" in done.err


def test_no_file_of_the_evaluation_is_replaced(slidelens, folder, tmp_path):
    before = (folder / "metrics.json").read_bytes()
    for option in ("--out", "--pdf"):
        done = slidelens("report", folder, "--out", tmp_path / "r", option, folder / "metrics.json")
        assert done.code == 1
        assert "metrics.json: is a file of the evaluation itself" in done.err
    assert (folder / "metrics.json").read_bytes() == before


def test_html_is_not_written_into_a_pdf(slidelens, folder, tmp_path):
    done = slidelens("report", folder, "--out", tmp_path / "a.PDF")
    assert (done.code, "name the PDF with --pdf" in " ".join(done.err.split())) == (2, True)
    assert not (tmp_path / "a.PDF").exists()


def test_html_and_pdf_are_two_files(slidelens, folder, tmp_path):
    place = tmp_path / "r.html"
    done = slidelens("report", folder, "--out", place, "--pdf", tmp_path / "eval" / ".." / "r.html")
    assert done.code == 1
    assert "r.html: cannot be both the HTML and the PDF file" in done.err
    assert not place.exists()
