"""What the files say that a training learns from beside its slides: it must not change on the way.

Digests of annotations and of given feature bags lie in the run's folder, by slide. A run that goes
on, and a cross-validation beside its finished folds, are refused where a file has changed.
"""

from __future__ import annotations

import json
from functools import lru_cache
from hashlib import file_digest
from typing import TYPE_CHECKING, Any

from slidelens.engine.training.state import STATE
from slidelens.errors import LabelError, ModelError, listed
from slidelens.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from slidelens.engine.training.plan import TrainPlan

__all__ = ["CONTENTS", "check_contents", "write_contents"]

CONTENTS = "contents.json"
"""File in a run's folder with the digests; there is none where nothing but slides is learnt from,
and older versions wrote none."""
_VERSION = 1


def write_contents(plan: TrainPlan) -> None:
    """Keep the digests of the files that a training learns from in its folder.

    Parameters
    ----------
    plan
        The training.

    Raises
    ------
    LabelError
        A file that cannot be read.
    OSError
        The digests cannot be written.
    """
    path, digests = plan.out / STATE / CONTENTS, _digests(_files(plan))
    if any(digests.values()):
        write_atomic(path, json.dumps({"schema_version": _VERSION, **digests}, indent=1) + "\n")
    else:
        path.unlink(missing_ok=True)


def check_contents(plan: TrainPlan) -> None:
    """Refuse to go on with a training whose annotations or feature bags have changed since.

    One that an older version began has kept no digests, and is taken as it is.

    Parameters
    ----------
    plan
        The training, whose folder has its state.

    Raises
    ------
    LabelError
        A file that cannot be read.
    ModelError
        Files have changed (names them), or the digests cannot be read.
    """
    kept = _kept(plan.out / STATE / CONTENTS)
    files = _files(plan)
    for kind, now in _digests(files).items() if kept else ():
        had, there = kept.get(kind, {}), files[kind]
        changed = sorted(name for name in {*had, *now} if had.get(name) != now.get(name))
        if changed:
            names = [there[n].name if n in there else f"{n} (no longer there)" for n in changed]
            place = next(iter(there.values())).parent if there else "no folder"
            raise ModelError(
                f"{plan.out}: since its training began, {kind} in {place} have changed: "
                f"{listed(names)}. Put back what they were, or train into another folder."
            )


def _files(plan: TrainPlan) -> dict[str, Mapping[str, Path]]:
    """Return the files that are learnt from, by kind and slide id."""
    bags = plan.files if getattr(plan.training, "bags", None) is not None else {}
    return {"annotations": plan.annotations, "feature bags": bags}


def _digests(files: Mapping[str, Mapping[str, Path]]) -> dict[str, dict[str, str]]:
    return {
        kind: {name: _digest(path) for name, path in some.items()} for kind, some in files.items()
    }


def _digest(path: Path) -> str:
    try:
        facts = path.stat()
        return _digest_of(path, facts.st_size, facts.st_mtime_ns)
    except OSError as error:
        raise LabelError(f"cannot read {path}: {error.strerror or error}.") from error


@lru_cache(maxsize=1 << 16)
def _digest_of(path: Path, *state: int) -> str:  # noqa: ARG001  # reason: of another state, another
    """Return a file's digest; the folds of a cross-validation ask for it again."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _kept(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot read {path}, which tells whether annotations or feature bags have changed: "
            f"{error}. Delete it if they have not."
        ) from error
    if not isinstance(kept, dict) or kept.get("schema_version") != _VERSION:
        raise ModelError(
            f"{path} is not of this version (schema_version {_VERSION} is expected); finish the "
            "training with the version that began it."
        )
    return kept
