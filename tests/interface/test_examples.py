"""The examples in the docstrings of the Python interface run, and the names that it promises are there."""

from __future__ import annotations

import doctest
import inspect
import re

import cloudpickle
import pytest

import imf_core
import imf_core.interface.data as data_module
import imf_core.interface.models as models_module
import imf_core.parts.public as parts_module
import tune
import tune.interface as search_module
import tune.space.parameter as parameter_module
from imf_core.parts import registry


@pytest.mark.parametrize("module", [data_module, models_module, parameter_module, parts_module])
def test_the_examples_of_a_module_run(module) -> None:
    with registry.scope():
        done = doctest.testmod(module)
    assert done.attempted >= 1
    assert done.failed == 0


@pytest.mark.parametrize("package", [imf_core, tune])
def test_public_names_are_there_with_an_example_each(package) -> None:
    for name in set(package.__all__) - {"__version__", "ImfError", "Config", "SearchConfig", "SearchSpace", "Model"}:
        assert name in dir(package)
        text = inspect.getdoc(getattr(package, name))
        assert text is not None
        assert re.search(r"\n.*\w\(.*\)", text), f"{name} has no example"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("package", "name", "function"),
    [
        (imf_core, "train", models_module.train), (imf_core, "evaluate", models_module.evaluate),
        (imf_core, "prepare", data_module.prepare), (imf_core, "encode", data_module.encode),
        (tune, "search", search_module.search),
    ],
)
def test_a_module_with_the_name_of_a_function_is_called_as_it(package, name, function) -> None:
    module = getattr(package, name)
    assert inspect.ismodule(module)
    assert inspect.signature(module) == inspect.signature(function)
    assert inspect.getdoc(module).startswith(inspect.getdoc(function))
    assert cloudpickle.loads(cloudpickle.dumps(module)) is module
    with pytest.raises(TypeError, match=rf"{name}\(\) takes .* but 9 were given"):
        module(*range(9))
