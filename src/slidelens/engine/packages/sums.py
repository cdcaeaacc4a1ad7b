"""``SHA256SUMS``: checksums of a package's files, as ``sha256sum`` reads them."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import TYPE_CHECKING

from slidelens.engine.packages.manifest import PARTS
from slidelens.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SUMS", "compare_sums", "write_sums"]

SUMS = "SHA256SUMS"


def write_sums(folder: Path) -> None:
    """List every file of a folder with its checksum."""
    lines = [
        f"{sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(folder.iterdir())
        if path.name != SUMS
    ]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def compare_sums(folder: Path) -> bool:
    """Compare every file of a package with its checksum; return whether the folder has a list.

    Raises
    ------
    ModelError
        A file that is missing, another one or not listed, or a list of another form.
    """
    if not (folder / SUMS).is_file():
        return False
    listed: dict[str, str] = {}
    for line in (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines():
        match = re.fullmatch(r"([0-9a-f]{64}) [ *]([^/\\]+)", line)
        if match is None:
            raise ModelError(f"{folder / SUMS}: not a line of checksums: {line[:80]!r}.")
        listed[match[2]] = match[1]
    for name, stated in listed.items():
        path = folder / name
        if not path.is_file():
            raise ModelError(f"{path} is missing; fetch the package again.")
        if sha256(path.read_bytes()).hexdigest() != stated:
            raise ModelError(
                f"{path} is not the file that was packed: it has another sha256 than {SUMS} "
                "states. Fetch the package again, or ask its maker."
            )
    unlisted = [n for n in sorted(PARTS - {SUMS}) if n not in listed and (folder / n).is_file()]
    if unlisted:
        raise ModelError(
            f"{folder / SUMS} does not list {', '.join(unlisted)}: it was cut short or altered. "
            "Fetch the package again, or ask its maker."
        )
    return True
