"""Be somebody whom permissions hold for, which they do not for the superuser."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest


@contextmanager
def nobody() -> Iterator[None]:
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def see_nothing_where_barred(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pathlib answer as Python 3.14's does: a place that is barred is one where nothing is."""
    for name, answer in (
        ("exists", os.path.exists),
        ("is_dir", os.path.isdir),
        ("is_file", os.path.isfile),
    ):
        monkeypatch.setattr(Path, name, lambda path, answer=answer: answer(path))
