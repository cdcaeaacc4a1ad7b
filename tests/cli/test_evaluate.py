import json

import pytest
from typer.testing import CliRunner

from slidelens.cli.app import app, run
from slidelens.errors import LabelError


@pytest.fixture
def given(tmp_path):
    """Arguments for four slides of one model that errs once."""
    for slide_id, p in {"a": 0.2, "b": 0.6, "c": 0.7, "d": 0.9}.items():
        folder = tmp_path / "results" / "m" / slide_id
        folder.mkdir(parents=True)
        content = {
            "slide": {"id": slide_id},
            "model": {"name": "m"},
            "probabilities": {"normal": 1 - p, "tumor": p},
        }
        (folder / "result.json").write_text(json.dumps(content))
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id,label\na,0\nb,0\nc,1\nd,1\n")
    out = tmp_path / "eval"
    return [
        *("evaluate", str(tmp_path / "results"), "--labels", str(labels), "--out", str(out)),
        *("--resamples", "200"),
    ]


def test_json_is_the_file_and_notes_go_to_stderr(given, tmp_path):
    done = CliRunner().invoke(app, [*given, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads((tmp_path / "eval/metrics.json").read_text())
    assert "no threshold is stored" in done.stderr


def test_text_is_the_table_of_models(given):
    done = CliRunner().invoke(app, given)
    assert done.stdout.splitlines()[2].startswith("| m | 4 | 1.000")


def test_options_reach_the_evaluation(given, tmp_path):
    more = ["--operating-point", "0.65", "--seed", "7", "--json"]
    done = CliRunner().invoke(app, [*given, *more])
    metrics = json.loads(done.stdout)
    assert metrics["interval"] == {"resamples": 200, "seed": 7, "level": 0.95}
    assert metrics["models"]["m"]["accuracy"] == 1.0
    assert metrics["models"]["m"]["threshold"] == 0.65

    (tmp_path / "labels.csv").write_text("slide_id,label,split\na,0,test\nb,0,test\nc,1,test\n")
    refused = CliRunner().invoke(app, given)
    assert isinstance(refused.exception, LabelError)
    taken = CliRunner().invoke(app, [*given, "--allow-missing", "--split", "test", "--json"])
    assert json.loads(taken.stdout)["models"]["m"]["n"] == 3

    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/c.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    tiles = ["--annotations", str(tmp_path / "annotations"), "--tile-overlap", "0.2"]
    done = CliRunner().invoke(app, [*given, "--allow-missing", *tiles, "--json"])
    assert json.loads(done.stdout)["models"]["m"]["tiles"]["overlap"] == 0.2


def test_bad_usage_is_two_and_a_mistake_in_the_input_is_one(given, monkeypatch, capsys):
    done = CliRunner().invoke(app, [*given, "--operating-point", "best"])
    assert done.exit_code == 2
    assert "expected stored, max-accuracy" in done.stderr
    given[1] += "-nowhere"
    monkeypatch.setattr("sys.argv", ["slidelens", *given])
    with pytest.raises(SystemExit) as left:
        run()
    assert left.value.code == 1
    assert "no such folder" in capsys.readouterr().err
