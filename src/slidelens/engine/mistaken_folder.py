"""What a folder is that was given in place of another, and what to run then."""

from __future__ import annotations

import shlex
from itertools import islice
from typing import TYPE_CHECKING

from slidelens.maps.result import holds_results
from slidelens.slide.open import is_slide

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["what_it_is"]

_FILES = {
    "evaluation.json": "is an evaluation, which `slidelens report {at} --out report.html` reads",
    "model.json": "is a model: `slidelens predict SLIDES --model {at} --out RESULTS` makes results",
    "folds.json": "is a cross-validation: `slidelens predict SLIDES --model {at}/fold-1 --out "
    "RESULTS` makes results of one of its models, and `slidelens evaluate {at}/out_of_fold.csv "
    "--labels CSV --out EVAL` evaluates what each of them said of the slides that it held out",
    "training/checkpoint.json": "is a training that has not ended: the command that began it goes "
    "on with --resume",
}
"""What a folder is that has such a file."""
_ENTRIES = 200
"""A folder of slides is known by these first entries: a home directory may be large."""


def what_it_is(folder: Path) -> str | None:
    """Say what a folder is and what to run; ``None`` where it is nothing that we know."""
    at = shlex.quote(str(folder))
    try:
        for file, what in _FILES.items():
            if (folder / file).is_file():
                return f"it {what.format(at=at)}."
        if holds_results(folder):
            return (
                f"it holds results: `slidelens evaluate {at} --labels CSV --out EVAL` makes an "
                "evaluation."
            )
        if any(is_slide(path) for path in islice(folder.iterdir(), _ENTRIES)):
            return (
                f"it holds slides: `slidelens predict {at} --model MODEL --out RESULTS` makes "
                "results."
            )
    except OSError:  # it is no folder, or may not be looked into
        pass
    return None
