import json
import os

import pytest


def write_results(home, model):
    for slide_id, p in {"a": 0.2, "b": 0.6, "c": 0.7, "d": 0.9}.items():
        folder = home / "results" / model / slide_id
        folder.mkdir(parents=True)
        content = {
            "slide": {"id": slide_id},
            "model": {"name": model},
            "probabilities": {"normal": 1 - p, "tumor": p},
        }
        (folder / "result.json").write_text(json.dumps(content))


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Arguments for four slides of one model that errs once; no picture is looked at."""
    monkeypatch.setattr("slidelens.engine.evaluate._pictures", lambda *_: {})
    write_results(tmp_path, "m")
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id,label\na,0\nb,0\nc,1\nd,1\n")
    return [
        *("evaluate", tmp_path / "results", "--labels", labels, "--out", tmp_path / "eval"),
        *("--resamples", 200),
    ]


def test_json_is_the_file_and_notes_go_to_stderr(slidelens, given, tmp_path):
    done = slidelens(*given, "--json")
    assert done.code == 0
    assert json.loads(done.out) == json.loads((tmp_path / "eval/metrics.json").read_text())
    assert "no threshold is stored" in done.err


def test_text_is_the_table_of_models(slidelens, given):
    assert slidelens(*given).out.splitlines()[2].startswith("| m | 4 | 1.000")


def test_options_reach_the_evaluation(slidelens, given, tmp_path):
    metrics = json.loads(slidelens(*given, "--operating-point=0.65", "--seed=7", "--json").out)
    assert metrics["interval"] == {"resamples": 200, "seed": 7, "level": 0.95}
    assert metrics["models"]["m"]["accuracy"] == 1.0
    assert metrics["models"]["m"]["threshold"] == 0.65

    (tmp_path / "labels.csv").write_text("slide_id,label,split\na,0,test\nb,0,tune\nc,1,test\n")
    refused = slidelens(*given)
    assert refused.code == 1
    assert "m: results without a label: d" in refused.err
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/c.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    more = ["--annotations", tmp_path / "annotations", "--tile-overlap=0.2", "--json"]
    done = slidelens(*given, "--allow-missing", "--split=test", *more)
    one = json.loads(done.out)["models"]["m"]
    assert one["n"] == 2
    assert one["tiles"]["overlap"] == 0.2


def test_bad_usage_is_two_and_a_mistake_in_the_input_is_one(slidelens, given):
    refused = slidelens(*given, "--operating-point", "best")
    assert refused.code == 2
    assert "expected stored, max-accuracy" in " ".join(refused.err.split())
    given[1] = "nowhere"
    refused = slidelens(*given)
    assert refused.code == 1
    assert "error: nowhere: no such folder" in refused.err


def test_decisions_of_other_weights_are_told_wherever_they_count(slidelens, given, tmp_path):
    def weigh(digest):
        for path in (tmp_path / "results").rglob("result.json"):
            content = json.loads(path.read_text())
            content["model"]["sha256"] = digest * 64
            path.write_text(json.dumps(content))
        return slidelens(*given)

    told = "m: 1 decision was made when the model had other weights"
    review = ("review", tmp_path / "eval")
    weigh("1")
    slidelens(*review, "set", "b", "--category", "Inflammation", "--reviewer", "ann")
    assert told not in weigh("1").err
    assert told in weigh("2").err
    assert told in weigh("2").err  # not only the first time
    assert told in slidelens(*review, "list").err
    slidelens(*review, "set", "b", "--category", "Tissue artefacts", "--reviewer", "ann")
    assert told not in slidelens(*review, "list").err
    assert told not in weigh("2").err
    assert told in weigh("1").err
    (tmp_path / "results" / "m").rename(tmp_path / "away")  # for once
    write_results(tmp_path, "n")
    assert told not in slidelens(*given).err
    (tmp_path / "away").rename(tmp_path / "results" / "m")
    assert told in weigh("2").err


def test_a_review_that_is_damaged_stops_no_evaluation(slidelens, given, tmp_path):
    slidelens(*given)
    (tmp_path / "eval" / "review.sqlite").write_bytes(b"no database" * 100)
    done = slidelens(*given)
    assert done.code == 0
    assert done.out.splitlines()[2].startswith("| m | 4 | 1.000")
    assert "review.sqlite: is not a review, or is damaged" in done.err


def test_names_that_cannot_be_written_are_told_in_a_sentence(slidelens, given, tmp_path):
    """Where the system takes file names for ASCII, those with other letters are no text."""
    folder = tmp_path / "results" / "m"
    (folder / "a").rename(folder / os.fsdecode(b"\xe4"))
    done = slidelens(*given)
    assert done.code == 1
    assert "set LC_ALL=C.UTF-8" in done.err
    assert not (tmp_path / "eval" / "metrics.json").exists()


def test_control_characters_of_others_do_not_reach_the_terminal(slidelens, tmp_path):
    done = slidelens("package", "verify", tmp_path / "no\x1b[31m")
    assert done.code == 1
    assert "no\N{REPLACEMENT CHARACTER}[31m" in done.err
