"""Registries of built-ins and plugins, loaded when first asked for.

A plugin is an installed package with entry points in one of the groups. The module that an entry
point names declares ``SLIDELENS_API``, the version of the extension points it was written for.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from inspect import isabstract
from sys import modules
from typing import TYPE_CHECKING, Generic, TypeVar

from slidelens.errors import PluginError, SlideLensError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["API_VERSION", "Registry"]

API_VERSION = 1
"""Version of the extension points, raised when existing plugins must change."""

T = TypeVar("T")
log = logging.getLogger(__name__)


class Registry(Generic[T]):
    """Built-ins and lazy entry points of one kind, by name.

    Parameters
    ----------
    group
        Entry-point group that plugins use, for example ``"slidelens.families"``.
    kind
        Type of which every entry must be an instance (or, for classes, a subclass), as
        ``"module:attribute"``; imported when the first entry is loaded.
    builtins
        Name to ``"module:attribute"``. A plugin cannot replace a built-in: one that tries to is
        ignored, and :meth:`broken` reports it.
    """

    def __init__(self, group: str, kind: str, builtins: Mapping[str, str]) -> None:
        self.group = group
        self._kind = kind
        self._builtins = dict(builtins)
        self._loaded: dict[str, T] = {}

    @cached_property
    def _installed(self) -> dict[str, list[EntryPoint]]:
        """Every entry point of the group by name; several packages may claim the same one."""
        found: dict[str, list[EntryPoint]] = {}
        for entry in entry_points(group=self.group):
            others = found.setdefault(entry.name, [])
            if entry.value not in [other.value for other in others]:
                others.append(entry)
        return found

    @cached_property
    def _plugins(self) -> dict[str, EntryPoint]:
        return {n: e[0] for n, e in self._installed.items() if n not in self._builtins}

    def names(self) -> list[str]:
        """Return all names, built-ins first; nothing is loaded."""
        return [*self._builtins, *sorted(self._plugins)]

    def __contains__(self, name: object) -> bool:
        return name in self._builtins or name in self._plugins

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def get(self, name: str) -> T:
        """Load one entry.

        Raises
        ------
        KeyError
            No entry of that name.
        PluginError
            A plugin that raises while it loads, or gives something of the wrong type.
        """
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def plugins(self) -> list[str]:
        """Return the names that plugins bring; nothing is loaded."""
        return sorted(self._plugins)

    def package_of(self, name: str) -> dict[str, str]:
        """Return the package that brings a plugin, name to version; of a built-in nothing."""
        entry = self._plugins.get(name)
        dist = None if entry is None else entry.dist
        return {} if dist is None else {dist.name: dist.version}

    def broken(self) -> dict[str, str]:
        """Load every plugin and return name to reason for those that cannot be used."""
        reasons = {
            name: f"{self._where(name)} has the name of a built-in and is left out. "
            "Its maker must choose another name."
            for name in self._installed
            if name in self._builtins
        }
        for name in self._plugins:
            try:
                self.get(name)
            except PluginError as error:
                reasons[name] = str(error)
        return reasons

    @contextmanager
    def blaming(
        self, name: str, doing: str, kind: type[SlideLensError] = PluginError
    ) -> Iterator[None]:
        """Name the plugin whose code runs in the block, if it fails; a built-in is left alone.

        Errors that slidelens raises on purpose pass, and so does a lack of memory. The traceback
        goes to the log, at level debug.

        Parameters
        ----------
        name, doing
            Of the plugin, and what it failed to do ("to write x", "on x").
        kind
            Of the error to raise.
        """
        try:
            yield
        except (SlideLensError, MemoryError):
            raise
        except (Exception, SystemExit) as error:  # reason: a plugin may raise anything
            if name not in self._plugins or type(error).__name__ == "OutOfMemoryError":  # torch's
                raise
            log.debug("plugin %r", name, exc_info=error)
            why = " ".join(str(error).split()).rstrip(".")
            raise kind(
                f"plugin {name!r} (group {self.group}) failed {doing}: {type(error).__name__}: "
                f"{why}."
            ) from error

    def _load(self, name: str) -> T:
        if name in self._builtins:
            return _resolve(self._builtins[name])  # type: ignore[no-any-return]
        if name not in self._plugins:
            raise KeyError(name)
        entry, where = self._plugins[name], self._where(name)
        if len(self._installed[name]) > 1:
            raise PluginError(f"{where} is brought by several packages. Uninstall all but one.")
        try:
            thing = entry.load()
        except (Exception, SystemExit) as error:  # reason: a plugin may raise anything
            raise PluginError(
                f"{where} does not load: {type(error).__name__}: {error}. "
                "Update or uninstall the package that brings it."
            ) from error
        _check_version(modules.get(entry.module), where)
        kind = _resolve(self._kind)
        if not (isinstance(thing, kind) or (isinstance(thing, type) and issubclass(thing, kind))):
            raise PluginError(f"{where} is a {type(thing).__name__}, expected {kind.__name__}.")
        if isinstance(thing, type) and not isabstract(kind):
            raise PluginError(
                f"{where} is the class {thing.__name__}, expected an instance of {kind.__name__}."
            )
        called = getattr(thing, "name", name)
        if not isinstance(thing, type) and called != name:
            raise PluginError(
                f"{where} brings a {kind.__name__} that is called {called!r}; entry point and name "
                "must be the same."
            )
        return thing  # type: ignore[return-value]

    def _where(self, name: str) -> str:
        values = ", ".join(entry.value for entry in self._installed[name])
        return f"plugin {name!r} ({values}, group {self.group})"


def _check_version(module: object, where: str) -> None:
    declared = getattr(module, "SLIDELENS_API", None)
    if declared is None:
        raise PluginError(
            f"{where} declares no SLIDELENS_API; its module must say for which version of the "
            f"extension points it was written (this slidelens has {API_VERSION})."
        )
    if declared != API_VERSION:
        raise PluginError(
            f"{where} was written for version {declared!r} of the extension points, this slidelens "
            f"has {API_VERSION}. Update the package that brings it, or slidelens."
        )


def _resolve(target: str):  # type: ignore[no-untyped-def]  # reason: any object of any module
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)
