"""How much a chunk of an OME-Zarr unpacks to, which its header tells before it is unpacked."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from slidelens.errors import SlideError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Bounds"]

_ZSTD = b"\x28\xb5\x2f\xfd"
_SLACK = 1 << 16
"""Bytes that codecs within may add: checksums and headers."""
_FILTERED = 8
"""How much larger filters may make a chunk: one byte kept as a double."""


class Bounds:
    """Refuses what unpacks to more than a chunk of its array can hold: damage, or ill will.

    zstd and blosc are known, in which OME-Zarr is written: a few kilobytes of them may fill all of
    the memory. A frame of zstd that states no size is unpacked into as much as is allowed.

    Parameters
    ----------
    path
        The slide, for messages.
    array
        The opened array of zarr.
    """

    def __init__(self, path: Path, array: Any) -> None:
        self._path, self._shape = path, tuple(array.chunks)
        metadata: Mapping[str, Any] = array.metadata.to_dict()
        if metadata["zarr_format"] == 2:
            given = metadata.get("compressor") or {}  # before zarr 3.1 the codec itself
            codecs = [{"name": given.get("id", "") if isinstance(given, dict) else given.codec_id}]
        else:
            codecs = list(metadata["codecs"])
        self._shard: Mapping[str, Any] | None = None
        if codecs[0]["name"] == "sharding_indexed":
            self._shard = codecs[0]["configuration"]
            self._count = prod(array.shards) // prod(array.chunks)
            codecs = list(self._shard["codecs"])
        self._sum = 4 if codecs[-1]["name"] == "crc32c" else 0
        names = [codec["name"].removeprefix("numcodecs.") for codec in codecs]
        self._codec = next((name for name in reversed(names) if name != "crc32c"), "")
        raw = prod(array.chunks) * array.dtype.itemsize
        self._most = raw * (_FILTERED if array.filters else 1) + raw // 8 + _SLACK

    def check(self, key: str, content: NDArray[np.uint8], *, whole: bool) -> None:
        """Check what a store gave for a key.

        Parameters
        ----------
        key
            Of the chunk or shard.
        content
            ``(N,)`` bytes: a chunk, or (``whole``) the shard with all of its chunks.
        whole
            Whether it is all that the store has under the key.

        Raises
        ------
        SlideError
            A chunk in it unpacks to more than it can hold.
        """
        if self._codec not in ("zstd", "blosc"):
            return
        for part in (content,) if self._shard is None or not whole else self._parts(content):
            size = self._unpacked(part)
            if size > self._most:
                raise SlideError(
                    f"{self._path}: its chunk {key} unpacks to {size:,} bytes or more, where one "
                    f"of {self._shape} has room for {self._most:,}: it is damaged; copy it again."
                )

    def _parts(self, shard: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        """Yield the chunks of a shard."""
        assert self._shard is not None
        codecs: Sequence[Mapping[str, Any]] = self._shard["index_codecs"]
        order = codecs[0].get("configuration", {}).get("endian", "little")
        size = self._count * 16
        after = 4 if any(codec["name"] == "crc32c" for codec in codecs) else 0
        at_start = self._shard.get("index_location") == "start"
        begin = 0 if at_start else len(shard) - size - after
        if begin < 0 or len(shard) < size:
            return  # damaged, as zarr will say
        index = shard[begin : begin + size].view(">u8" if order == "big" else "<u8")
        for offset, length in index.reshape(-1, 2).tolist():
            if offset < len(shard):
                yield shard[offset : offset + length]

    def _unpacked(self, chunk: NDArray[np.uint8]) -> int:
        """Return how many bytes a chunk unpacks to by its header; 0: it is not of its codec."""
        head = chunk[:18].tobytes()
        if self._codec == "blosc":
            packed = int.from_bytes(head[12:16], "little")
            return int.from_bytes(head[4:8], "little") if packed == len(chunk) - self._sum else 0
        if not head.startswith(_ZSTD) or len(head) < 6:
            return 0
        size = _stated(head)
        return self._tried(chunk) if size is None else size

    def _tried(self, chunk: NDArray[np.uint8]) -> int:
        """Unpack a frame of unknown size into what is allowed."""
        from imagecodecs import ZstdError, zstd_decode

        try:
            zstd_decode(chunk[: len(chunk) - self._sum].tobytes(), out=self._most)
        except ZstdError as error:
            return self._most + 1 if "too small" in str(error) else 0
        return 0


def _stated(head: bytes) -> int | None:
    """Return the size that the header of a frame of zstd states (RFC 8878, 3.1.1.1)."""
    flags = head[4]
    single = flags >> 5 & 1
    width = (single, 2, 4, 8)[flags >> 6]
    if not width:
        return None
    begin = 5 + (1 - single) + (0, 1, 2, 4)[flags & 3]
    return int.from_bytes(head[begin : begin + width], "little") + 256 * (width == 2)
