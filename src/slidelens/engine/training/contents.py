"""What the files say that a training begins with and learns from: it must not change on the way.

Digests of slides (or given feature bags), annotations and initial weights lie in the run's folder.
A run that goes on, and a cross-validation beside its finished folds, are refused where a file has
changed.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from hashlib import file_digest
from pathlib import Path
from typing import TYPE_CHECKING

from slidelens.engine.package import locate_model
from slidelens.engine.packages.manifest import WEIGHTS
from slidelens.engine.provenance import fingerprint
from slidelens.engine.training.state import STATE, VERSION, read_state
from slidelens.errors import LabelError, ModelError, listed
from slidelens.files import write_atomic
from slidelens.settings import get_settings
from slidelens.slide.open import open_slide

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slidelens.engine.training.plan import TrainPlan

__all__ = ["CONTENTS", "check_contents", "write_contents"]

CONTENTS = "contents.json"
"""File in a run's folder with the digests; older versions wrote none, or none of some kinds."""
_SLIDES = "slides"


def write_contents(plan: TrainPlan) -> None:
    """Keep the digests of the files that a training learns from in its folder.

    Parameters
    ----------
    plan
        The training.

    Raises
    ------
    LabelError, SlideError
        A file that cannot be read.
    OSError
        The digests cannot be written.
    """
    content = {"schema_version": VERSION, **_digests(_files(plan))}
    write_atomic(plan.out / STATE / CONTENTS, json.dumps(content, indent=1) + "\n")


def check_contents(plan: TrainPlan) -> None:
    """Refuse to go on with a training when what it learns from has changed since.

    What an older version has kept no digests of is taken as it is.

    Parameters
    ----------
    plan
        The training, whose folder has its state.

    Raises
    ------
    LabelError, SlideError
        A file that cannot be read.
    ModelError
        Files have changed (names them), or the digests cannot be read.
    """
    path = plan.out / STATE / CONTENTS
    if not path.exists():
        return
    what = "which tells whether what the training learns from has changed"
    kept = read_state(path, what, "Delete it if that has not")
    files = {kind: of for kind, of in _files(plan).items() if kind in kept}
    for kind, now in _digests(files).items():
        had, there = kept[kind], files[kind]
        changed = sorted(name for name in {*had, *now} if had.get(name) != now.get(name))
        if changed:
            names = [there[n].name if n in there else f"{n} (no longer there)" for n in changed]
            place = next(iter(there.values())).parent if there else "no folder"
            raise ModelError(
                f"{plan.out}: since its training began, {kind} in {place} have changed: "
                f"{listed(names)}. Put back what they were, or train into another folder; if "
                f"nothing that counts is another, delete {path}."
            )


def _files(plan: TrainPlan) -> dict[str, Mapping[str, Path]]:
    """Return the files that are learnt from, by kind and slide id, and those begun with."""
    first = Path(plan.weights)
    if plan.from_model is not None:
        first = locate_model(plan.from_model) / WEIGHTS
    return {
        "annotations": plan.annotations,
        "feature bags" if plan.given_bags else _SLIDES: plan.files,
        "initial weights": {"weights": first} if first.is_file() else {},
    }


def _digests(files: Mapping[str, Mapping[str, Path]]) -> dict[str, dict[str, str]]:
    with ThreadPoolExecutor(get_settings().reader_threads, "slidelens-digest") as readers:
        return {
            kind: dict(
                zip(
                    some, readers.map(partial(_digest, kind == _SLIDES), some.values()), strict=True
                )
            )
            for kind, some in files.items()
        }


def _digest(slide: bool, path: Path) -> str:
    try:
        facts = path.stat()
        return _digest_of(path, slide, facts.st_size, facts.st_mtime_ns)
    except OSError as error:
        raise LabelError(f"cannot read {path}: {error.strerror or error}.") from error


@lru_cache(maxsize=1 << 16)
def _digest_of(path: Path, slide: bool, *state: int) -> str:  # noqa: ARG001  # reason: of another state, another
    """Return a file's digest; the folds of a cross-validation ask for it again.

    Of a slide, whose gigabytes are not read, it is that by which results know it.
    """
    if slide:
        with open_slide(path) as opened:
            return fingerprint(opened)
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
