"""Which slides a run is asked for; what else lies in folders is tested with cohorts and labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from slidelens.engine.slide_folder import slides_to_run


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


def test_a_table_of_labels_says_which_file_of_a_series_it_means(series, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id\nb\n")
    assert slides_to_run(sorted(series.iterdir()), labels) == [series / "b.DCM"]


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
