"""What makes probabilities and losses of logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from slidelens.nn.backbones import build_features
from slidelens.nn.mil import TileClassifier, class_probabilities, slide_loss


def test_two_classes_share_one_logit_and_more_have_their_own():
    features = build_features("squeezenet1_1")
    images = torch.randn(2, 3, 64, 64)
    assert TileClassifier(features, 2)(images).shape == (2, 1)
    assert TileClassifier(features, 3)(images).shape == (2, 3)


def test_one_logit_is_the_softmax_of_zero_and_it():
    logits = torch.randn(5, 1)
    pair = torch.cat((torch.zeros(5, 1), logits), 1)
    torch.testing.assert_close(class_probabilities(logits), torch.softmax(pair, 1))
    labels = torch.tensor([0, 1, 1, 0, 1])
    for smoothing in (0.0, 0.2):
        expected = F.cross_entropy(pair, labels, reduction="none", label_smoothing=smoothing)
        torch.testing.assert_close(slide_loss(logits, labels, smoothing), expected)


def test_half_precision_logits_give_fp32():
    logits = torch.randn(4, 3).bfloat16()
    assert class_probabilities(logits).dtype == torch.float32
    torch.testing.assert_close(class_probabilities(logits).sum(1), torch.ones(4))
    assert slide_loss(logits, torch.tensor([0, 1, 2, 0])).dtype == torch.float32


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("pooling", "most"), [("top1", 3), ("topk", 12), ("max", 1), ("mean", 64)])
def test_the_essence_of_batches_answers_as_all_tiles_do(pooling, most, classes):
    torch.manual_seed(0)
    network, vectors = TileClassifier(16, classes, pooling, top=4), torch.randn(64, 16)
    parts = vectors.split(16)
    kept = torch.cat([network.essence(part, network.instances(part)) for part in parts])
    assert len(network.essence(vectors, network.instances(vectors))) <= most
    assert len(kept) == 64 if pooling == "mean" else len(kept) < 64
    torch.testing.assert_close(network(bag=kept).logits, network(bag=vectors).logits)
