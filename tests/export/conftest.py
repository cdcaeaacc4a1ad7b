from __future__ import annotations

import pytest

from sample_results import make_result
from slidelens.maps.result import Result


@pytest.fixture
def result() -> Result:
    return make_result()
