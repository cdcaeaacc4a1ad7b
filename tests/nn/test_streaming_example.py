"""The example of the documentation runs as it stands there, on a smaller image."""

from __future__ import annotations

import re
from pathlib import Path

import torch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "streaming.md"


def test_fifteen_lines_train_a_resnet_on_a_large_image():
    (example, *_) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    statements = [line for line in example.splitlines() if re.match(r"\S", line) and line != ")"]
    assert "10_000, 10_000" in example
    assert 'weights="DEFAULT"' in example
    assert len(example.splitlines()) <= 17  # 15 and the closing brackets
    assert len(statements) <= 15
    small = example.replace("10_000, 10_000", "300, 260").replace('"DEFAULT"', "None")
    small = small.replace("tile_size=512", "tile_size=96")
    before, step = small.split("loss =")
    names: dict[str, object] = {}
    torch.manual_seed(0)
    exec(before, names)
    head, trunk = names["head"], names["trunk"]
    assert isinstance(head, torch.nn.Module)
    assert isinstance(trunk, torch.nn.Module)
    weights = {n: p.detach().clone() for part in (head, trunk) for n, p in part.named_parameters()}
    exec("loss =" + step, names)
    for part in (head, trunk):
        for name, parameter in part.named_parameters():
            assert not torch.equal(parameter, weights[name]), name
