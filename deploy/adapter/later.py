"""A quick start. Modules that others import at once and few models need are loaded when first used here.

onnx_ir imports sympy for sizes that are sums and products of other sizes: a third of the time that our own
start takes.
"""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import find_spec
from types import ModuleType

_LATER = ("sympy", "onnx_ir._symbolic_shapes")
_MADE_BEFORE_COLLECTING = 20_000
"""Python looks for garbage after 700 new objects, which is half a second of a short build. Graphs are cycles,
so some time it has to: memory was 4 % more so."""


class _Later(ModuleType):
    """Stands for a module until something of it is asked for."""

    def __getattr__(self, name: str) -> object:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        loaded = import_module(self.__name__)
        self.__dict__.update(loaded.__dict__)
        return getattr(loaded, name)


def import_later() -> None:
    """Put stand-ins for these modules in their places; what is loaded, or not installed, is left alone."""
    for name in _LATER:
        package = name.rpartition(".")[0]
        home = find_spec(package) if package else None
        where = None if home is None else home.submodule_search_locations
        spec = PathFinder.find_spec(name, where) if where or not package else None
        if name not in sys.modules and spec is not None:
            sys.modules[name] = _Later(name)
            sys.modules[name].__spec__ = spec


def collect_seldom() -> None:
    """Look for garbage seldom from here on: in a process of ours, from its beginning."""
    gc.set_threshold(_MADE_BEFORE_COLLECTING, *gc.get_threshold()[1:])


def import_uncollected(name: str) -> None:
    """Import a module and all that it needs without looking for garbage on the way, nor among it later: a
    hundred thousand objects, all of which stay. For others it is looked seldom from here on."""
    if name in sys.modules:
        return
    gc.disable()
    try:
        import_module(name)
        gc.freeze()
    finally:
        collect_seldom()
        gc.enable()
