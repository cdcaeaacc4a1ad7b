"""What a folder is that was given in place of another, and what to run then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slidelens.errors import ResultError
from slidelens.maps.result import find_results
from slidelens.slide.open import is_slide

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["what_it_is"]

_FILES = {
    "evaluation.json": "is an evaluation, which `slidelens report {at} --out report.html` reads",
    "model.json": "is a model: `slidelens predict SLIDES --model {at} --out RESULTS` makes results",
    "folds.json": "is a cross-validation: `slidelens predict SLIDES --model {at}/fold-1 --out "
    "RESULTS` makes results of one of its models",
    "training/checkpoint.json": "is a training that has not ended: the command that began it goes "
    "on with --resume",
}
"""What a folder is that has such a file."""


def what_it_is(folder: Path) -> str | None:
    """Say what a folder is and what to run; ``None`` where it is nothing that we know."""
    try:
        for file, what in _FILES.items():
            if (folder / file).is_file():
                return f"it {what.format(at=folder)}."
        if any(True for _ in find_results(folder)):
            return (
                f"it holds results: `slidelens evaluate {folder} --labels CSV --out EVAL` makes an "
                "evaluation."
            )
        if any(is_slide(path) for path in folder.iterdir()):
            return (
                f"it holds slides: `slidelens predict {folder} --model MODEL --out RESULTS` makes "
                "results."
            )
    except (OSError, ResultError):  # it is no folder, or may not be looked into
        pass
    return None
