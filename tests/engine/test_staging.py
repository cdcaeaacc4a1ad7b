"""From saved results to slide classes, pN stages, kappa and FROC, through the commands."""

from __future__ import annotations

import csv
import json
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from slidelens.cli.app import program
from slidelens.engine.staging.node_features import FEATURES, node_features
from slidelens.engine.staging.stage import fit_staging, stage_patients
from slidelens.errors import LabelError, ModelError, ResultError
from slidelens.export.camelyon17 import StageTable, read_stages, write_stages
from slidelens.geometry import Affine, Mpp
from slidelens.maps.map import Map
from slidelens.maps.regions import positive_regions
from slidelens.maps.result import ModelInfo, Result, SlideInfo

MPP = Mpp(0.5, 0.5)
CELL = 200  # level-0 px: 0.1 mm
LENGTHS = {"negative": 0, "itc": 1, "micro": 8, "macro": 25}
"""Cells of 0.1 mm in the row that is the largest lesion."""


def _result(slide_id, length, model="m", seed=0, high=0.9):
    random = np.random.default_rng(seed)
    tumour = random.uniform(0, 0.3, (30, 40))
    tumour[5, 3 : 3 + length] = high
    planes = np.stack([1 - tumour, tumour])
    source = Map.from_array(
        "probability", "probability", ("normal", "tumour"), planes, Affine(CELL, CELL), MPP
    )
    regions = positive_regions(source)
    info = SlideInfo(id=slide_id, path="x", width=8000, height=6000, mpp=0.5, mpp_source="file")
    scores = {"normal": 1 - tumour.max(), "tumour": tumour.max()}
    return Result(info, ModelInfo(name=model), scores, maps=[source], regions=regions)


PATIENTS = {
    "patient_000": ("negative", "negative"),
    "patient_001": ("itc", "negative"),
    "patient_002": ("micro", "itc"),
    "patient_003": ("macro", "micro"),
    "patient_004": ("macro",) * 4,
}
STAGES = ["pN0", "pN0(i+)", "pN1mi", "pN1", "pN2"]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Results of five patients, one of each stage, and CAMELYON17's table of them."""
    folder = tmp_path_factory.mktemp("cohort")
    nodes = {
        patient: {f"{patient}_node_{n}": found for n, found in enumerate(classes)}
        for patient, classes in PATIENTS.items()
    }
    number = 0
    for of_patient in nodes.values():
        for slide_id, found in of_patient.items():
            number += 1
            result = _result(slide_id, LENGTHS[found], seed=number)
            result.save(folder / "results" / "m" / slide_id)
    stages = dict(zip(PATIENTS, STAGES, strict=True))
    write_stages(folder / "stages.csv", StageTable(stages, nodes))
    return folder


def _run(*words):
    return CliRunner().invoke(program(), [str(word) for word in words], catch_exceptions=False)


def test_the_table_is_written_as_camelyon17_writes_it(cohort):
    rows = list(csv.reader((cohort / "stages.csv").open()))
    assert rows[:4] == [
        ["patient", "stage"],
        ["patient_000.zip", "pN0"],
        ["patient_000_node_0.tif", "negative"],
        ["patient_000_node_1.tif", "negative"],
    ]
    table = read_stages(cohort / "stages.csv")
    assert list(table.stages.values()) == STAGES
    assert {p: tuple(n.values()) for p, n in table.nodes.items()} == PATIENTS


def test_stages_by_the_largest_lesion(cohort, tmp_path):
    out = tmp_path / "pn.csv"
    done = _run("stage", "patients", cohort / "results", "--out", out)
    assert done.exit_code == 0
    assert "patient_003: pN1 (macro, micro)" in done.output
    assert out.read_bytes() == (cohort / "stages.csv").read_bytes()


def test_known_stages_give_kappa(cohort, tmp_path):
    truth = read_stages(cohort / "stages.csv")
    worse = StageTable({**truth.stages, "patient_000": "pN2"}, truth.nodes)
    write_stages(tmp_path / "truth.csv", worse)
    staged = stage_patients(cohort / "results", tmp_path / "o.csv", truth=tmp_path / "truth.csv")
    assert staged.metrics["slide_kappa"] == staged.metrics["slide_accuracy"] == 1
    assert staged.metrics["stage_accuracy"] == 0.8
    assert staged.metrics["stage_kappa"] == pytest.approx(1 - 16 / (100 / 5 + 24 / 5), abs=0.2)
    assert np.trace(staged.metrics["slide_confusion"]) == 12


def test_a_kappa_that_is_not_defined_is_null(tmp_path):
    _result("p_node_0", 0).save(tmp_path / "r" / "m" / "p_node_0")
    (tmp_path / "truth.csv").write_text("patient,stage\np.zip,pN0\np_node_0.tif,negative\n")
    words = ["stage", "patients", tmp_path / "r", "--truth", tmp_path / "truth.csv"]
    words += ["--out", tmp_path / "pn.csv"]
    assert "kappa: not defined of 1 patients, not defined of 1 slides" in _run(*words).output

    def refuse(text):
        raise AssertionError(text)

    facts = json.loads(_run(*words, "--json").output, parse_constant=refuse)
    assert facts["stage_kappa"] is facts["slide_kappa"] is None


def test_a_forest_learns_the_classes_and_is_read_back(cohort, tmp_path):
    done = _run(
        "stage",
        "fit",
        cohort / "results",
        "--stages",
        cohort / "stages.csv",
        "--out",
        tmp_path / "f",
    )
    assert done.exit_code == 0
    assert "fitted to 3 negative, 2 itc, 2 micro, 5 macro" in done.output
    fit = ("stage", "fit", cohort / "results", "--stages", cohort / "stages.csv")
    with pytest.raises(ResultError, match="which would be lost"):
        _run(*fit, "--out", cohort / "results")
    done = _run(
        *("stage", "patients", cohort / "results", "--forest", tmp_path / "f", "--json"),
        *("--truth", cohort / "stages.csv", "--out", tmp_path / "pn.csv"),
    )
    found = json.loads(done.output)
    assert found["stage_kappa"] == 1
    assert found["stages"] == dict(zip(PATIENTS, STAGES, strict=True))


def test_without_scikit_learn_the_extra_is_named_and_no_table_blamed(cohort, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ModelError, match=r"^fitting .*: pip install 'slidelens\[staging\]'\.$"):
        fit_staging(cohort / "results" / "m", cohort / "stages.csv", tmp_path / "forest")


def test_figures_of_a_map():
    figures = node_features(_result("s", 8))
    assert tuple(figures) == FEATURES
    assert figures["highest"] == pytest.approx(0.9)
    assert figures["lesions_0.5"] == 1
    assert figures["area_0.5"] == pytest.approx(0.08)
    assert figures["largest_0.5"] == pytest.approx(np.hypot(0.8, 0.1))
    assert figures["share_0.5"] == pytest.approx(8 / 1200)
    assert figures["second_0.5"] == 0
    assert set(node_features(_result("s", 0)).values()) >= {0.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide,label\n", "expected the header patient,stage"),
        ("patient,stage\na.tif,itc\n", "row 2: slide a stands before any patient"),
        ("patient,stage\np.zip,pN0\np.zip,pN0\n", "row 3: p is there twice"),
        ("patient,stage\np.zip\n", "row 2 is not a pair"),
        ("patient,stage\np.zip,pN0\na.tif,big\n", r"slides of classes other than .*: a \(big\)"),
        ("patient,stage\np.zip,N1\na.tif,itc\n", r"stages other than .*: p \(N1\)"),
        ("patient,stage\np.zip,pN0\n", "patients without a slide: p"),
        ("patient,stage\np.zip,pN0\na.tif,itc\n", "slides without a result: a"),
    ],
)
def test_tables_that_do_not_fit_are_refused(cohort, tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(LabelError, match=message):
        stage_patients(cohort / "results", tmp_path / "o.csv", truth=tmp_path / "t.csv")
    with pytest.raises(LabelError):
        fit_staging(cohort / "results", tmp_path / "t.csv", tmp_path / "f")


def test_results_that_cannot_be_staged_are_refused(cohort, tmp_path):
    for patient in "pq":
        for n in range(10):
            one = _result(f"{patient}_node_{n}", LENGTHS["micro"])
            one.save(tmp_path / "many" / "m" / one.slide.id)
    with pytest.raises(LabelError, match=r"p \(10 nodes.*\), q \(10 nodes.*\); take their slides"):
        stage_patients(tmp_path / "many", tmp_path / "o.csv")
    _result("elsewhere", 3).save(tmp_path / "r" / "m" / "elsewhere")
    with pytest.raises(LabelError, match="which patient are these slides of: elsewhere"):
        stage_patients(tmp_path / "r", tmp_path / "o.csv")
    _result("elsewhere", 3, model="n").save(tmp_path / "r" / "n" / "elsewhere")
    with pytest.raises(ResultError, match="results of m, n; expected those of one model"):
        stage_patients(tmp_path / "r", tmp_path / "o.csv")


def _annotate(folder, slide_id, left, right, label="Tumour"):
    ring = [[left, 1000], [right, 1000], [right, 1200], [left, 1200], [left, 1000]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": label}},
    }
    folder.mkdir(exist_ok=True)
    text = json.dumps({"type": "FeatureCollection", "features": [feature]})
    (folder / f"{slide_id}.geojson").write_text(text)


def test_lesions_are_measured_by_froc(tmp_path):
    for slide_id, length in (("a", 8), ("b", 5), ("c", 3)):
        _result(slide_id, length, seed=ord(slide_id)).save(tmp_path / "r" / "m" / slide_id)
    (tmp_path / "labels.csv").write_text("slide_id,label\na,tumour\nb,tumour\nc,normal\n")
    _annotate(tmp_path / "ann", "a", 600, 2200)  # where its lesion is
    _annotate(tmp_path / "ann", "b", 5000, 7000)  # elsewhere
    words = ["lesions", tmp_path / "r", "--labels", tmp_path / "labels.csv"]
    words += ["--annotations", tmp_path / "ann", "--out", tmp_path / "o", "--radius", 2000]
    done = _run(*words)
    assert done.exit_code == 0
    assert "2 lesions on 3 slides" in done.output
    facts = json.loads((tmp_path / "o" / "froc.json").read_text())
    # All three peaks are at 0.9: one hit, two false, so half the lesions at 2/3 per slide.
    assert facts["curve"][1] == [pytest.approx(2 / 3), 0.5]
    assert facts["sensitivity_at"]["1"] >= 0.5
    assert (tmp_path / "o" / "froc.png").stat().st_size > 5000
    first = (tmp_path / "o" / "detections" / "a.csv").read_text().splitlines()[0]
    assert first == "0.9,700,1100"
    assert _run(*words).exit_code == 0  # in the place of what it wrote
    with pytest.raises(ResultError, match=r"holds other files \(m\), which would be lost"):
        _run(*words[:-4], "--out", tmp_path / "r")
    assert (tmp_path / "r" / "m" / "a").exists()


def test_lesions_of_a_split_or_of_what_there_is_are_measured(tmp_path):
    _result("a", 8).save(tmp_path / "r" / "m" / "a")
    labels = "slide_id,label,split\na,tumour,tune\nb,tumour,train\nc,normal,tune\n"
    (tmp_path / "labels.csv").write_text(labels)
    _annotate(tmp_path / "ann", "a", 600, 2200)
    words = ["lesions", tmp_path / "r", "--labels", tmp_path / "labels.csv"]
    words += ["--annotations", tmp_path / "ann", "--out", tmp_path / "o", "--json"]
    with pytest.raises(LabelError, match=r"labelled, no result: b, c"):
        _run(*words)
    with pytest.raises(LabelError, match=r"labelled, no result: c"):
        _run(*words, "--split", "tune")
    found = json.loads(_run(*words, "--split", "tune", "--allow-missing").output)
    assert (found["slides"], found["lesions"], found["split"]) == (1, 1, "tune")
    assert found["left_out"] == {"no_label": [], "no_result": ["c"]}


def test_of_three_classes_only_the_last_has_lesions(tmp_path):
    """What is drawn on a slide of the middle class is no lesion, whatever it is called."""
    for slide_id, length in (("a", 8), ("b", 3)):
        result = _result(slide_id, length)
        result.probabilities = {"normal": 0.1, "benign": 0.2, "tumour": 0.7}
        result.save(tmp_path / "r" / "m" / slide_id)
    (tmp_path / "labels.csv").write_text("slide_id,label\na,tumour\nb,benign\n")
    _annotate(tmp_path / "ann", "a", 600, 2200)
    _annotate(tmp_path / "ann", "b", 600, 2200, "Benign")
    words = ["lesions", tmp_path / "r", "--labels", tmp_path / "labels.csv"]
    words += ["--annotations", tmp_path / "ann", "--out", tmp_path / "o"]
    assert "1 lesions on 2 slides" in _run(*words).output
    _annotate(tmp_path / "ann", "b", 600, 2200)
    with pytest.raises(LabelError, match="b: labelled 'benign', but 1 annotations of it are 'Tum"):
        _run(*words)


def test_lesions_that_are_drawn_nowhere_are_refused(tmp_path):
    for slide_id in "ab":
        _result(slide_id, 8).save(tmp_path / "r" / "m" / slide_id)
    (tmp_path / "labels.csv").write_text("slide_id,label\na,tumour\nb,tumour\n")
    _annotate(tmp_path / "ann", "a", 200_000, 200_100)
    (tmp_path / "ann" / "b.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    words = ["lesions", tmp_path / "r", "--labels", tmp_path / "labels.csv"]
    with pytest.raises(LabelError, match=r"2 files(.|\n)*a: .*outside(.|\n)*b: .*no tumour is"):
        _run(*words, "--annotations", tmp_path / "ann", "--out", tmp_path / "o")


def test_what_tumour_is_called_is_one_question_for_all_files(tmp_path):
    for slide_id in "abc":
        _result(slide_id, 8).save(tmp_path / "r" / "m" / slide_id)
    (tmp_path / "labels.csv").write_text("slide_id,label\na,tumour\nb,tumour\nc,normal\n")
    words = ["lesions", tmp_path / "r", "--labels", tmp_path / "labels.csv"]
    words += ["--annotations", tmp_path / "ann", "--out", tmp_path / "o"]
    _annotate(tmp_path / "ann", "a", 600, 2200, "Met")
    _annotate(tmp_path / "ann", "b", 600, 2200, "Necrosis")
    said = r"'Met' on a\.geojson; 'Necrosis' on b\.geojson\. Say which are tumour with --tumour"
    with pytest.raises(LabelError, match=said):
        _run(*words)
    with pytest.raises(LabelError, match=r"b: .* no annotation is of class 'Met'; there are 'Ne"):
        _run(*words, "--tumour", "Met")
    _annotate(tmp_path / "ann", "b", 600, 2200, "Met")
    assert "2 lesions on 3 slides" in _run(*words).output
    _annotate(tmp_path / "ann", "c", 600, 2200, "Met")
    with pytest.raises(LabelError, match="c: labelled 'normal', but 1 annotations of it are 'Met'"):
        _run(*words)


def test_two_results_of_a_slide_are_not_staged(tmp_path):
    for run, length in (("one", 8), ("two", 3)):
        _result("p_node_0", length).save(tmp_path / "r" / run / "m" / "p_node_0")
    with pytest.raises(ResultError, match=r"slide p_node_0: results in .* and .*; keep one"):
        stage_patients(tmp_path / "r", tmp_path / "o.csv")


def test_lesions_without_annotations_are_listed(tmp_path):
    for slide_id in "ab":
        _result(slide_id, 4).save(tmp_path / "r" / "m" / slide_id)
    (tmp_path / "labels.csv").write_text("slide_id,label\na,tumour\nb,tumour\n")
    (tmp_path / "ann").mkdir()
    words = [
        "lesions",
        tmp_path / "r",
        "--labels",
        tmp_path / "labels.csv",
        "--out",
        tmp_path / "o",
    ]
    with pytest.raises(LabelError, match="for 2 positive slides: a, b"):
        _run(*words, "--annotations", tmp_path / "ann")
    _annotate(tmp_path / "ann", "a", 0, 500)
    _annotate(tmp_path / "ann", "b", 0, 500)
    with pytest.raises(LabelError, match=r"2 files cannot be used(.|\n)* with --tumour NAME \("):
        _run(*words, "--annotations", tmp_path / "ann", "--tumour", "cancer")
