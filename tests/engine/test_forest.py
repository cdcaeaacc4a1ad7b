"""A forest as plain arrays gives what scikit-learn's gives, and survives disk and damage."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier

from slidelens.engine.staging.forest import Forest, fit_forest
from slidelens.errors import ModelError

CLASSES = ("negative", "itc", "micro", "macro")


@pytest.fixture(scope="module")
def cases():
    random = np.random.default_rng(0)
    x = random.normal(size=(80, 4))
    labels = [CLASSES[k] for k in np.digitize(x[:, 0] + 0.3 * x[:, 1], (-0.5, 1.0)) + 1]
    return [dict(zip("abcd", row, strict=True)) for row in x.tolist()], labels


@pytest.fixture(scope="module")
def forest(cases):
    return fit_forest(*cases, CLASSES, seed=3)


def test_it_gives_what_scikit_learn_gives(cases, forest):
    table, labels = cases
    x = np.array([list(row.values()) for row in table])
    theirs = RandomForestClassifier(500, class_weight="balanced", random_state=3)
    theirs.fit(x, [CLASSES.index(label) for label in labels])
    found = forest.probabilities(table)
    np.testing.assert_allclose(found[:, theirs.classes_], theirs.predict_proba(x), atol=1e-12)
    assert (found[:, 0] == 0).all()  # a class without a case
    fresh = np.random.default_rng(1).normal(size=(50, 4))
    rows = [dict(zip("dcba", row[::-1], strict=True)) for row in fresh.tolist()]
    np.testing.assert_allclose(
        forest.probabilities(rows)[:, theirs.classes_], theirs.predict_proba(fresh), atol=1e-12
    )


def test_it_is_read_back_without_scikit_learn(cases, forest, tmp_path, monkeypatch):
    forest.save(tmp_path / "f")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    again = Forest.load(tmp_path / "f")
    assert (again.classes, again.features) == (CLASSES, ("a", "b", "c", "d"))
    assert np.array_equal(again.probabilities(cases[0]), forest.probabilities(cases[0]))
    assert again.card["cases"] == {k: cases[1].count(k) for k in CLASSES}
    assert 0.6 < again.card["out_of_bag_accuracy"] <= 1
    with pytest.raises(ModelError, match=r"pip install 'slidelens\[staging\]'"):
        fit_forest(*cases, CLASSES)


def test_damage_is_refused(forest, tmp_path):
    with pytest.raises(ModelError, match="no forest"):
        Forest.load(tmp_path)
    forest.save(tmp_path / "f")
    card = json.loads((tmp_path / "f" / "forest.json").read_text())
    (tmp_path / "f" / "forest.json").write_text(json.dumps(card | {"features": ["a"]}))
    with pytest.raises(ModelError, match="its arrays are not trees"):
        Forest.load(tmp_path / "f")
    loop = np.zeros_like(forest.left)
    broken = Forest(**{**forest.__dict__, "left": loop})
    broken.save(tmp_path / "loop")
    with pytest.raises(ModelError, match="its arrays are not trees"):
        Forest.load(tmp_path / "loop")
    (tmp_path / "f" / "forest.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match="no forest"):
        Forest.load(tmp_path / "f")


def test_cases_of_one_class_are_refused(cases):
    with pytest.raises(ValueError, match="cases of 1 classes"):
        fit_forest(cases[0][:3], ["itc"] * 3, CLASSES)
