"""The decorators that register parts of one's own, as `import imf_core` has them.

What each kind must do is written at the base class or function named here, and tested by its class in `imf_core.testing`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from imf_core.config_base import Section
from imf_core.parts.registry import Part, load_file, register

TargetT = TypeVar("TargetT")
Decorator = Callable[[TargetT], TargetT]


def _decorator(kind: str, name: str, settings: type[Section] | None, description: str, **facts: Any) -> Decorator[Any]:
    def registered(target: TargetT) -> TargetT:
        register(kind, name, target, settings, description, **facts)
        return target

    return registered


def scorer(name: str, *, settings: type[Section] | None = None, description: str = "") -> Decorator[Any]:
    """Register a relation model, a subclass of `imf_core.model.scoring.Scorer`; chosen by `model.scoring`.

    Examples:
        >>> import imf_core as imf
        >>> from imf_core.model.scoring import TransE
        >>> @imf.scorer("transe-narrow")
        ... class Narrow(TransE):
        ...     "TransE whose name is longer."
        >>> imf.Config().updated({"model.scoring": "transe-narrow"}).model.scoring
        'transe-narrow'

    Args:
        name: by which the setting chooses it.
        settings: class of its own settings; `Scorer.of` gets an instance of it behind the model's settings.
        description: one line; empty: the first of the docstring.

    Raises:
        ConfigError: there is one of that name. The same of all functions here.
    """
    return _decorator("scorer", name, settings, description)


def fusion(name: str, *, settings: type[Section] | None = None, description: str = "") -> Decorator[Any]:
    """Register a fusion operator, a subclass of `imf_core.model.fusion.base.Fusion`; chosen by `model.fusion`.

        @imf_core.fusion("weighted", settings=WeightedSettings)
        class WeightedSum(Fusion): ...
    """
    return _decorator("fusion", name, settings, description)


def text_encoder(name: str, *, settings: type[Section] | None = None, description: str = "") -> Decorator[Any]:
    """Register what makes a text encoder; chosen by `data.text_encoder`.

    Called with its settings, if it has some, it returns a `WholeEncoder` or a `PretrainedEncoder` (`imf_core/encode/base.py`)
    of texts.

        @imf_core.text_encoder("hashes")
        class WordHashes: ...
    """
    return _decorator("text_encoder", name, settings, description)


def image_encoder(name: str, *, settings: type[Section] | None = None, description: str = "") -> Decorator[Any]:
    """As `text_encoder`, of pictures: an item is a tuple of paths. Chosen by `data.image_encoder`.

        @imf_core.image_encoder("colours")
        class Colours: ...
    """
    return _decorator("image_encoder", name, settings, description)


def encoder(name: str, *, settings: type[Section] | None = None, description: str = "") -> Decorator[Any]:
    """Register what makes a modality of another sort, called as the part; chosen by `data.encoders=[NAME]`.

    Called with its settings, if it has some, it returns an object with `encode(folder, entities)`: from the graph folder and
    the N names to features (N, f), float32, and a mask (N,) of the entities that have some.

        @imf_core.encoder("sound")
        class Sound: ...
    """
    return _decorator("encoder", name, settings, description)


def regularizer(name: str, *, settings: type[Section] | None = None, description: str = "") -> Decorator[Any]:
    """Register a penalty with the arguments of `imf_core.model.losses.regularizer.n3`, its settings last; chosen by
    `train.regularizer`.

        @imf_core.regularizer("squares")
        def squares(scorer, heads, relations, contexts, tails, positives, row_weights): ...
    """
    return _decorator("regularizer", name, settings, description)


def loss(
    name: str, *, settings: type[Section] | None = None, description: str = "", reads: Literal["ce", "bce"] = "ce"
) -> Decorator[Any]:
    """Register a loss: (scores (B, N), positives, label smoothing[, settings]) -> scalar, a mean over the queries; chosen by
    `train.loss`.

        @imf_core.loss("hinge", reads="bce")
        def hinge(scores, positives, smoothing): ...

    Args:
        name, settings, description: as of `scorer`.
        reads: how scores become probabilities where branches are combined and answers are given: by softmax (`ce`) or by
            sigmoid (`bce`).
    """
    return _decorator("loss", name, settings, description, reads=reads)


def reader(name: str, *, description: str = "") -> Decorator[Any]:
    """Register a reader of files that are called `train.NAME`, `valid.NAME`, `test.NAME`: a function of the path that yields
    (head, relation, tail), three names, for each triple.

        @imf_core.reader("jsonl")
        def json_lines(path): ...
    """
    return _decorator("reader", name, None, description)


def task(value: TargetT) -> TargetT:
    """Register a task, an instance of `imf_core.tasks.task.Task`; chosen by `--task`.

        imf_core.task(LabelTask())
    """
    register("task", value.name, value)  # type: ignore[attr-defined]
    return value


def load_part(path: str) -> tuple[Part, ...]:
    """Import a Python file that registers parts, as `--part FILE` does.

        imf_core.load_part("rotate.py")

    Raises:
        ConfigError: it cannot be imported, or registers nothing.
    """
    return load_file(path)
