"""What a report says of how its methods were run, and how to run them again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sample_evaluation import SCORES, TRUTH, evaluated
from slidelens.engine.evaluate import EvaluationOptions, evaluate
from slidelens.engine.evaluation.measure import Resampling
from slidelens.maps.run_settings import HIDDEN, RunSettings
from slidelens.review.commands import commands_of
from slidelens.review.content import ReportOptions, gather
from slidelens.review.evaluation import read_evaluation
from slidelens.review.report import write_report
from slidelens.review.wording import describe_run
from slidelens.tiling.tissue import TissueSettings

pytestmark = pytest.mark.usefixtures("_no_pictures", "_no_plots")

DEMO = Path(__file__).parents[2] / "models" / "demo-mil" / "model.json"
PART = {"region": [0, 0, 512, 512.5], "options": {"overlap": 28}, "precision": "fp32"}


def tell(folder, model, slides, slide=None, **settings):
    """Write settings into the results of slides, and facts of the slides."""
    for slide_id in slides:
        file = folder / "results" / model / slide_id / "result.json"
        content = json.loads(file.read_text())
        if settings:
            config = {"tile": 112, "mpp": 1.0, "overlap": 84} | settings.get("options", {})
            content["settings"] = {"config": config, **settings}
        content["slide"] |= slide or {}
        file.write_text(json.dumps(content))


def report(folder, tmp_path, **options):
    out = tmp_path / "report.html"
    write_report(folder / "eval", out, options=ReportOptions(fields=1, **options))
    text = re.sub(r"<[^>]+>", " ", out.read_text().replace("data:image", "\n"))
    return " ".join(text.replace("&#39;", "'").split())


def commands(folder, **options):
    content = gather(read_evaluation(folder / "eval"), ReportOptions(**options))
    return commands_of(content).split("\n"), content.names


@pytest.fixture
def folder(tmp_path):
    """Results of the bundled model's weights, of a run with a region and options."""
    digest = json.loads(DEMO.read_text())["weights_sha256"]
    evaluated(tmp_path, TRUTH, {"good": SCORES["good"]}, sha256=digest)
    return tmp_path


def test_how_a_slide_was_run_in_a_line():
    usual = TissueSettings().model_dump(mode="json")
    assert describe_run(RunSettings(tissue=usual)) == "whole slides"
    much = RunSettings(
        region=(0, 0.5, 1e5, 20),
        options={"overlap": 28, "bags": "/home/doe"},
        precision="fp32",
        tissue=usual | {"pen": False},
    )
    assert describe_run(much) == (
        f"region 0,0.5,100000,20, overlap 28, bags {HIDDEN}, precision fp32, tissue pen false"
    )


def test_a_report_tells_the_run_not_the_packages_settings(folder, tmp_path):
    tell(folder, "good", TRUTH, **PART)
    text = report(folder, tmp_path)
    assert "Run region 0,0,512,512.5, overlap 28, precision fp32" in text
    assert "as run: tile 112, mpp 1.0, overlap 28" in text
    assert "overlap 84" not in text
    assert "good 6 of 6 0,0,512,512.5 overlap 28 fp32 as usual of the file" in text
    assert "good: of all slides only a region was predicted" in text
    asked = "--region 0,0,512,512.5 --set overlap=28 --precision fp32"
    assert f"slidelens predict SLIDES --model good {asked} --out RESULTS" in text


def test_tile_and_resolution_are_those_that_were_used(folder, tmp_path):
    tell(folder, "good", TRUTH, options={"tile": 56, "mpp": 0.5})
    assert "Resolution 0.5 µm/px Tile 56 px (28 µm)" in report(folder, tmp_path)


def test_where_slides_were_not_run_alike_it_is_said_with_pseudonyms(folder, tmp_path):
    tell(folder, "good", "ab", **PART)
    tell(folder, "good", "cdef", precision="auto")
    text = report(folder, tmp_path)
    lines, names = commands(folder)
    (few,) = [line for line in lines if line.startswith("# SLIDES_2")]
    assert few == f"# SLIDES_2: {', '.join(names[i] for i in 'ab')}"
    assert "slidelens predict SLIDES_1 --model good --out RESULTS" in lines
    assert "Run in 2 ways; see Settings and versions" in text
    assert f"good 2 of 6: {names['a']}, {names['b']} 0,0,512,512.5 overlap 28" in text
    assert "overlap 84 (4 slides) | 28 (2 slides)" in text
    assert text.count("its slides were run with different settings") == 1


def test_what_the_evaluation_said_of_unlike_settings_is_said_once(folder, tmp_path):
    tell(folder, "good", "ab", **PART)
    tell(folder, "good", "cdef", precision="auto")
    options = EvaluationOptions(resampling=Resampling(100))
    evaluate(folder / "results", folder / "labels.csv", folder / "eval", options)
    text = report(folder, tmp_path)
    assert text.count("good: its slides were run with different settings") == 1
    assert "good, good" not in text


def test_results_of_an_older_version_are_reported_as_their_package_states_them(folder, tmp_path):
    text = report(folder, tmp_path)
    assert "Run not stated by its results" in text
    assert "from its package, as the results do not state them:" in text
    assert "# good: the results are of an older version and state neither region" in text


def test_models_that_were_run_alike_share_a_command(tmp_path):
    evaluated(tmp_path, TRUTH, SCORES)
    for model in SCORES:
        tell(tmp_path, model, TRUTH, **PART)
    lines, _ = commands(tmp_path)
    assert [line.partition(" --region")[0] for line in lines if " predict " in line] == [
        "slidelens predict SLIDES --model good --model weak"
    ]
    tell(tmp_path, "weak", TRUTH, precision="auto")
    lines, _ = commands(tmp_path)
    assert sum(" predict SLIDES " in line for line in lines) == 2


@pytest.mark.parametrize(
    ("sources", "option"),
    [
        (("SVS header", "SVS header"), ""),
        (("given", "given"), " --mpp 0.5"),
        (("objective power 20x", "SVS header"), " --mpp from-objective"),
        (("table doe_jane.csv", "SVS header"), " --mpp TABLE"),
        (("given", "SVS header"), " --mpp TABLE"),
    ],
)
def test_a_resolution_that_was_given_is_in_the_command(folder, tmp_path, sources, option):
    for slides, source in zip(("abc", "def"), sources, strict=True):
        tell(folder, "good", slides, {"mpp": 0.5, "mpp_source": source}, precision="auto")
    lines, _ = commands(folder)
    assert f"slidelens predict SLIDES --model good{option} --out RESULTS" in lines
    assert "doe" not in report(folder, tmp_path)


def test_pixels_that_are_oblong_are_given_as_two_numbers(folder):
    tell(folder, "good", TRUTH, {"mpp": [0.5, 0.25], "mpp_source": "given"}, precision="auto")
    assert " --mpp 0.5,0.25 " in commands(folder)[0][0]


def test_no_path_comes_into_a_report(folder, tmp_path):
    secret = {"table": "/home/doe/x.csv", "more": ["C:\\doe"], "note": "data/doe_jane"}
    tell(folder, "good", TRUTH, options=secret, tissue={"method": "/doe"})
    text = report(folder, tmp_path)
    assert "doe" not in text
    assert "table not shown, as it may be a path" in text
    assert "--set table=TABLE --set more=MORE --set note=NOTE" in text


def test_values_are_written_as_the_command_line_reads_them(folder):
    tell(folder, "good", TRUTH, options={"a": "it's", "b": "12", "c": [1, None], "d": True})
    (line, *_) = commands(folder)[0]
    for said in ("'a=it'\"'\"'s'", "'b=\"12\"'", "'c=[1, null]'", "d=true"):
        assert f"--set {said} " in line


def test_many_regions_are_not_listed(folder):
    for n, slide_id in enumerate(TRUTH):
        tell(folder, "good", slide_id, region=[n, 0, 5, 5])
    assert sum(" predict " in line for line in commands(folder)[0]) == 6
    from slidelens.review import commands as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_REGIONS", 5)
        remark, line, *_ = commands(folder)[0]
    assert remark.startswith("# good: REGION differs from slide to slide")
    assert line == "slidelens predict SLIDES --model good --region REGION --out RESULTS"


def test_tissue_that_the_command_line_cannot_ask_for_is_remarked(folder, tmp_path):
    tell(folder, "good", TRUTH, tissue={"method": "given"})
    assert commands(folder)[0][0].endswith("which only Python takes: method given")
    assert "auto method given of the file" in report(folder, tmp_path)


def test_options_of_evaluation_and_report_are_repeated(tmp_path):
    evaluated(tmp_path, TRUTH, {"good": SCORES["good"]})
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "d.geojson").write_text(
        '{"type": "FeatureCollection", "features": []}'
    )
    (tmp_path / "d.tif").touch()
    with (tmp_path / "labels.csv").open("a") as file:
        file.write("no_result,1\n")
    options = EvaluationOptions(
        allow_missing=True,
        resampling=Resampling(100, 3),
        annotations=tmp_path / "annotations",
        tile_overlap=0.25,
    )
    evaluate(tmp_path / "results", tmp_path / "labels.csv", tmp_path / "eval", options)
    lines, _ = commands(tmp_path, near_misses=5, title="Board's", slides=tmp_path)
    assert lines[-3] == (
        "slidelens evaluate RESULTS --labels LABELS --operating-point stored --annotations "
        "ANNOTATIONS --tile-overlap 0.25 --resamples 100 --seed 3 --allow-missing --out EVALUATION"
    )
    assert lines[-1] == (
        "slidelens report EVALUATION --fields 3 --near 5 --title 'Board'\"'\"'s' --slides SLIDES "
        "--out report.html"
    )


def test_results_that_are_others_by_now_are_told(folder, tmp_path):
    file = folder / "results" / "good" / "a" / "result.json"
    content = json.loads(file.read_text()) | {"probabilities": {"normal": 0.4, "tumor": 0.6}}
    file.write_text(json.dumps(content))
    assert "Results that have changed since the evaluation: good 1." in report(folder, tmp_path)


def test_results_that_are_gone_are_told_in_the_commands(folder):
    for file in (folder / "results").glob("*/*/result.json"):
        file.unlink()
    remark, line, *_ = commands(folder)[0]
    assert remark == "# good: its results are gone; how they were run is not known"
    assert line == "slidelens predict SLIDES --model good --out RESULTS"


def test_results_older_than_a_run_that_failed_are_told_with_pseudonyms(tmp_path):
    evaluated(tmp_path, {"doe": 0, "roe": 1}, {"good": {"doe": 0.1, "roe": 0.9}})
    table = tmp_path / "results" / "good" / "predictions.csv"
    options = EvaluationOptions(resampling=Resampling(100))
    for when in ("before", "after"):  # the evaluation
        table.write_text("slide_id,status,error\ndoe,failed,x\n")
        if when == "before":
            evaluate(tmp_path / "results", tmp_path / "labels.csv", tmp_path / "eval", options)
            table.unlink()  # what the evaluation saw counts, also if the slide was run since
        text = report(tmp_path, tmp_path)
        name = commands(tmp_path)[1]["doe"]
        assert f"good: the last run of {name} failed" in text
        assert text.count("last run of") == 1
        assert "doe" not in text
        evaluate(tmp_path / "results", tmp_path / "labels.csv", tmp_path / "eval", options)
        assert "last run of" not in report(tmp_path, tmp_path) or when == "after"
