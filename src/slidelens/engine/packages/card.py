"""The model card of a package, in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slidelens.errors import PluginError
from slidelens.families import FAMILIES
from slidelens.maps.run_settings import value_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from slidelens.engine.packages.manifest import Manifest

__all__ = ["model_card"]

_FIGURES = {
    "slides": "slides",
    "n": "slides",
    "auc": "AUC",
    "auc_ci": "AUC, 95 % interval",
    "pr_auc": "PR-AUC",
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "kappa": "kappa",
    "threshold": "operating point",
    "loss": "loss",
}


def model_card(manifest: Manifest) -> str:
    """Return the card, with the header that model hubs read."""
    return "\n".join(_lines(manifest)) + "\n"


def _lines(manifest: Manifest) -> Iterator[str]:
    yield from (
        "---",
        "library_name: slidelens",
        f"license: {str(manifest.licence or 'other').lower()}",
        f"tags: [whole-slide-image, pathology, slidelens, {manifest.family}]",
        "---",
        f"# {manifest.name}",
        "",
        _about(manifest),
        "",
        "## Intended use",
        "",
        f"{manifest.intended_use or 'Not stated.'}",
        "",
        "Research use only: not a medical device.",
        "",
        "## Configuration",
        "",
        f"- classes: {', '.join(manifest.classes)}",
        f"- resolution: {manifest.mpp:g} µm/px"
        + (f", tiles of {manifest.tile_size} px" if manifest.tile_size else ""),
    )
    for name, value in manifest.config.items():
        if value is not None and name not in ("mpp", "tile"):
            yield f"- {name.replace('_', ' ')}: {value_text(name, value)}"
    yield from ("", "## Training data", "", *_items(manifest.training_data))
    yield from ("", "## Performance", "", *_figures(manifest.metrics))
    if manifest.threshold is not None and manifest.threshold_rule:
        yield from ("", f"Operating point: {manifest.threshold:.3g} ({manifest.threshold_rule}).")
    yield from (
        "",
        "## Usage",
        "",
        "```",
        f"slidelens predict SLIDE --model PATH/TO/{manifest.name} --out results",
        "```",
        "",
        f"Weights: `weights.safetensors`, sha256 `{manifest.weights_sha256}`.",
    )


def _about(manifest: Manifest) -> str:
    try:
        family = FAMILIES.get(manifest.family)
    except (KeyError, PluginError):  # a card can be read where the model cannot be run
        return f"A model of family `{manifest.family}`."
    return f"{family.title}. {family.about}"


def _items(found: Any) -> Iterator[str]:
    if not found:
        yield "Not stated."
    elif isinstance(found, dict):
        for name, value in found.items():
            yield f"- {name.replace('_', ' ')}: {_text(value)}"
    else:
        yield str(found)


def _figures(metrics: Mapping[str, Any]) -> Iterator[str]:
    own = {k: v for k, v in metrics.items() if k in _FIGURES and v is not None}
    tables = {metrics.get("split") or "training": own} if own else {}
    if metrics.get("evaluation"):
        tables["evaluation"] = metrics["evaluation"]
    if not tables:
        yield "Not measured."
    for title, figures in tables.items():
        yield from (f"| on split {title} | |" if title != "evaluation" else "| evaluated | |",)
        yield "|---|---|"
        for key, label in _FIGURES.items():
            if figures.get(key) is not None:
                yield f"| {label} | {_text(figures[key])} |"
        yield ""
    if metrics.get("note"):
        note = str(metrics["note"])
        yield f"{note[:1].upper()}{note[1:]}."


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, dict):
        return "; ".join(f"{k} {_text(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    return str(value)
