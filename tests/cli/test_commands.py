from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import typer

from slidelens.cli.app import program
from slidelens.testing.phantom import PhantomSpec, write_cohort, write_phantom
from warm import start_warm

COMMANDS = ["info", "doctor", "demo", "models", "predict", "evaluate", "export", "view"]
INFO_KEYS = {
    "path",
    "backend",
    "width",
    "height",
    "mpp",
    "mpp_source",
    "objective_power",
    "levels",
    "properties",
    "associated_images",
}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("phantom") / "slide.tif"
    write_phantom(path, PhantomSpec(size=(1024, 896), seed=5, lesions=1, tumor_fraction=0.3))
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(slidelens, command):
    done = slidelens(command, "--help")
    assert done.code == 0
    assert f"Example: slidelens {command}" in done.out


def test_help_names_every_value_by_a_word(slidelens, monkeypatch):
    """SLIDE and DIR, in every command: not {slide}, <path> and <list[str]>."""
    monkeypatch.setattr(sys, "argv", ["slidelens", "train", "mil"])  # which makes its command
    root = typer.main.get_command(program())
    todo, seen = [(["slidelens"], root)], []
    while todo:
        words, command = todo.pop()
        todo += [([*words, name], one) for name, one in getattr(command, "commands", {}).items()]
        seen.append(" ".join(words[1:]))
        for one in command.params:
            if one.param_type_name == "argument" or not (
                one.is_flag or one.is_eager or one.type_descriptor.is_choice
            ):
                assert re.fullmatch(r"\[?[A-Z].*", one.metavar or ""), (words, one.name)
    assert {"predict", "train mil", "review set", "stage fit", "package pack"} <= set(seen)
    assert " predict [OPTIONS] SLIDE...\n" in slidelens("predict", "-h").out
    listed = slidelens("review", "eval", "set", "-h").out
    assert " review EVAL_DIR set [OPTIONS] SLIDE\n" in listed
    assert "  SLIDE  Slide id, or its name in reports (S-001).  [required]\n" in listed
    assert "  taxonomy   Print the categories" in slidelens("review", "-h").out
    assert "Missing argument 'SLIDE'" in slidelens("info").err


@pytest.mark.parametrize("family", ["local", "magnet", "mil", "multistage", "streaming"])
def test_every_family_takes_a_backbone(slidelens, family):
    assert "--backbone" in slidelens("train", family, "--help").out


def test_train_offers_every_field_of_the_family(slidelens):
    done = slidelens("train", "mil", "--help")
    assert done.code == 0
    for option in ("--slides", "--pooling", "--backbone", "--tile", "--from", "--resume"):
        assert option in done.out


def test_wrong_usage_exits_with_2(slidelens):
    assert slidelens("info").code == 2
    assert slidelens("predict", "x.svs", "--model", "m", "--out", "o", "--region", "1,2").code == 2
    wrong = slidelens("predict", "x.svs", "--model", "m", "--out", "o", "--split", "tset")
    assert wrong.code == 2
    assert "Invalid value for '--split': 'tset' is not one of 'train', 'tune'" in wrong.err
    wrong = slidelens("review", "x", "list", "--kind", "tp")
    assert "Invalid value for '--kind': 'tp' is not one of 'fp', 'fn'" in wrong.err
    wrong = slidelens("predict", "x.svs", "--model", "m", "--out", "o", "--batch-size", "all")
    assert "'--batch-size': must be a whole number, not 'all'\n" in wrong.err
    wrong = slidelens("predict", "x.svs", "--model", "m", "--out", "o", "--batch-size", "0")
    assert "'--batch-size': must be at least 1, not '0'\n" in wrong.err
    alone = slidelens("predict", "x.svs", "--model", "m", "--out", "o", "--split", "test")
    assert alone.code == 2
    assert "--split: needs --labels" in " ".join(alone.err.split())
    assert slidelens("info", "x.svs", "--mpp", "wide").code == 2
    comma = slidelens("info", "x.svs", "--mpp", "1,5")
    assert comma.code == 2
    assert "write 1.5 for a decimal number, and 1.0,5.0" in " ".join(comma.err.split())
    tiny = slidelens("info", "x.svs", "--mpp", "0.0001")
    assert tiny.code == 2
    assert "from 0.01 to 1000" in " ".join(tiny.err.split())


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["info", ""], "an argument is empty"),
        (["info", "--json", ""], "an argument is empty"),
        (["predict", "x.svs", "--model", "m", "--out", ""], "--out is empty"),
        (["predict", "x.svs", "--model", "m", "--out="], "--out is empty"),
        (["export", "r", "--to", "geojson", "--out", ""], "--out is empty"),
    ],
)
def test_what_is_empty_is_no_path_of_the_working_folder(slidelens, words, what):
    done = slidelens(*words)
    assert done.code == 2
    assert f"{what}; was a variable" in " ".join(done.err.split())


def test_version(slidelens):
    import slidelens as package

    assert slidelens("--version").out.strip() == f"slidelens {package.__version__}"


@pytest.mark.realdata
def test_info_json_has_the_keys_of_the_contract(slidelens, data):
    done = slidelens("info", data / "wsi" / "CMU-1-Small-Region.svs", "--json")
    facts = json.loads(done.out)
    assert set(facts) == INFO_KEYS
    assert (facts["width"], facts["height"]) == (2220, 2967)
    assert facts["mpp"] == pytest.approx(0.499)
    assert facts["levels"] == [{"downsample": 1.0, "width": 2220, "height": 2967}]


def test_what_is_odd_about_a_slide_is_a_row_or_beside_the_json(slidelens, tmp_path):
    path = tmp_path / "deep.tif"
    deep = np.full((64, 64, 3), 4095, np.uint16)
    tifffile.imwrite(path, deep, photometric="rgb", bitspersample=12)
    assert "\nnote        " in slidelens("info", path).out
    done = slidelens("info", path, "--json")
    assert "notes" not in json.loads(done.out)
    assert done.err.startswith("note: ")
    assert "12 bits are used" in done.err


@pytest.mark.realdata
@pytest.mark.parametrize(
    "name",
    [
        "wsi/openslide_fixtures/unreadable.svs",
        "wsi/openslide_fixtures/unopenable.tiff",
        "wsi/vsi-ets-test-jpg2k.vsi",
        "wsi/missing.svs",
        "annotations",
    ],
)
def test_bad_slides_are_one_sentence_and_exit_1(slidelens, data, name):
    done = slidelens("info", data / name)
    assert done.code == 1
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert Path(name).name in done.err
    assert done.err.count("\n") == 1


def test_text_and_truncated_files_are_errors(slidelens, tmp_path, phantom):
    text = tmp_path / "notes.svs"
    text.write_text("not a slide")
    cut = tmp_path / "cut.tif"
    cut.write_bytes(phantom.read_bytes()[: phantom.stat().st_size // 2])
    for path in (text, cut):
        done = slidelens("info", path)
        assert (done.code, done.err.count("\n")) == (1, 1)
        assert path.name in done.err


@pytest.mark.realdata
def test_a_slide_without_mpp_asks_for_it_and_works_with_it(slidelens, data, tmp_path):
    slide = data / "wsi" / "TCGA-CR-7395-01A-01-TS1.svs"
    out = tmp_path / "results"
    arguments = ("predict", slide, "--model", "demo-mil", "--out", out, "--device", "cpu")
    done = slidelens(*arguments)
    assert done.code == 1
    assert "--mpp" in done.err
    assert slide.name in done.err
    done = slidelens(*arguments, "--mpp", "0.25", "--region", "1000,1000,1200,1200")
    assert done.code == 0, done.err
    result = json.loads((out / "demo-mil" / slide.stem / "result.json").read_text())
    assert result["slide"]["mpp"] == 0.25
    assert sum(result["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_predict_skips_what_is_there_and_records_what_fails(slidelens, phantom, tmp_path):
    out = tmp_path / "results"
    bad = tmp_path / "bad.svs"
    bad.write_text("not a slide")
    arguments = ("predict", phantom, bad, "--model", "demo-mil", "--out", out, "--device", "cpu")
    done = slidelens(*arguments)
    assert done.code == 1
    assert "bad: failed: " in done.err
    assert re.search(r"^slide: normal .* s\) \[1 of 2, \d+ s left\]$", done.err, re.MULTILINE)
    assert done.err.endswith("[2 of 2]\n1 of 2 failed: bad (predictions.csv says why)\n")
    done = slidelens(*arguments)
    assert "slide: skipped [1 of 2]" in done.err.splitlines()
    with (out / "demo-mil" / "predictions.csv").open() as file:
        rows = {row["slide_id"]: row for row in csv.DictReader(file)}
    assert rows["slide"]["status"] == "skipped"
    assert rows["bad"]["status"] == "failed"
    assert "bad.svs" in rows["bad"]["error"]
    assert float(rows["slide"]["prob_tumor"]) > 0.5
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id,label,split\nslide.tif,1,test\nbad.svs,0,train\n")
    chosen = ("--labels", labels, "--split", "test")
    done = slidelens(*arguments, *chosen, "--overwrite", "--json")
    assert [(row["slide_id"], row["status"]) for row in json.loads(done.out)] == [("slide", "done")]


def test_predict_says_what_it_waits_for(phantom, tmp_path):
    out = tmp_path / "results"
    holding = (
        "import sys; from pathlib import Path; from slidelens.engine.locks import claimed\n"
        "with claimed(Path(sys.argv[1])): print('claimed', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holding, str(out / "demo-mil" / phantom.stem)]
    words = [phantom, "--model", "demo-mil", "--out", out, "--device", "cpu"]
    words += ["--region", "0,0,512,512"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"claimed\n"
        run = start_warm("-m", "slidelens", "predict", *words)
        said = run.stderr.readline()
        other.stdin.close()  # not before it was said, however slow the machine is
        _, rest = run.communicate()
    assert said == "1 slide is being computed by another run; waiting for it\n"
    assert run.returncode == 0
    assert rest.startswith("slide: normal ")


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text elsewhere")
def test_a_slide_whose_name_is_no_text_is_told_before_any_work(slidelens, phantom, tmp_path):
    path = tmp_path / os.fsdecode(b"f\xe4rb.tif")
    path.write_bytes(phantom.read_bytes())
    out = tmp_path / "results"
    arguments = ("--model", "demo-mil", "--out", out, "--device", "cpu", "--region", "0,0,512,512")
    done = slidelens("predict", path, phantom, *arguments)
    assert done.code == 1
    assert "rename the file" in done.err
    with (out / "demo-mil" / "predictions.csv").open(encoding="utf-8") as file:
        rows = {row["slide_id"]: row["status"] for row in csv.DictReader(file)}
    assert rows == {r"f\udce4rb": "failed", "slide": "done"}
    done = slidelens("info", path)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "rename the file" in done.err


@pytest.mark.parametrize("to", ["geojson", "ome-zarr", "wsinfer-csv", "camelyon16-csv"])
def test_export(slidelens, phantom, tmp_path, to):
    out = tmp_path / "results"
    slidelens("predict", phantom, "--model", "demo-mil", "--out", out, "--device", "cpu")
    folder = tmp_path / "exports"
    folder.mkdir()
    done = slidelens("export", out / "demo-mil" / "slide", "--to", to, "--out", folder)
    assert done.code == 0
    assert Path(done.out.strip()).exists()
    assert slidelens("export", out, "--to", to, "--out", tmp_path / "cohort").code == 0
    assert slidelens("export", out, "--to", "word", "--out", folder).code == 2


def test_models_and_doctor_report_json(slidelens):
    rows = json.loads(slidelens("models", "--json").out)
    demo = next(row for row in rows if row["name"] == "demo-mil")
    assert set(demo) == {"name", "family", "path", "classes", "mpp", "sha256"}
    assert demo["classes"] == ["normal", "tumor"]
    assert "demo-mil" in slidelens("models").out
    done = slidelens("doctor", "--json")
    states = {check["name"]: check["state"] for check in json.loads(done.out)}
    assert done.code == 0
    assert states["OpenSlide"] == states["PyTorch"] == states["Models"] == "ok"
    assert states["Reports"] == states["Feature bags"] == states["Staging"] == "ok"


def test_unknown_model_names_those_at_hand(slidelens, phantom, tmp_path):
    done = slidelens("predict", phantom, "--model", "demo-nil", "--out", tmp_path)
    assert done.code == 1
    assert "demo-mil" in done.err


def test_train_then_predict_with_the_new_model(slidelens, tmp_path):
    cohort = tmp_path / "cohort"
    write_cohort(cohort, 6, 1, size=(512, 512), tune=0.34)
    model = tmp_path / "my-model"
    config = tmp_path / "fields.yaml"
    config.write_text("tile: 64\noverlap: 0\nbatch_size: 16\n")
    arguments = (
        *("train", "mil", "--slides", cohort / "slides", "--labels", cohort / "labels.csv"),
        *("--out", model, "--from", "demo-mil", "--epochs", 1, "--device", "cpu"),
        *("--config", config, "--set", "flips=false"),
    )
    done = slidelens(*arguments)
    assert done.code == 0, done.err
    card = json.loads((model / "model.json").read_text())
    assert card["config"]["tile"] == 64
    assert card["training"]["flips"] is False
    slide = cohort / "slides" / "phantom_001.tif"
    done = slidelens("predict", slide, "--model", model, "--out", tmp_path / "results")
    assert done.code == 0, done.err
    again = slidelens(*arguments)
    assert again.code == 1
    assert "already holds a model" in again.err


def test_demo_makes_what_it_says_and_again_from_what_is_there(slidelens, tmp_path, monkeypatch):
    monkeypatch.setattr("slidelens.engine.demo._SIZE", (1024, 896))
    out = tmp_path / "demo"
    arguments = ("demo", "--model", "demo-mil", "--out", out)
    done = slidelens(*arguments)
    assert done.code == 0, done.err
    rows = [line.split() for line in done.out.splitlines() if line.startswith("phantom_")]
    assert [row[1] for row in rows] == ["normal", "tumor", "normal", "tumor"]
    assert all((float(row[3]) > 0.5) == (row[1] == "tumor") for row in rows)
    labels = (out / "cohort" / "labels.csv").read_text().split()
    assert [line.split(",")[2] for line in labels[1:]] == [
        *["train"] * 2,
        *["tune"] * 2,
        *["test"] * 2,
    ]
    assert [row[0] for row in rows] == [line.split(",")[0] for line in labels[3:]]
    for name in ("overview/phantom_005.png", "geojson/demo-mil/phantom_005.geojson"):
        assert (out / name).stat().st_size > 100
    before = (out / "cohort" / "slides" / "phantom_001.tif").stat().st_mtime_ns
    assert slidelens(*arguments).code == 0
    assert (out / "cohort" / "slides" / "phantom_001.tif").stat().st_mtime_ns == before
    told = next(line for line in done.out.splitlines() if " evaluate " in line)
    asked = shlex.split(told)[1:]
    evaluated = slidelens(*asked[: asked.index("--out")], "--out", tmp_path / "verdict")
    assert evaluated.code == 0, evaluated.err
    assert "2 slides of split test (1 normal, 1 tumor)." in evaluated.out


@pytest.mark.parametrize(
    ("hidden", "said"),
    [("slidelens.desktop.launch", "pip install 'slidelens[desktop]'"), ("", "no display")],
)
def test_a_demo_that_cannot_be_viewed_does_not_begin(
    slidelens, tmp_path, monkeypatch, hidden, said
):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    if hidden:
        monkeypatch.setitem(sys.modules, hidden, None)
    done = slidelens("demo", "--view", "--out", tmp_path / "demo")
    assert done.code == 1
    assert said in done.err
    assert not (tmp_path / "demo").exists()


def test_a_folder_that_is_no_cohort_is_told_to_the_demo(slidelens, tmp_path):
    (tmp_path / "d ü" / "cohort").mkdir(parents=True)
    labels = tmp_path / "d ü" / "cohort" / "labels.csv"
    for text, said in (("mine", "no column"), ("slide_id,label\na,0\nb,1\n", "not a cohort of")):
        labels.write_text(text)
        done = slidelens("demo", "--model", "demo-magnet", "--out", tmp_path / "d ü")
        assert (done.code, said in done.err) == (1, True)
        assert labels.read_text() == text


def test_predict_finds_tissue_in_the_way_that_is_asked_for(slidelens, phantom, tmp_path):
    run = ("predict", phantom, "--model", "demo-mil", "--region", "0,0,512,512")

    def tiles(name, *given):
        assert slidelens(*run, "--out", tmp_path / name, *given).code == 0
        folder = tmp_path / name / "demo-mil" / phantom.stem
        said = json.loads((folder / "result.json").read_text())["settings"]["tissue"]
        return said, len((folder / "tiles.csv").read_text().splitlines()) - 1

    usual, some = tiles("usual")
    said, every = tiles("whole", "--tissue", "whole", "--tissue", "min-area=5")
    assert usual["method"] != "whole"
    assert (said["method"], said["min_area"]) == ("whole", 5)
    assert every >= some
    for given, why in (("skin", "method: "), ("area=3", "area"), ("mpp=-1", "mpp: ")):
        wrong = slidelens(*run, "--out", tmp_path / "o", "--tissue", given)
        assert wrong.code == 2
        assert "--tissue" in wrong.err
        assert why in wrong.err


def test_predict_sets_fields_of_the_run(slidelens, phantom, tmp_path):
    run = ("predict", phantom, "--model", "demo-mil", "--region", "0,0,512,512")
    assert slidelens(*run, "--out", tmp_path / "a", "--set", "min_tissue=0").code == 0
    tiles = tmp_path / "a" / "demo-mil" / "slide" / "tiles.csv"
    assert slidelens(*run, "--out", tmp_path / "b", "--set", "min_tissue=0.99").code == 0
    fewer = tmp_path / "b" / "demo-mil" / "slide" / "tiles.csv"
    assert len(fewer.read_text().splitlines()) < len(tiles.read_text().splitlines())
    wrong = slidelens(*run, "--out", tmp_path / "c", "--set", "tile=64")
    assert wrong.code == 1
    assert "its options are" in wrong.err


def test_export_into_a_folder_or_a_file(slidelens, phantom, tmp_path):
    """A slash makes a folder; one file for several results is refused before anything is there."""
    out = tmp_path / "results"
    second = tmp_path / "second.tif"
    second.write_bytes(phantom.read_bytes())
    slidelens("predict", phantom, second, "--model", "demo-mil", "--out", out, "--device", "cpu")
    one = ("export", out / "demo-mil" / "slide", "--to", "geojson", "--out")
    assert slidelens(*one, f"{tmp_path}/qupath/").out.strip() == f"{tmp_path}/qupath/slide.geojson"
    assert slidelens(*one, tmp_path / "x.geojson").out.strip() == f"{tmp_path}/x.geojson"
    both = ("export", out, "--to", "geojson", "--out")
    done = slidelens(*both, tmp_path / "ee" / "all.geojson")
    assert done.code == 2
    assert "names one file, but each of the 2 results" in " ".join(done.err.split())
    assert not (tmp_path / "ee").exists()
    for folder in ("v1.2", "ee/all.geojson/"):
        done = slidelens(*both, f"{tmp_path}/{folder}")
        assert done.code == 0, done.err
        written = sorted(path.name for path in (tmp_path / folder).iterdir())
        assert written == ["second.geojson", "slide.geojson"]
    again = (*one, tmp_path / "ee" / "all.geojson", "--overwrite")
    assert slidelens(*again).code == 0  # a folder that is there
    whole = ("export", out, "--to", "ome-zarr", "--out", f"{tmp_path}/all.ome.zarr/")
    assert slidelens(*whole).code == 2


def test_export_replaces_nothing_that_it_was_not_told_to(slidelens, phantom, tmp_path):
    """Not the outlines of the same name, not the slide, not what it has just written."""
    results, drawn = tmp_path / "results", tmp_path / "annotations" / "slide.geojson"
    slidelens("predict", phantom, "--model", "demo-mil", "--out", results, "--device", "cpu")
    drawn.parent.mkdir()
    drawn.write_text("outlines")
    words = ("export", results, "--to", "geojson", "--out", drawn.parent)
    done = slidelens(*words)
    assert done.code == 1
    assert "slide.geojson: is there already" in done.err
    assert drawn.read_text() == "outlines"
    assert slidelens(*words, "--overwrite").code == 0
    shutil.copytree(results / "demo-mil" / "slide", results / "demo-mil" / "slide-old")
    done = slidelens("export", results, "--to", "geojson", "--out", tmp_path / "both")
    assert done.code == 2
    assert "several results of slide slide" in " ".join(done.err.replace("│", "").split())
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize(
    "words", [("new-plugin", "x", "--out", "f/y"), ("demo", "--out", "f")], ids=lambda w: w[0]
)
def test_a_place_that_cannot_be_written_is_a_sentence(slidelens, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    Path("f").touch()
    done = slidelens(*words)
    assert done.code == 1
    assert done.err.startswith("error: ")
    assert "f" in done.err


def test_export_of_several_results_is_all_or_says_which_are_missing(slidelens, phantom, tmp_path):
    results, second = tmp_path / "results", tmp_path / "second.tif"
    second.write_bytes(phantom.read_bytes())
    slidelens("predict", phantom, second, "--model", "demo-mil", "--out", results)
    out = tmp_path / "out"
    out.mkdir()
    (out / "slide.csv").write_text("somebody's")
    words = ("export", results, "--to", "wsinfer-csv", "--out", out)
    done = slidelens(*words)
    assert done.code == 1
    assert "slide.csv: is there already" in done.err
    assert [path.name for path in out.iterdir()] == ["slide.csv"]
    (results / "demo-mil" / "second" / "tiles.csv").unlink()
    done = slidelens(*words, "--overwrite")
    assert done.code == 1
    assert "1 of 2 results were not exported" in done.err
    assert "second" in done.err
    assert (out / "slide.csv").read_text() != "somebody's"
    assert not (out / "second.csv").exists()
    (results / "demo-mil" / "slide" / "result.json").write_text("{")
    done = slidelens("export", results, "--to", "geojson", "--out", out)
    assert done.code == 1
    assert done.out == f"{out / 'second.geojson'}\n"
    assert re.search(r"1 of 2 results were not exported:\n.*slide.result\.json: not JSON", done.err)


def test_a_slide_that_is_too_coarse_for_the_model_fails_with_what_to_do(
    slidelens, phantom, tmp_path
):
    arguments = ("predict", phantom, "--model", "demo-mil", "--out", tmp_path, "--device", "cpu")
    done = slidelens(*arguments, "--mpp", "29")
    assert done.code == 1
    said = " ".join(done.err.split())
    assert "slide.tif: its finest resolution is 29 µm/px (given), and model 'demo-mil'" in said
    assert "reads at 1 µm/px" in said
    assert "give the right one with --mpp X" in said
    assert not (tmp_path / "demo-mil" / "slide").exists()


@pytest.mark.parametrize("group", [(), ("review",), ("stage",), ("package",)])
def test_help_says_in_a_whole_sentence_what_each_command_does(slidelens, group):
    _, commands = slidelens(*group, "--help").out.split("Commands:")
    assert "..." not in commands
    assert all(
        line.rstrip().endswith(".") for line in commands.split("\n\n")[0].strip().split("\n")
    )
