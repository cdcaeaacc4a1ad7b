"""Streaming is exact: random networks, well-known networks, images and tiles of any size."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.nn.streaming_oracle import (
    EXAMPLES,
    SIZES,
    TOLERANCE,
    errors,
    gradients,
    image_of,
    networks,
)
from torch import nn

from slidelens.errors import StreamingError
from slidelens.nn.streaming import StreamingTrunk

any_of_all = given(
    module=networks(),
    size=SIZES,
    cut=st.tuples(st.floats(0.05, 1.0), st.floats(0.05, 1.0)),
    scheme=st.sampled_from(["seam", "seam", "halo"]),
    graphs=st.sampled_from([0.0, 0.4, 1.0]),
    batch=st.integers(1, 2),
    nhwc=st.booleans(),
)


@settings(EXAMPLES, max_examples=100)
@any_of_all
def test_any_network_any_size_any_tile(**drawn: Any) -> None:
    check(**drawn)


@pytest.mark.slow
@settings(EXAMPLES, max_examples=250)
@any_of_all
def test_more_networks(**drawn: Any) -> None:
    check(**drawn)


def check(
    module: nn.Module,
    size: tuple[int, int],
    cut: tuple[float, float],
    scheme: str,
    graphs: float,
    batch: int,
    nhwc: bool,
) -> None:
    image = image_of(size, batch, nhwc=nhwc).requires_grad_()
    try:
        expected = gradients(module, module, image)
    except RuntimeError:
        assume(False)  # PyTorch itself refuses: too small for the network
    tile = tuple(max(2, round(n * share)) for n, share in zip(size, cut, strict=True))
    trunk = StreamingTrunk(module, tile, scheme=scheme)
    if scheme == "halo":
        try:
            trunk.plan(*size)
        except StreamingError:
            assume(False)  # smaller than the halo
    plan = trunk.plan(*size, batch=batch)
    if graphs and plan.bytes_graph:
        trunk.memory = plan.bytes + round(graphs * plan.tiles) * plan.bytes_graph
        plan = trunk.plan(*size, batch=batch)
        assert plan.graphs == min(1 + round(graphs * plan.tiles), plan.tiles)
    assert plan.output == expected.output.shape[1:]
    found = errors(gradients(trunk, module, image), expected)
    assert max(found.values()) <= TOLERANCE, (plan, found)
