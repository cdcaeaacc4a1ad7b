"""A headless browser without network, for tests and pictures of pages."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

__all__ = ["browser"]

_QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def browser() -> Iterator[Browser]:
    """Start the system's Chromium, otherwise Playwright's own, and close it afterwards."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        where = shutil.which("chromium") or shutil.which("chromium-browser")
        found = play.chromium.launch(executable_path=where, args=list(_QUIET))
        try:
            yield found
        finally:
            found.close()
