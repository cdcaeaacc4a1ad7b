"""tiles.csv: WSInfer's columns, exact numbers, errors by line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from slidelens.errors import ResultError
from slidelens.maps.tiles import Tiles

finite = st.floats(-1e9, 1e9, allow_subnormal=False)
unit = st.one_of(st.floats(0, 1, width=32), st.just(np.nan))


@given(arrays(np.float64, (5, 4), elements=finite), arrays(np.float32, (5, 3), elements=unit))
@settings(max_examples=100)
def test_numbers_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, boxes: np.ndarray, values: np.ndarray
) -> None:
    path = tmp_path_factory.mktemp("t") / "tiles.csv"
    Tiles(boxes, ("a", "b, with comma", 'ü"'), values, values[:, 0]).write(path)
    back = Tiles.read(path)
    assert back.classes == ("a", "b, with comma", 'ü"')
    np.testing.assert_array_equal(back.boxes, boxes)
    np.testing.assert_array_equal(back.probabilities, values)
    np.testing.assert_array_equal(back.attention, values[:, 0])


def test_the_columns_are_wsinfers(tmp_path: Path) -> None:
    boxes = np.array([[0, 224.5, 224, 224]])
    table = Tiles(boxes, ("normal", "tumor"), np.array([[0.9, 0.1]], np.float32))
    table.write(tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == (
        "minx,miny,width,height,prob_normal,prob_tumor\n0,224.5,224,224,0.9,0.1\n"
    )
    more = Tiles(boxes, (), np.zeros((1, 0), np.float32), np.array([0.25], np.float32))
    more.write(tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text().splitlines() == [
        "minx,miny,width,height,attention",
        "0,224.5,224,224,0.25",
    ]
    more.write(tmp_path / "t.csv", attention=False)
    assert "attention" not in (tmp_path / "t.csv").read_text()


def test_foreign_columns_order_and_empty_tables(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("slide,height,width,miny,minx,prob_tumor\nx.svs,4,3,2,1,0.5\n\n")
    back = Tiles.read(path)
    assert back.boxes.tolist() == [[1, 2, 3, 4]]
    assert back.probabilities.tolist() == [[0.5]]
    assert back.attention is None
    path.write_text("minx,miny,width,height,prob_a,prob_b\n")
    assert Tiles.read(path).probabilities.shape == (0, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column minx, miny, width, height"),
        ("minx,miny,width\n1,2,3\n", "no column height"),
        ("minx,miny,width,height\n1,2,3,4\n1,2,x,4\n", "line 3: .*'x'"),
        ("minx,miny,width,height\n1,2\n", "line 2"),
    ],
)
def test_what_is_wrong_is_told_by_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ResultError, match=message):
        Tiles.read(path)


def test_a_missing_or_binary_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="cannot read the tiles"):
        Tiles.read(tmp_path / "missing.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ResultError, match="cannot read the tiles"):
        Tiles.read(tmp_path / "b.csv")


def test_shapes_must_fit() -> None:
    with pytest.raises(ValueError, match="boxes"):
        Tiles(np.zeros((2, 3)), (), np.zeros((2, 0), np.float32))
    with pytest.raises(ValueError, match="attention"):
        Tiles(np.zeros((2, 4)), (), np.zeros((2, 0), np.float32), np.zeros(3, np.float32))
