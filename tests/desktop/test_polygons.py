import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from napari.layers import Shapes

from slidelens.desktop.polygons import path_to_polygon, polygon_to_path


def ring(x: float, y: float, radius: float, corners: int) -> np.ndarray:
    turn = 2 * np.pi * np.arange(corners) / corners
    return np.stack([x + radius * np.cos(turn), y + radius * np.sin(turn)], 1)


WITH_HOLES = shapely.Polygon(
    ring(50, 50, 40, 30), [ring(35, 50, 6, 5), ring(60, 45, 8, 12), ring(55, 68, 5, 4)]
)
TWO_PARTS = shapely.MultiPolygon([WITH_HOLES, shapely.Polygon(ring(200, 20, 15, 9))])


@pytest.mark.parametrize("polygon", [WITH_HOLES, TWO_PARTS, shapely.box(0, 0, 3, 2)])
def test_holes_and_parts_survive_there_and_back(polygon):
    again = path_to_polygon(polygon_to_path(polygon))
    assert again.equals(polygon)
    assert again.normalize() == polygon.normalize()  # not a vertex is moved, lost or added


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=40, unique=True)
)
def test_any_set_of_grid_cells_survives(cells):
    # Cells that meet in corners and rings that touch their holes: what regions of a map look like.
    area = shapely.union_all([shapely.box(x, y, x + 1, y + 1) for x, y in cells])
    again = path_to_polygon(polygon_to_path(area))
    assert again.is_valid
    assert again.area == len(cells)
    assert again.symmetric_difference(area).area == 0


def test_single_ring_is_itself():
    path = polygon_to_path(shapely.box(1, 2, 5, 9))
    assert path.shape == (4, 2)


def test_path_that_crosses_itself_gives_its_areas():
    bow_tie = [(0, 0), (2, 2), (2, 0), (0, 2)]
    assert path_to_polygon(bow_tie).area == pytest.approx(2)


@pytest.mark.parametrize("path", [[], [(1, 1)], [(0, 0), (5, 5)], [(0, 0), (1, 1), (2, 2)]])
def test_path_without_area_is_empty(path):
    assert path_to_polygon(np.array(path, float).reshape(-1, 2)).is_empty


@pytest.mark.parametrize("polygon", [WITH_HOLES, TWO_PARTS])
def test_napari_fills_the_area_without_its_holes(polygon):
    layer = Shapes([polygon_to_path(polygon)[:, ::-1]], shape_type="polygon")
    shape = layer._data_view.shapes[0]
    corners = shape._face_vertices[shape._face_triangles]
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    filled = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / 2
    assert filled == pytest.approx(polygon.area, rel=1e-4)
