"""A random forest that is kept as plain arrays: fitted by scikit-learn, read by numpy alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.errors import ModelError
from slidelens.files import staged_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Forest", "fit_forest"]

_ARRAYS, _CARD = "forest.safetensors", "forest.json"
_TREES = 500


@dataclass(frozen=True, eq=False)
class Forest:
    """Trees end to end; a sample goes left where its feature is at most the threshold.

    Attributes
    ----------
    classes, features
        Names, in the order of the columns.
    roots
        ``(T,)`` where each tree begins.
    left, right
        ``(N,)`` next node; a leaf is its own.
    feature, threshold
        ``(N,)`` what is compared with what.
    value
        ``(N, C)`` share of each class.
    card
        What else is known: cases, figures, versions.
    """

    classes: tuple[str, ...]
    features: tuple[str, ...]
    roots: NDArray[np.int64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    value: NDArray[np.float64]
    card: Mapping[str, Any]

    def probabilities(self, table: Sequence[Mapping[str, float]]) -> NDArray[np.float64]:
        """Return ``(n, C)``: the mean over all trees, for rows that hold all features."""
        # float32 first, as scikit-learn compares.
        x = np.array([[row[name] for name in self.features] for row in table], np.float32)
        node = np.broadcast_to(self.roots, (len(x), len(self.roots)))
        row = np.arange(len(x))[:, None]
        while True:
            left = x[row, self.feature[node]] <= self.threshold[node]
            following = np.where(left, self.left[node], self.right[node])
            if (following == node).all():
                return np.asarray(self.value[node].mean(1))
            node = following

    def save(self, folder: Path) -> None:
        """Write the forest as a folder: ``forest.json`` and ``forest.safetensors``."""
        from safetensors.numpy import save

        names = ("roots", "left", "right", "feature", "threshold", "value")
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in names}
        facts = {"classes": self.classes, "features": self.features, **self.card}
        with staged_folder(folder, {_ARRAYS, _CARD}) as staging:
            (staging / _ARRAYS).write_bytes(save(arrays))
            (staging / _CARD).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Forest:
        """Read a forest.

        Raises
        ------
        ModelError
            A folder that holds none, or one that was altered.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            facts = json.loads((folder / _CARD).read_text(encoding="utf-8"))
            arrays = load((folder / _ARRAYS).read_bytes())
            classes, features = tuple(facts.pop("classes")), tuple(facts.pop("features"))
            forest = cls(classes, features, card=facts, **arrays)
            forest._check()
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ModelError(
                f"{folder}: no forest ({error}); expected {_CARD} and {_ARRAYS}, as written by "
                "`slidelens stage fit`."
            ) from error
        return forest

    def _check(self) -> None:
        """Refuse arrays that point nowhere, or round in a circle."""
        nodes = np.arange(len(self.left))
        leaf = self.left == nodes
        inside = all(
            part.shape == nodes.shape and part.min() >= 0 and part.max() < limit
            for part, limit in (
                (self.left, len(nodes)),
                (self.right, len(nodes)),
                (self.feature, len(self.features)),
            )
        )
        forward = (self.left >= nodes).all() and (self.right >= nodes).all()
        shape = (len(nodes), len(self.classes))
        if (
            not (inside and forward and self.value.shape == shape)
            or (leaf != (self.right == nodes)).any()
        ):
            raise ValueError("its arrays are not trees")


def fit_forest(
    table: Sequence[Mapping[str, float]],
    labels: Sequence[str],
    classes: Sequence[str],
    *,
    seed: int = 0,
) -> Forest:
    """Fit a forest of 500 trees; rare classes weigh as much as common ones.

    Parameters
    ----------
    table
        One row of the same features per case.
    labels
        Class of each case.
    classes
        All classes in order; those without a case get probability 0.

    Raises
    ------
    ModelError
        scikit-learn is not installed.
    ValueError
        No cases, or cases of one class.
    """
    try:
        import sklearn
        from sklearn.ensemble import RandomForestClassifier
    except ImportError as error:
        raise ModelError(
            "fitting a forest needs scikit-learn: pip install 'slidelens[staging]'."
        ) from error
    if len(set(labels)) < 2:
        raise ValueError(f"cases of {len(set(labels))} classes; at least two are needed")
    features = tuple(table[0])
    x = np.array([[row[name] for name in features] for row in table])
    y = np.array([list(classes).index(label) for label in labels])
    forest = RandomForestClassifier(
        _TREES, class_weight="balanced", oob_score=True, random_state=seed
    ).fit(x, y)
    card = {
        "cases": {name: int((y == k).sum()) for k, name in enumerate(classes)},
        "out_of_bag_accuracy": float(forest.oob_score_),
        "seed": seed,
        "created_with": {"scikit-learn": sklearn.__version__},
    }
    return _flattened(forest, tuple(classes), features, card)


def _flattened(
    forest: Any, classes: tuple[str, ...], features: tuple[str, ...], card: Mapping[str, Any]
) -> Forest:
    """Lay the trees of scikit-learn end to end."""
    trees = [one.tree_ for one in forest.estimators_]
    counts = [tree.node_count for tree in trees]
    roots = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
    value = np.zeros((sum(counts), len(classes)))
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in ("left", "right", "feature")}
    for root, tree in zip(roots, trees, strict=True):
        own = np.arange(root, root + tree.node_count)
        leaf = tree.children_left < 0
        parts["left"].append(np.where(leaf, own, tree.children_left + root))
        parts["right"].append(np.where(leaf, own, tree.children_right + root))
        parts["feature"].append(np.where(leaf, 0, tree.feature))
        shares = tree.value[:, 0] / tree.value[:, 0].sum(1, keepdims=True)
        value[np.ix_(own, forest.classes_)] = shares
    joined = {name: np.concatenate(some).astype(np.int64) for name, some in parts.items()}
    threshold = np.concatenate([tree.threshold for tree in trees])
    return Forest(classes, features, roots, threshold=threshold, value=value, card=card, **joined)
