"""A digest of everything that a result depends on; runs skip slides that match it."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from hashlib import file_digest, sha256
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from slidelens.errors import NewerResultError, ResultError, SlideError
from slidelens.families import FAMILIES
from slidelens.maps.folder import FILE, is_whole
from slidelens.maps.result import Result
from slidelens.maps.run_settings import RunSettings, region_text
from slidelens.maps.schema import read_result_file
from slidelens.nn.unchanged import WhileUnchanged
from slidelens.slide.array import in_memory
from slidelens.slide.open import open_slide
from slidelens.tiling.tissue import TissueMask

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from slidelens.engine.device import Precision
    from slidelens.families.base import Model
    from slidelens.geometry import Box
    from slidelens.maps.schema import SlideInfo
    from slidelens.slide.base import Slide
    from slidelens.tiling.tissue import TissueSettings

__all__ = [
    "LOADED",
    "fingerprint",
    "is_done",
    "is_other_content",
    "run_settings",
    "settings_sha256",
    "unlike_result",
    "weights_sha256",
]

_ALGORITHM = 2
"""Raised when a new version of the engine gives other results from the same settings."""

_BAG_ALGORITHM = 2
"""Raised when a new version gives other results from the same feature vectors."""

_SCHEME = "2:"
"""Begins fingerprints that are made in this way; others say nothing of a slide's content."""
_EDGE = 64 << 10
_BLOCK = 4 << 10
_BLOCKS = 16
"""Number of blocks between its ends that are read of a file, or of all of a slide's files."""
_STEP = 0.618034
"""From block to block, as a part of the file: even, and no multiple of the length of its rows."""
_SOME = 64
"""Number of a slide's files that are read."""
LOADED: WhileUnchanged[str] = WhileUnchanged()
"""Checksums of the packages that networks were loaded from."""
_known: WeakKeyDictionary[Slide, str] = WeakKeyDictionary()
"""Fingerprints of open slides."""
_METADATA = frozenset({".zattrs", ".zgroup", ".zarray", "zarr.json", "METADATA.ome.xml"})


def settings_sha256(
    slide: Slide,
    model: Model[Any],
    *,
    region: Box | None,
    precision: Precision,
    tissue: TissueSettings | TissueMask,
    bag: Path | None = None,
) -> str:
    """Digest everything that changes a result: slide, resolution, model, and settings of the run.

    ``bag`` is a given file of feature vectors; its content counts.

    File paths, device and batch size do not count; ``precision`` counts as requested, so that
    a cohort begun on a GPU can be finished on a laptop.
    """
    facts = {
        "algorithm": _ALGORITHM,
        "slide": [slide.id, *slide.size, *slide.require_mpp(), fingerprint(slide)],
        "model": [model.name, model.family, weights_sha256(model), model.classes],
        "config": model.config.model_dump(mode="json"),
        "normalisation": [model.mean, model.std],
        "threshold": model.card.get("threshold"),  # regions are drawn at it
        "region": None if region is None else [*map(float, region)],  # NumPy's numbers as well
        "precision": precision,
        "tissue": _tissue(tissue),
    }
    version = FAMILIES.get(model.family).version
    if version != 1:
        facts["version"] = version
    if slide.color_managed:
        facts["colour"] = "icc"
    if bag is not None:
        with bag.open("rb") as file:
            facts["bag"] = [_BAG_ALGORITHM, file_digest(file, "sha256").hexdigest()]
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def run_settings(
    model: Model[Any],
    *,
    region: Box | None,
    precision: Precision,
    tissue: TissueSettings | TissueMask,
) -> RunSettings:
    """Return how a model is run, for the result to store; file paths are left out."""
    places = {name for name, value in model.config if isinstance(value, Path)}
    return RunSettings(
        region=None if region is None else tuple(region),
        precision=precision,
        config=model.config.model_dump(mode="json", exclude=places),
        options={name: value for name, value in model.options.items() if name not in places},
        tissue={"method": "given"}
        if isinstance(tissue, TissueMask)
        else tissue.model_dump(mode="json"),
    )


def weights_sha256(model: Model[Any]) -> str:
    """Return the checksum of a model's weights, as in its package or in one made of it.

    That of its package holds as long as the weights are as they were loaded.
    """
    stated = LOADED.get(model.module)
    if stated is not None:
        return stated
    from safetensors.torch import save

    tensors = {k: v.detach().cpu().contiguous() for k, v in model.module.state_dict().items()}
    return sha256(save(tensors)).hexdigest()


def is_done(folder: Path, digest: str) -> bool:
    """Return whether ``folder`` holds a complete result of exactly these settings."""
    try:
        written = read_result_file(folder / FILE)
        return written.settings_sha256 == digest and is_whole(folder, written)
    except (ResultError, OSError):  # damaged, of another program, or it may not be read
        return False


def unlike_result(folder: Path, slide: Path, weights: str | None, region: Box | None) -> str:
    """Describe the result in ``folder`` if it is of another model, slide or region, or newer.

    The text is empty for any other result, such as an earlier run with other settings. ``weights``
    is the model's checksum (:func:`weights_sha256`), or None if it is not known. Another slide is
    one of another path whose content is another, too: one that was moved or changed is not.
    """
    if not (folder / FILE).is_file():
        return ""
    try:
        there = Result.load(folder)
    except NewerResultError:
        return "a result of a newer slidelens"
    except ResultError:  # damaged: nothing is lost
        return ""
    if None not in (there.model.sha256, weights) and there.model.sha256 != weights:
        return "a result with other weights, from another model of this name"
    if _is_another(slide, there.slide):
        made_on = there.slide.path or "in memory"
        return f"a result of another slide of this name ({made_on}, not {slide})"
    if there.settings is None or there.settings.region == (region and tuple(region)):
        return ""
    if there.settings.region is None:
        return "a result of the whole slide"
    return f"a result of region {region_text(there.settings)}"


def _is_another(path: Path, made_on: SlideInfo) -> bool:
    if made_on.path is not None and os.path.realpath(made_on.path) == os.path.realpath(path):
        return False
    with suppress(OSError, SlideError), open_slide(path) as slide:  # else running it says so
        return made_on.size not in (None, slide.size) or is_other_content(slide, made_on)
    return False


def _tissue(tissue: TissueSettings | TissueMask) -> object:
    if isinstance(tissue, TissueMask):  # somebody's own: what it covers, not how it was found
        return [tissue.affine, tissue.array.shape, sha256(tissue.array.tobytes()).hexdigest()]
    return tissue.model_dump(mode="json")


def fingerprint(slide: Slide) -> str:
    """Return a digest that identifies a slide's content without reading gigabytes.

    It covers the length of a file, both ends (a TIFF has its index in one of them) and some blocks
    in between; the names and lengths of all files in a folder, and of those that belong to the one
    that was opened, the metadata among them and parts of some of the others; the thumbnail of a
    slide in memory. No path or time counts, so that copies are the same slide. It is read once for
    each opened slide.
    """
    if slide not in _known:
        _known[slide] = _fingerprint(slide)
    return _known[slide]


def is_other_content(slide: Slide, made_on: SlideInfo) -> bool:
    """Return whether a slide's content is another than that which a result was made on.

    It is not, where the result (an old one, or another program's) does not state its own as we do.
    """
    stated = made_on.fingerprint or ""
    with suppress(OSError):  # gone in this moment: whoever reads it next says so
        return stated.startswith(_SCHEME) and stated != fingerprint(slide)
    return False


def _fingerprint(slide: Slide) -> str:
    digest = sha256()
    path = slide.path
    if in_memory(slide) or not path.exists():  # of one in memory the path is but a name
        parts = iter([slide.thumbnail(256).tobytes()])
    elif path.is_dir():
        files = sorted(Path(folder, name) for folder, _, names in os.walk(path) for name in names)
        parts = _of_files({file.relative_to(path).as_posix(): file for file in files})
    else:
        others = _of_files({file.name: file for file in sorted(slide.other_files())})
        parts = chain([_parts(path, _EDGE, _BLOCKS)], others)
    for part in parts:
        digest.update(part)
    return _SCHEME + digest.hexdigest()


def _of_files(files: Mapping[str, Path]) -> Iterator[bytes]:
    """Yield names and lengths of files, the metadata among them and parts of some of the others."""
    chunks = [file for file in files.values() if file.name not in _METADATA]
    some = {chunks[len(chunks) * i // _SOME] for i in range(_SOME)} if chunks else set()
    for name, file in files.items():
        yield f"{name}:{file.stat().st_size}:".encode()
        if file.name in _METADATA:
            yield file.read_bytes()
        elif file in some:
            yield _parts(file, _BLOCK, _BLOCKS // len(some))


def _parts(path: Path, edge: int, blocks: int) -> bytes:
    """Return a file's length, ``edge`` bytes of each end, and blocks spread over what is between.

    Of a short one all is returned.
    """
    length = path.stat().st_size
    with path.open("rb") as file:
        if length <= 2 * edge + blocks * _BLOCK:
            return f"{length}:".encode() + file.read()
        parts = [file.read(edge)]
        for start in sorted(int(i * _STEP % 1 * (length - _BLOCK)) for i in range(1, blocks + 1)):
            file.seek(start)
            parts.append(file.read(_BLOCK))
        file.seek(length - edge)
        return f"{length}:".encode() + b"".join(parts) + file.read(edge)
