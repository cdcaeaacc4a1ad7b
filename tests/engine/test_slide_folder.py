"""Which slides a run is asked for; what else lies in folders is tested with cohorts and labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from slidelens.engine.labels import read_listed
from slidelens.engine.slide_folder import find_slides, slides_to_run
from slidelens.errors import LabelError


def write_dicom(path: Path, series: bytes, *, refers_to: bytes = b"") -> Path:
    """Write a file that states its series, maybe behind the id of another one; without pixels."""

    def element(tag: bytes, value: bytes) -> bytes:
        value += bytes(len(value) % 2)
        return tag + b"UI" + len(value).to_bytes(2, "little") + value

    reference = element(b"\x20\0\x0e\0", refers_to) if refers_to else b""
    own = element(b"\x20\0\x0d\0", b"1.2.3") + element(b"\x20\0\x0e\0", series)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(128) + b"DICM" + reference + own)
    return path


@pytest.fixture
def series(tmp_path) -> Path:
    folder = tmp_path / "case"
    for name in ("a.dcm", "b.DCM", "c", "d.1.25.63"):
        write_dicom(folder / name, b"1.5")
    return folder


def test_the_files_of_a_dicom_series_are_one_slide(series, monkeypatch):
    files = sorted(series.iterdir())
    assert slides_to_run([series]) == [series]
    assert slides_to_run(files) == [series], "its id is that of the folder, however it is given"
    assert slides_to_run([*files, series]) == [series]
    assert slides_to_run([files[1], files[1]]) == [files[1]]
    monkeypatch.chdir(series)
    assert slides_to_run(sorted(Path().iterdir())) == [Path()]


def test_a_dicom_series_beside_others_is_its_first_file(series):
    files = sorted(series.iterdir())
    other = [write_dicom(series / f"{name}.dcm", b"1.6", refers_to=b"1.5") for name in "ef"]
    assert slides_to_run([*files, *other]) == [files[0], other[0]]
    slide = series / "s.svs"
    slide.touch()
    assert slides_to_run([*files, *other, slide]) == [files[0], other[0], slide]
    assert slides_to_run([series]) == [files[0], other[0], slide]


def test_what_a_training_or_a_report_finds_in_a_folder_is_what_a_run_finds(series, tmp_path):
    assert find_slides(series) == {"case": series}
    assert find_slides(tmp_path) == {"case": series}, "the same, from the folder above"
    for name in ("e.dcm", "f.dcm"):
        write_dicom(series / name, b"1.6")
    two = {"a": series / "a.dcm", "e": series / "e.dcm"}
    assert find_slides(series) == find_slides(tmp_path) == two
    assert slides_to_run([series]) == slides_to_run([tmp_path]) == list(two.values())
    slide = series / "s.svs"
    slide.touch()
    assert find_slides(series) == two | {"s": slide}
    (tmp_path / "alone").mkdir()
    only = write_dicom(tmp_path / "alone" / "x.dcm", b"1.7").parent
    assert find_slides(only) == {"alone": only}
    assert slides_to_run([only]) == [only]


def test_files_of_a_series_that_are_named_alike_are_one_slide(tmp_path):
    for name in ("1.2.1", "1.2.2", "s.svs"):
        write_dicom(tmp_path / "case" / name, b"1.5")
    (tmp_path / "case" / "s.svs").write_bytes(b"")
    assert set(find_slides(tmp_path / "case")) == {"1.2.1", "s"}


def test_a_table_of_labels_names_a_series_as_a_run_without_it_does(series, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id\ncase\n")
    for given in ([series], sorted(series.iterdir())):
        assert slides_to_run(given, labels) == [series]
    assert read_listed(labels).with_files(find_slides(series)).rows[0].slide_id == "case"
    labels.write_text("slide_id\nb\n")
    with pytest.raises(LabelError, match=r"no slide for b; found 1 slide: case\. .* of its folder"):
        slides_to_run([series], labels)


def test_the_index_of_a_medium_is_no_slide(series):
    (series.parent / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(99))
    for given in ([series.parent], sorted(series.parent.iterdir())):
        assert slides_to_run(given) == [series]


@pytest.mark.realdata
def test_a_real_dicom_series_is_one_slide(data):
    wsi = data / "wsi"
    case = wsi / "CMU-1-Small-Region_dicom"
    boxes = sorted((wsi / "openslide_fixtures").glob("*.dcm"))
    alone = wsi / "google_camelyon_jpeg.dcm"
    assert len(boxes) == 2
    assert slides_to_run([*case.iterdir(), *boxes, alone]) == [case, boxes[0], alone]
    assert find_slides(case) == {case.name: case}
