"""One cache, bounded in bytes, for the decoded tiles of all open slides."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from concurrent.futures import Future
from functools import cache
from itertools import count
from threading import Lock
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from slidelens.settings import get_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["TileCache", "new_owner", "tile_cache"]

Key = tuple[Hashable, ...]
Tile = NDArray[Any]
_owners = count()


def new_owner() -> int:
    """Return a new first element for the keys of one file's tiles."""
    return next(_owners)


class TileCache:
    """Least-recently-used arrays, by key, up to a number of bytes.

    Decoding happens outside the lock. A thread waits for a tile that another is decoding instead of
    decoding it again; this is common, since neighbouring reads share tiles.

    Parameters
    ----------
    capacity
        In bytes; 0 keeps nothing.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self._tiles: OrderedDict[Key, Tile] = OrderedDict()
        self._pending: dict[Key, Future[Tile]] = {}
        self._lock = Lock()

    def get(self, key: Key, make: Callable[[], Tile]) -> Tile:
        """Return the tile of ``key``; make and keep it if it is not there."""
        ((_, tile),) = self.each((key,), lambda _: make())
        return tile

    def each(self, keys: Iterable[Key], make: Callable[[Key], Tile]) -> Iterator[tuple[Key, Tile]]:
        """Yield every key with its tile; make and keep those that are not there.

        Tiles that other threads are decoding come last: threads that read neighbouring boxes decode
        one part each instead of queueing.
        """
        elsewhere = []
        for key in keys:
            found = self._find(key)
            if isinstance(found, Future):
                elsewhere.append((key, found))
            else:
                yield key, self._make(key, make) if found is None else found
        for key, pending in elsewhere:
            yield key, pending.result()

    def _find(self, key: Key) -> Tile | Future[Tile] | None:
        """Return a tile, or a promise of one; ``None`` if the caller must make it."""
        with self._lock:
            tile = self._tiles.get(key)
            if tile is not None:
                self._tiles.move_to_end(key)
                return tile
            pending = self._pending.get(key)
            if pending is None:
                self._pending[key] = Future()
            return pending

    def _make(self, key: Key, make: Callable[[Key], Tile]) -> Tile:
        try:
            tile = make(key)
            tile.flags.writeable = False
        except BaseException as error:
            with self._lock:
                mine = self._pending.pop(key)
            mine.set_exception(error)
            raise
        with self._lock:
            mine = self._pending.pop(key)
            self._keep(key, tile)
        mine.set_result(tile)
        return tile

    def drop(self, owner: Hashable) -> None:
        """Forget all tiles whose key begins with ``owner``: its slide was closed."""
        with self._lock:
            for key in [key for key in self._tiles if key[0] == owner]:
                self.used -= self._tiles.pop(key).nbytes

    def _keep(self, key: Key, tile: Tile) -> None:
        if tile.nbytes > self.capacity:
            return
        self._tiles[key] = tile
        self.used += tile.nbytes
        while self.used > self.capacity:
            self.used -= self._tiles.popitem(last=False)[1].nbytes

    def __len__(self) -> int:
        return len(self._tiles)


@cache
def tile_cache() -> TileCache:
    """Return the cache that all slides of this process share (``SLIDELENS_CACHE_MB``)."""
    return TileCache(get_settings().cache_mb << 20)
