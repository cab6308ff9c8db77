"""Public names of a package that are imported when they are first used, so that importing the package does no work.

A public function may have the name of a subpackage or module: `imf_core.train` is the folder of training and, called, the
function that trains. Python's import system binds such a module to its package, and the binding makes it callable.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def export(package: str, names: Mapping[str, str]) -> None:
    """Give a package its public names.

    Args:
        package: its `__name__`; it is being imported.
        names: public name -> module that defines it.
    """
    module = sys.modules[package]
    module.__dict__["_public"] = dict(names)
    module.__class__ = LazyPackage


class _Importable(ModuleType):
    """A module of another class than the usual one."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process (cloudpickle, in Ray) by name, as any module is."""
        return import_module, (self.__name__,)


class LazyPackage(_Importable):
    """A package with public names, see `export`."""

    _public: dict[str, str]

    def __getattr__(self, name: str) -> Any:
        if name not in self._public:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if find_spec(f"{self.__name__}.{name}") is not None:
            import_module(f"{self.__name__}.{name}")  # binds it, see `__setattr__`
            return self.__dict__[name]
        value = getattr(import_module(self._public[name]), name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._public and isinstance(value, ModuleType):
            value.__class__ = CallableModule
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._public})


class CallableModule(_Importable):
    """A module with the name of a public function: a call, the docstring and the signature are the function's."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._function()(*arguments, **keywords)

    def _function(self) -> Any:
        package, _, name = self.__name__.rpartition(".")
        return getattr(import_module(sys.modules[package].__dict__["_public"][name]), name)

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        """Of the function, and a line on the module."""
        return f"{inspect.getdoc(self._function())}\n\nAs a module: {self.__dict__.get('__doc__')}"

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function())
