"""Outlines on the screen: as thin at every zoom, and laid at once however long they are."""

from __future__ import annotations

import time

import numpy as np
import pytest
from known_slides import make_slide
from napari.layers import Layer

from slidelens.desktop.annotate import annotation_options
from slidelens.desktop.layers import annotation_layers, slide_layer
from slidelens.desktop.window import camera, dress
from slidelens.desktop.world import World
from slidelens.geometry import Mpp
from slidelens.tiling.annotations import Annotation

pytestmark = pytest.mark.gui

WORLD = World.of(Mpp(0.25, 0.25))


def outlined(corners: np.ndarray) -> Layer:
    from shapely.geometry import Polygon

    areas = [Annotation(Polygon(corners), "tumor")]
    (data,) = annotation_layers(areas, WORLD, name="outlines", slide_id="known")
    return Layer.create(*data)


@pytest.fixture
def layer(viewer):
    viewer.add_layer(Layer.create(*slide_layer(make_slide(0.25))))
    dress(viewer)
    return viewer.add_layer(outlined(np.array([(0, 0), (600, 0), (600, 500), (0, 500)])))


def on_screen(viewer, layer) -> float:
    return max(np.unique(layer.edge_width)) * layer.scale[-1] * camera(viewer).zoom


def test_an_outline_is_as_thin_on_the_screen_at_every_zoom(viewer, layer):
    for zoom in (0.5, 4.0, 40.0, 1.0, 0.05):
        camera(viewer).zoom = zoom
        assert 1.4 < on_screen(viewer, layer) < 2.9


def test_what_is_drawn_next_is_as_thin_and_a_width_that_was_chosen_stays(viewer, layer):
    camera(viewer).zoom = 10.0
    layer.add_polygons(np.array([(10.0, 10), (10, 90), (90, 90)]))
    assert 1.4 < on_screen(viewer, layer) < 2.9
    camera(viewer).zoom = 30.0
    assert 1.4 < on_screen(viewer, layer) < 2.9
    layer.edge_width = 25.0
    camera(viewer).zoom = 1.0
    assert layer.edge_width == [25.0, 25.0]


def test_the_first_outline_that_is_drawn_is_as_thin(viewer, layer):
    camera(viewer).zoom = 20.0
    drawn = viewer.add_shapes(None, **annotation_options(layer.metadata))
    drawn.add_polygons(np.array([(10.0, 10), (10, 30), (30, 30)]))
    assert 1.4 < on_screen(viewer, drawn) < 2.9


def test_an_outline_of_thousands_of_corners_is_laid_in_a_moment(viewer):
    angles = np.linspace(0, 2 * np.pi, 6000, endpoint=False)
    radius = 20_000 + 2000 * np.sin(40 * angles)
    corners = np.stack([30_000 + radius * np.cos(angles), 30_000 + radius * np.sin(angles)], 1)
    start = time.process_time()
    viewer.add_layer(outlined(corners))
    assert time.process_time() - start < 2.0  # in Python alone it takes napari ten seconds
