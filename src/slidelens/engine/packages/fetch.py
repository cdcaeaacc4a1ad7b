"""Fetch models from the network: cached, verified by SHA-256, never unpickled.

A reference is ``hf://owner/repository``, with ``@revision`` where wanted, or the ``https://``
address of a package's folder; ``#sha256=...`` pins the weights. Nothing is sent but the request.
"""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from filelock import Timeout

from slidelens.engine.locks import locked
from slidelens.engine.packages.manifest import MANIFEST, WEIGHTS, read_manifest
from slidelens.errors import ModelError
from slidelens.files import staged_folder
from slidelens.settings import get_settings
from slidelens.steps import finish

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

__all__ = ["Reference", "fetch_model", "fetching", "is_reference", "read_reference"]

_OPTIONAL = ("golden.safetensors", "README.md", "SHA256SUMS")
_EXPECTED = (
    "expected hf://owner/repository or https://host/folder; a model that is on this machine "
    "already needs no fetching: use its name or folder."
)
_SCHEMES = ("hf://", "https://", "http://")
_CHUNK = 1 << 20
_LARGEST = 256 << 20
"""Bytes of a file beside the weights."""
_ABSENT = (403, 404, 410)
"""How servers say that there is no such file: S3 forbids what it may not list."""
_SECONDS = 30.0
"""Without a byte for so long, a transfer has failed."""
_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a package's files lie.

    Attributes
    ----------
    text
        The reference as it was given.
    base
        Address of the files' folder, without the last slash.
    pinned
        SHA-256 that the weights must have; ``None`` if the reference states none.
    """

    text: str
    base: str
    pinned: str | None

    @property
    def folder(self) -> Path:
        """Where it is kept in the cache."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", self.base.rsplit("/", 1)[-1]).strip("-._")
        digest = sha256(self.base.encode()).hexdigest()[:12]
        return get_settings().cache_dir / "models" / f"{name or 'model'}-{digest}"


def is_reference(text: str | Path) -> bool:
    """Whether this names a model on the network."""
    return isinstance(text, str) and text.startswith(_SCHEMES)


def read_reference(text: str) -> Reference:
    """Read a reference.

    Raises
    ------
    ModelError
        It has another form than those above, or names no machine; ``http://`` to another machine
        than this one.
    """
    address, _, fragment = text.partition("#")
    pinned = None
    if fragment:
        match = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
        if match is None:
            raise ModelError(f"{text}: after '#' expected sha256= and 64 hexadecimal digits.")
        pinned = match[1].lower()
    if address.startswith("hf://"):
        match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", address)
        if match is None:
            raise ModelError(f"{text}: expected hf://owner/repository or ...@revision.")
        hub = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        _check_address(hub, f"{text}: HF_ENDPOINT {hub}", "expected https://host.")
        return Reference(text, f"{hub}/{match[1]}/resolve/{quote(match[2] or 'main')}", pinned)
    _check_address(address, text, _EXPECTED)
    return Reference(text, address.rstrip("/"), pinned)


def _check_address(address: str, what: str, expected: str) -> None:
    """Refuse what is no https address of a host; ``what`` and ``expected`` are for the message."""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port  # which raises for what is no number
    except ValueError as error:
        raise ModelError(f"{what}: is not an address ({error}).") from error
    if parts.scheme not in ("http", "https"):
        raise ModelError(f"{what}: {expected}")
    if not host:
        raise ModelError(f"{what}: names no host; {expected}")
    if parts.scheme == "http" and host not in ("127.0.0.1", "localhost", "::1"):
        raise ModelError(f"{what}: models are fetched over https:// only.")
    if not address.isascii() or any(c.isspace() for c in address):
        raise ModelError(
            f"{what}: has a space or a letter that addresses cannot have; write it as %20 and so "
            "on, as a browser's address line copies it."
        )


class _Redirects(HTTPRedirectHandler):
    """Follows a server to another address where that could have been given as well."""

    def redirect_request(self, req: Request, *args: Any) -> Request | None:
        """Check the address that is to be asked instead, the last argument."""
        what = f"{req.full_url}: the server sends on to {args[-1]}"
        _check_address(args[-1], what, _EXPECTED)
        if req.full_url.startswith("https:") and not args[-1].startswith("https:"):
            raise ModelError(f"{what}: models are fetched over https:// only.")
        return super().redirect_request(req, *args)


def fetch_model(
    text: str, *, refresh: bool = False, check: Callable[[Path], None] | None = None
) -> Path:
    """Return the cached folder of a package, fetching it if need be.

    ``text`` (the reference), ``refresh`` and ``check`` are as for :func:`fetching`, and so are the
    errors.
    """
    return finish(fetching(text, refresh=refresh, check=check))


def fetching(
    text: str, *, refresh: bool = False, check: Callable[[Path], None] | None = None
) -> Generator[tuple[int, int], None, Path]:
    """Fetch a package, yielding bytes done and bytes in all (0 if unknown) of its weights.

    What another process is fetching is waited for.

    Parameters
    ----------
    text
        A reference.
    refresh
        Fetch again what is in the cache; so is a package with other weights than are pinned.
    check
        Is called with the folder of a package that has arrived; what it refuses is not kept.

    Returns
    -------
    Path
        The package's folder. It appears whole or not at all.

    Raises
    ------
    ModelError
        No network, no such package, no manifest, weights of another checksum than stated or
        pinned, or what
        ``check`` refuses.
    """
    reference = read_reference(text)
    folder = reference.folder
    if refresh or not _kept(reference):
        try:
            with ExitStack() as held:
                yield from _alone(folder, held)
                if refresh or not _kept(reference):  # else another has just fetched it
                    staging = held.enter_context(staged_folder(folder, None))
                    yield from _download(reference, staging)
                    if check is not None:
                        check(staging)
        except OSError as error:
            raise ModelError(
                f"{folder}: cannot be written ({error.strerror or error}); make room or set "
                "SLIDELENS_CACHE to another folder."
            ) from error
    return folder


def _kept(reference: Reference) -> bool:
    """Whether the cache holds the package; with other weights than are pinned, it does not."""
    if not (reference.folder / MANIFEST).is_file():
        return False
    return reference.pinned in (None, read_manifest(reference.folder).weights_sha256)


def _alone(folder: Path, held: ExitStack) -> Generator[tuple[int, int], None, None]:
    """Wait until no other process fetches the package: the jobs of an array all begin with that."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            held.enter_context(locked(folder.parents[1] / f".{folder.name}.lock", _WAIT_S))
        except Timeout:
            yield 0, 0
        else:
            return


def _download(reference: Reference, staging: Path) -> Generator[tuple[int, int], None, None]:
    for _ in _save(reference, MANIFEST, staging):
        pass
    stated = read_manifest(staging).weights_sha256
    if reference.pinned not in (None, stated):
        raise ModelError(
            f"{reference.text}: the package's weights have sha256 {stated}; it has changed since "
            "it was pinned, or is another one."
        )
    digest = yield from _save(reference, WEIGHTS, staging)
    if digest != stated:
        raise ModelError(
            f"{reference.text}: {WEIGHTS} arrived with sha256 {digest[:12]}…, {MANIFEST} states "
            f"{stated[:12]}…: it was altered or cut short; fetch it again."
        )
    for name in _OPTIONAL:
        for _ in _save(reference, name, staging, optional=True):
            pass


def _save(
    reference: Reference, name: str, staging: Path, *, optional: bool = False
) -> Generator[tuple[int, int], None, str]:
    """Fetch one file; return its sha256, or nothing for an optional one that is not there."""
    url = f"{reference.base}/{name}"
    digest, done = sha256(), 0
    try:
        # The scheme was checked: https, or http on this machine.
        request = Request(url, headers={"User-Agent": "slidelens"})  # noqa: S310
        with build_opener(_Redirects).open(request, timeout=_SECONDS) as answer:
            if optional and answer.headers.get_content_type() == "text/html":
                return ""  # a page that says that there is no such file
            length = answer.headers.get("Content-Length") or ""
            total = int(length) if length.isdecimal() else 0
            with (staging / name).open("wb") as file:
                while chunk := answer.read(_CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    if name != WEIGHTS and done > _LARGEST:
                        raise ModelError(f"{url}: is larger than {_LARGEST >> 20} MB.")
                    yield done, total
    except HTTPError as error:
        if optional and error.code in _ABSENT:
            return ""
        raise ModelError(f"{url}: the server answered {error.code} {error.reason}.") from error
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise ModelError(
            f"{url}: cannot be fetched ({reason}); check the address and the network."
        ) from error
    if done < total:
        raise ModelError(f"{url}: only {done} of {total} bytes arrived; fetch it again.")
    return digest.hexdigest()
