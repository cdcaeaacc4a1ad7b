"""The fixture of a slide and a result whose every pixel is known, and the display's platform."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from known_slides import Case, make_result, make_slide

from slidelens.geometry import Mpp
from slidelens.maps.result import Result

if TYPE_CHECKING:
    from pathlib import Path

# pytest-xvfb brings the display; with any other platform plugin Qt would not draw on it.
os.environ["QT_QPA_PLATFORM"] = "xcb"


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """The slide of the issue: 0.2527 µm/px, its result saved and read back."""
    mpp = Mpp(0.2527, 0.2527)
    slide = make_slide(0.2527)
    make_result(slide, mpp).save(tmp_path / "results" / "oracle" / slide.id)
    return Case(slide, Result.load(tmp_path / "results" / "oracle" / slide.id), mpp)
