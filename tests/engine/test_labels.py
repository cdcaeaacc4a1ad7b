"""The labels table: what is read, and every fault said at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from slidelens.engine.labels import LabelTable, read_labels, read_listed, split_by_patient
from slidelens.engine.slide_folder import find_slides
from slidelens.errors import LabelError


@pytest.fixture
def table(tmp_path):
    """Write a CSV of these lines and read it."""

    def write(*lines, classes=None, encoding="utf-8"):
        path = tmp_path / "labels.csv"
        path.write_text("\n".join(lines) + "\n", encoding=encoding)
        return read_labels(path, classes)

    return write


def _rows(table):
    return [(r.slide_id, r.label, r.split, r.patient) for r in table.rows]


def test_reads_names_splits_and_patients_and_ignores_other_columns(table):
    read = table(
        "slide_id,age,label,split,patient",
        "a,61,tumour,train,p1",
        "b,59,normal,validation,p2",
        "c,70,tumour,TEST,",
    )
    assert read.classes == ("normal", "tumour")
    assert _rows(read) == [
        ("a", 1, "train", "p1"),
        ("b", 0, "tune", "p2"),
        ("c", 1, "test", None),
    ]
    assert [r.slide_id for r in read.of("tune")] == ["b"]


def test_numbers_are_indices_in_numeric_order(table):
    read = table("slide_id,label", *(f"s{i},{i}" for i in range(11)))
    assert read.classes == tuple(map(str, range(11)))
    assert [r.label for r in read.rows] == list(range(11))


def test_known_classes_take_names_and_indices(table):
    read = table("slide_id,label", "a,0", "b,tumour", classes=("normal", "tumour"))
    assert [r.label for r in read.rows] == [0, 1]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_spreadsheet_flavours(table, delimiter, encoding):
    lines = [" slide_id,label ", "a, 0", "b,1 "]
    read = table(*(x.replace(",", delimiter) for x in lines), encoding=encoding)
    assert _rows(read) == [("a", 0, None, None), ("b", 1, None, None)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["slide,label", "a,0"], "no column slide_id; expected .*found slide, label"),
        (["slide_id,label"], "a header and no slides"),
        ([""], "found nothing"),
        (["slide_id,label", "a,0", "b,", ",1"], "rows without slide_id or label: line 3, line 4"),
        (["slide_id,label", "a,0", "b,1", "a,1", "b,1"], r"a \(2 times\), b \(2 times\)"),
        (["slide_id,label", "a,1", "b,1"], "0-based class indices, but no slide has 0"),
        (["slide_id,label", "a,x", "b,x"], "all 2 slides are labelled 'x'"),
        (["slide_id,label", "a,x"], "all 1 slides are labelled 'x'"),
        (["slide_id,label,split", "a,x,train", "b,y,tain"], r"b \('tain'\)"),
        (
            ["slide_id,label,split,patient", "a,x,train,p", "b,y,tune,p", "c,y,tune,q"],
            r"more than one split.*p \(train, tune\)\.",
        ),
    ],
)
def test_faults_are_named(table, lines, message):
    with pytest.raises(LabelError, match=message):
        table(*lines)


def test_faults_against_known_classes(table):
    with pytest.raises(LabelError, match=r"a \('benign'\), b \('7'\)"):
        table("slide_id,label", "a,benign", "b,7", "c,1", classes=("normal", "tumour"))
    several = (
        r"slides twice: a \(2 times\)\.\n  splits that are not one of .*: b \('tain'\)\.\n"
        r"  labels that are neither .*: a \('x'\)\.\n  classes without a slide: normal\.$"
    )
    with pytest.raises(LabelError, match=several):
        table(
            "slide_id,label,split", "a,x,train", "b,1,tain", "a,1,train",
            classes=("normal", "tumour"),
        )  # fmt: skip
    with pytest.raises(LabelError, match="classes without a slide: normal"):
        table("slide_id,label", "c,1", classes=("normal", "tumour"))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (("cancer", "normal"), ("normal", "cancer")),
        (("Tumor", "gesund"), ("gesund", "Tumor")),
        (("low", "high", "Benign"), ("Benign", "high", "low")),
        (("a", "b"), ("a", "b")),
    ],
)
def test_the_negative_class_comes_first(table, labels, classes):
    lines = [f"s{i},{name}" for i, name in enumerate(labels)]
    assert table("slide_id,label", *lines).classes == classes


@pytest.mark.parametrize(
    ("negative", "positive"),
    [
        ("HER2-", "HER2+"),
        ("ER\u2212", "ER+"),
        ("-", "+"),
        ("N0", "N+"),
        ("ER negative", "ER positive"),
        ("HER2_neg", "HER2_pos"),
        ("no cancer", "cancer"),
        ("non-cancer", "cancer"),
        ("nonresponder", "responder"),
        ("not metastatic", "metastatic"),
        ("untreated", "treated"),
        ("wildtype", "mutant"),
        ("KRAS wild-type", "KRAS mutated"),
        ("MSS", "MSI"),
        ("stable", "unstable"),
        ("low", "high"),
        ("Low grade", "High grade"),
        ("stroma", "Cancer"),
    ],
)
def test_names_tell_the_positive_class(table, caplog, negative, positive):
    for order in ((negative, positive), (positive, negative)):
        rows = [f"s{i},{name}" for i, name in enumerate(order)]
        assert table("slide_id,label", *rows).classes == (negative, positive)
    assert not caplog.text


def test_a_positive_class_that_names_do_not_tell_is_said(table, caplog):
    assert table("slide_id,label", "a,luminal", "b,basal").classes == ("basal", "luminal")
    assert "it is the last, luminal; --classes luminal,basal (" in caplog.text
    caplog.clear()
    table("slide_id,label", "a,1", "b,0")
    table("slide_id,label", "a,x", "b,y", "c,z")
    table("slide_id,label", "a,luminal", "b,basal", classes=("luminal", "basal"))
    assert not caplog.text


def test_numbers_that_are_names_of_known_classes_are_no_indices(table):
    grades = ("1", "2")
    read = table("slide_id,label", "a,1", "b,2", classes=grades)
    assert [row.label for row in read.rows] == [0, 1]
    with pytest.raises(LabelError, match=r"not one of the classes 1, 2: c \('0'\)"):
        table("slide_id,label", "a,1", "b,2", "c,0", classes=grades)
    read = table("slide_id,label", "a,0", "b,tumour", classes=("normal", "tumour"))
    assert [row.label for row in read.rows] == [0, 1]


def test_missing_and_unreadable_tables(tmp_path):
    with pytest.raises(LabelError, match="cannot be read"):
        read_labels(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes("slide_id,label\nä,1\n".encode("latin-1"))
    with pytest.raises(LabelError, match="UTF-8"):
        read_labels(tmp_path / "latin.csv")


def test_split_is_stratified_seeded_and_keeps_patients_together(table):
    lines = [f"s{i},{i % 2},p{i // 4}" for i in range(80)]  # 20 patients, each of both classes
    lines += [f"n{i},0,q{i}" for i in range(20)]
    read = table("slide_id,label,patient", *lines)
    split = split_by_patient(read, seed=3)
    assert split == split_by_patient(read, seed=3)
    assert split != split_by_patient(read, seed=4)
    patients = {name: {r.patient for r in split.of(name)} for name in ("train", "tune")}
    assert not patients["train"] & patients["tune"]
    tuned = patients["tune"]
    assert sum(p.startswith("p") for p in tuned) == 4  # a fifth of the 20 with a positive slide
    assert sum(p.startswith("q") for p in tuned) == 4


def test_patients_that_differ_only_in_case_or_spaces_are_told_and_count_as_one(table, caplog):
    rows = ["a,0,P1", "b,1,p1", "c,0, P2 ", "d,1,P2", "e,0,Q 3", "f,1,q3", "g,0,", "h,1,Q30"]
    read = table("slide_id,label,patient", *rows)
    (said,) = [r.getMessage() for r in caplog.records]
    assert "only in upper and lower case or in spaces" in said
    assert ": 'P1' and 'p1', 'Q 3' and 'q3'. " in said
    assert [r.patient for r in read.rows] == ["P1", "P1", "P2", "P2", "Q 3", "Q 3", None, "Q30"]
    with pytest.raises(LabelError, match=r"more than one split.*: P1 \(train, tune\)\."):
        table("slide_id,label,split,patient", "a,0,train,P1", "b,1,train,P2", "c,0,tune,p1 ")
    caplog.clear()
    table("slide_id,label,patient", "a,0,P1", "b,1,P1", "c,1,P2")
    assert not caplog.text


def test_too_few_patients_to_split(table):
    read = table("slide_id,label", "a,0", "b,1")
    with pytest.raises(LabelError, match=r"too few .* label more slides, or say which are train"):
        read.split(0)


def test_given_splits_are_checked(table):
    header = "slide_id,label,split"
    with pytest.raises(LabelError, match="without a split, where others have one: c"):
        table(header, "a,0,train", "b,1,tune", "c,1,").split(0)
    with pytest.raises(LabelError, match="classes without a slide in split train: 1"):
        table(header, "a,0,train", "b,1,tune").split(0)
    with pytest.raises(LabelError, match="classes without a slide in split train: 0, 1"):
        table(header, "a,0,test", "b,1,test").split(0)


@pytest.mark.parametrize("others", ["train", ""])
def test_tuning_slides_are_drawn_where_none_is_named_and_test_slides_stay(table, others):
    learnt = [f"s{i},{i % 2},p{i // 2},{others}" for i in range(40)]
    tested = [f"t{i},{i % 2},q{i},test" for i in range(6)]
    read = table("slide_id,label,patient,split", *learnt, *tested)
    split = read.split(0)
    assert [r.slide_id for r in split.rows] == [r.slide_id for r in read.rows]
    assert {r.slide_id for r in split.of("test")} == {f"t{i}" for i in range(6)}
    tuned = {r.patient for r in split.of("tune")}
    assert len(tuned) == 4  # a fifth of the 20 that are not tested
    assert not tuned & {r.patient for r in split.of("train")}
    assert split.without("test") == read.without("test").split(0)
    if not others:
        with pytest.raises(LabelError, match=r"more than one split.*: q0 \(no split, test\)"):
            table("slide_id,label,patient,split", *learnt, *tested, "u,0,q0,")


def test_slides_are_found_by_id_with_or_without_extension(table, tmp_path, caplog):
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in (
        "a.svs",
        "b.ome.tif",
        "c.mrxs",
        "e.vsi",
        "notes.txt",
        "a.geojson",
        "a.JPG",
        "b.pdf",
        "Thumbs.db",
        ".hidden.svs",
    ):
        (folder / name).touch()
    for name in ("c", "d.zarr", "patient", "notes", "_e_"):
        (folder / name).mkdir()
    with caplog.at_level("WARNING"):
        files = find_slides(folder)
    assert "skipped, since they are not slides: notes, patient. " in caplog.text
    assert {k: p.name for k, p in files.items()} == {
        "a": "a.svs",
        "b": "b.ome.tif",
        "c": "c.mrxs",
        "d": "d.zarr",
        "e": "e.vsi",
    }
    read = table("slide_id,label", "a.svs,0", "b,1", "c.mrxs,0").with_files(files)
    assert [r.slide_id for r in read.rows] == ["a", "b", "c"]
    bags = {name: folder / f"{name}.h5" for name in "abc"}
    assert table("slide_id,label", "a.svs,0", "b.svs,1").with_files(bags).rows[0].slide_id == "a"
    with pytest.raises(LabelError, match=r"no slide for x, y\.ndpi; found 5 slides"):
        table("slide_id,label", "a,0", "x,1", "y.ndpi,1").with_files(files)
    with pytest.raises(LabelError, match=r"a \(2 times\)"):
        table("slide_id,label", "a,0", "a.svs,1").with_files(files)


def test_a_folder_for_each_patient_or_download(tmp_path, caplog):
    image = np.zeros((64, 64, 3), np.uint8)
    for place in ("p1/a.tif", "p1/b.tif", "p2/scans/c.tif", "p3/1/2/3/far.tif"):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, image)
    for place in (
        "p1.csv",
        "p1/logs/a.tif.parcel",
        "p4/damaged.svs",
        "results/m/x/result.json",
    ):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "results" / "m" / "x" / "map.zarr").mkdir()
    with caplog.at_level("WARNING"):
        files = find_slides(tmp_path)
    assert {k: str(p.relative_to(tmp_path)) for k, p in files.items()} == {
        "a": "p1/a.tif",
        "b": "p1/b.tif",
        "c": "p2/scans/c.tif",
    }
    assert "p1: skipped, since they are not slides: logs. " in caplog.text
    assert "p4: skipped, since they are not slides: damaged.svs. " in caplog.text
    tifffile.imwrite(tmp_path / "p4" / "a.tif", image)
    with pytest.raises(LabelError, match=r"p1/a\.tif and p4/a\.tif; rename"):
        find_slides(tmp_path)


def test_folders_that_hold_no_clear_slides(tmp_path):
    (tmp_path / "labels.csv").touch()
    with pytest.raises(LabelError, match=r"labels\.csv: is a file, expected the folder of slides"):
        find_slides(tmp_path / "labels.csv")
    (tmp_path / "labels.csv").unlink()
    with pytest.raises(LabelError, match="no such folder"):
        find_slides(tmp_path / "none")
    with pytest.raises(LabelError, match="no slide in this folder"):
        find_slides(tmp_path)
    (tmp_path / "a.svs").touch()
    (tmp_path / "a.ndpi").touch()
    with pytest.raises(LabelError, match=r"a\.ndpi and a\.svs"):
        find_slides(tmp_path)


def test_rows_that_a_spreadsheet_leaves_empty_are_passed_over_and_lines_are_the_files(table):
    read = table("slide_id,label", "a,0", "b,1", ",", "", ",,")
    assert [row.slide_id for row in read.rows] == ["a", "b"]
    with pytest.raises(LabelError, match="line 5"):
        table("slide_id,label", "a,0", "", "b,1", "c,")


def test_classes_that_differ_in_case_are_said(table, caplog):
    table("slide_id,label", "a,normal", "b,Normal")
    assert "differ only in upper and lower case" in caplog.text


def test_what_other_programs_make_of_a_table_is_read(table):
    read = table(
        "sep=;",
        "Slide_ID;Label;SPLIT",
        "a;Normal;train",
        "b;TUMOR;val",
        classes=("normal", "tumor"),
    )
    assert [(r.slide_id, r.label, r.split) for r in read.rows] == [
        ("a", 0, "train"),
        ("b", 1, "tune"),
    ]
    floats = table("slide_id,label", "a,0.0", "b,1.0", classes=("normal", "tumor"))
    assert [r.label for r in floats.rows] == [0, 1]
    assert table("slide_id,label", "a,0.0", "b,1.0").classes == ("0", "1")
    with pytest.raises(LabelError, match="line 3"):
        table("sep=;", "slide_id;label", "a;")


def test_an_index_with_a_decimal_zero_is_the_same_class_as_without(table):
    mixed = table("slide_id,label", "a,0", "b,1.0", "c,0.00", "d,1")
    assert (mixed.classes, [r.label for r in mixed.rows]) == (("0", "1"), [0, 1, 0, 1])
    grades = ("1.0", "1.5", "2.0")
    assert table("slide_id,label", *(f"s{g},{g}" for g in grades)).classes == grades


@pytest.mark.parametrize("missing", ["NA", "nan", "N/a", "NULL", "None"])
def test_what_programs_write_for_an_empty_cell_is_one_and_a_slide_may_be_called_so(table, missing):
    read = table(
        "slide_id,label,split,patient",
        f"{missing},x,train,{missing}",
        f"b,y,train,{missing}",
        f"c,x,tune,{missing}",
        "d,y,tune,p",
    )
    assert [row.patient for row in read.rows] == [None, None, None, "p"]
    assert read.rows[0].slide_id == missing
    assert table("slide_id,label,split", f"a,x,{missing}", "b,y,").rows[0].split is None
    with pytest.raises(LabelError, match=f"label: line 3 .{missing} is an empty cell"):
        table("slide_id,label", "a,x", f"b,{missing}", "c,y")
    known = table("slide_id,label", "a,x", f"b,{missing}", classes=(missing, "x"))
    assert [row.label for row in known.rows] == [1, 0]


def test_only_the_end_of_a_line_ends_a_row(table):
    strange = "\u000b\u000c\u001e\u0085\u2028"
    read = table("slide_id,label,note", f"a,0,{strange}x", "b,1,")
    assert [row.slide_id for row in read.rows] == ["a", "b"]


def test_letters_that_a_mac_took_apart_are_the_same(table, tmp_path):
    composed, apart = "M\u00fc1", "Mu\u03081"
    folder = tmp_path / "slides"
    folder.mkdir()
    (folder / f"{apart}.tif").touch()
    files = find_slides(folder)
    assert list(files) == [composed]
    for given in (composed, apart, f"{apart}.tif", f"{composed}.tif"):
        read = table("slide_id,label", f"{given},0", "x,1").rows[0]
        one = LabelTable(tmp_path, ("0", "1"), (read,)).with_files(files)
        assert one.rows[0].slide_id == composed


@pytest.mark.parametrize(
    "place", ["C:\\slides\\", "..\\", "\\\\server\\share\\", "/data/slides/", "C:/"]
)
def test_a_slide_may_be_named_by_its_path_on_any_system(table, place):
    files = {name: Path(f"{name}.svs") for name in ("a", "P1.7", "case")}
    given = (f"{place}a.svs", f"{place}P1.7.svs", f"{place}case")
    read = table("slide_id,label", *(f"{name},{i % 2}" for i, name in enumerate(given)))
    assert [row.slide_id for row in read.with_files(files).rows] == list(files)


@pytest.mark.parametrize("label", ["9" * 5000, "\u0661"])
def test_what_is_a_number_elsewhere_only_is_a_name(table, label):
    """Python takes no number of more than 4300 digits, and digits of other scripts count for it."""
    assert table("slide_id,label", "a,0", f"b,{label}").classes == ("0", label)


def test_a_run_reads_names_and_splits_and_no_labels(tmp_path):
    path = tmp_path / "slides.csv"
    for text in (
        "slide_id,split\na,test\nb,train\n",
        "slide_id,label,split\na,,test\nb,odd,train\n",
    ):
        path.write_text(text)
        read = read_listed(path)
        assert _rows(read) == [("a", -1, "test", None), ("b", -1, "train", None)]
    path.write_text("slide_id,split,patient\na,test,p\nb,train,p\nb,tset,q\n,test,\n")
    with pytest.raises(LabelError, match=r"rows without slide_id: line 5\."):
        read_listed(path)
    path.write_text("slide_id,split,patient\na,test,p\nb,train,p\nb,tset,q\n")
    with pytest.raises(LabelError, match=r"(?s)b \(2 times\).*b \('tset'\).*p \(test, train\)"):
        read_listed(path)
    path.write_text("name,split\na,test\n")
    with pytest.raises(LabelError, match=r"no column slide_id; expected slide_id.*found name"):
        read_listed(path)
