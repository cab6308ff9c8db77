"""`imf_core.train`, `evaluate` and `load`: a model in memory, with what a checkpoint holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from imf_core.checkpoint.carry_over import carry_over
from imf_core.checkpoint.checkpoint import Checkpoint, check_vocabulary, describe, load_state, save_checkpoint
from imf_core.config import Config
from imf_core.data.graph.graph import KnowledgeGraph, open_split
from imf_core.ensemble.ensemble import (
    Ensemble,
    answers_of,
    names_of,
    open_model,
    preferences_among,
    rank_split,
    strongest,
)
from imf_core.ensemble.teacher import rule_preferences
from imf_core.errors import CheckpointError, ConfigError
from imf_core.evaluate.metrics import RankingMetrics
from imf_core.evaluate.ranking import evaluate as rank_valid
from imf_core.evaluate.test_once import OWN
from imf_core.interface.data import Settings, already_prepared, prepare
from imf_core.model.imf import Imf
from imf_core.model.losses.distillation import Teacher
from imf_core.predict import Predictor
from imf_core.prepare.link_data import LinkData, graph_of
from imf_core.runtime import MemoryBudget, peak_memory
from imf_core.train.fit import build_model, fit
from imf_core.train.loop import FitResult
from imf_core.train.progress import EpochReport
from imf_core.train.sequential import Addition, add_modalities

RULES = "rules"  # as a teacher of preferences
_SHARED = ("data.", "structure.")  # settings that `prepare` has used up


@dataclass(frozen=True, repr=False)
class Model(Checkpoint):
    """A trained model: a checkpoint, in memory or loaded.

    `.metrics` has its figures, `.config` its settings, `.model` the PyTorch module, `.graph` the facts it was trained on;
    `.ended` says why its training ended and is empty for a loaded one.
    """

    ended: str = ""

    def predictor(self, data: str | None = None) -> Predictor:
        """Answers by name; `data` as of `Predictor.load`."""
        return Predictor(self, data)

    def save(self, folder: Path | str) -> Path:
        """Write a checkpoint folder, which `load` and every command read; one that is there is replaced.

        Raises:
            CheckpointError: the model was loaded from a checkpoint of a version that kept no facts.
        """
        if self.graph is None:
            raise CheckpointError(f"{self.path} was saved without its facts", remedy="copy its folder, or train it again")
        save_checkpoint(Path(folder), self.model, self.config, self.graph, self.metrics)
        return Path(folder)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Model:
        """The model of a loaded checkpoint."""
        return cls(**{item.name: getattr(checkpoint, item.name) for item in fields(Checkpoint)})

    def __repr__(self) -> str:
        mrr = self.metrics.get("validation", {}).get("mrr")
        figure = f"validation MRR {mrr:.4f}" if isinstance(mrr, float) else "no validation figures"
        return f"Model({', '.join(self.model.branches)}; {self.model.num_parameters:,} parameters; {figure})"


def train(
    data: Any = None, settings: Settings = None, *, start: Checkpoint | str | Path | None = None,
    teacher: Checkpoint | Ensemble | str | Path | None = None,
    preferences: Checkpoint | Ensemble | str | Path | None = None, add: Sequence[str] = (),
    on_epoch: Callable[[EpochReport], None] | None = None, say: Callable[[str], None] | None = None, progress: bool = False,
) -> Model:
    """Train one model; the best validation epoch is kept.

    Examples:
        >>> import imf_core as imf
        >>> triples = [(f"e{i}", "next", f"e{(i + 1) % 20}") for i in range(20)]
        >>> model = imf.train(triples, {"model.dim": 8, "model.relation_dim": 4, "train.max_epochs": 1})
        >>> [answer.entity for answer in model.predictor().tails("e3", "next", k=1, known="only")]
        ['e4']

    Args:
        data: from `prepare`, or what `prepare` takes; None: as the settings say.
        settings: by dotted name on top of the defaults (`imf config` prints them all), of `start`, or of `teacher`; or a whole
            `Config`.
        start: continue its weights; the graph may have changed.
        teacher: learn from its answers too.
        preferences: learn from its preferences among hard negatives too; `rules`: those of the one-step rules.
        add: modalities that are added to `start`, one after another, see `train.modality_order`.
        on_epoch: called after each evaluation; an exception that it raises ends the training.
        say: receives what the command prints about the model.
        progress: show a progress bar on a terminal.

    Raises:
        DataError: the data cannot be used.
        ConfigError: a setting is refused, or belongs to `prepare`.
        CheckpointError: `start` or `teacher` does not fit.
        DivergedError: a loss or score became non-finite.
        ResourceError: it does not fit the memory.
    """
    tell = say or (lambda line: None)
    first = start if isinstance(start, Checkpoint | None) else names_of(open_model(start))
    taught_by = teacher if isinstance(teacher, Checkpoint | Ensemble | None) else open_model(teacher)
    preferred_by = None if preferences == RULES else (
        preferences if isinstance(preferences, Checkpoint | Ensemble | None) else open_model(preferences)
    )
    ready = already_prepared(data)
    config = settings if isinstance(settings, Config) else configuration(
        ready.config if ready is not None else None, settings or {}, first, taught_by
    )
    if ready is None:
        # A continued model has its own vectors, so no structure table is needed.
        source = config if first is None else config.model_copy(update={"structure": Config().structure})
        ready = prepare(data, source, progress=progress)
        config = config.model_copy(update={"data": ready.config.data if ready.config is not None else config.data})
    elif ready.config is not None:
        _refuse_late(config, ready.config, first)
        kept = {"data": ready.config.data} if first is not None else {
            "data": ready.config.data, "structure": ready.config.structure
        }
        config = config.model_copy(update=kept)
    graph = ready.graph
    if taught_by is not None:
        check_teacher(taught_by, graph)
    if preferred_by is not None:
        check_teacher(preferred_by, graph)
    order = _order(config, add, first, ready)
    if order:
        present = first.model.all_modalities if first is not None else tuple(
            modality.name for modality in ready.select(config.model.modalities) if modality.name not in order
        )
        config = config.updated({"model.modalities": list(present)})
    model = build_model(config, ready)
    if first is not None:
        if (first.entities.names, first.relations.names) == (graph.entities.names, graph.relations.names):
            load_state(model, first.model.state_dict(), first.path)
        else:
            tell(f"from {first.path}: {carry_over(model, first, ready).describe()}")
    tell(f"{model.num_parameters:,} parameters; branches {', '.join(model.branches)}")
    among = None
    if preferred_by is not None or preferences == RULES:
        among = rule_preferences(graph) if preferred_by is None else preferences_among(preferred_by, graph)
        whose = RULES if preferred_by is None else preferred_by.path
        tell(f"preferences of {whose}: {among.pairs:,} pairs of hard negatives of {len(among.keys):,} queries")

    def train_one(
        one: Imf, its_config: Config, report: Callable[[EpochReport], None] | None = None
    ) -> FitResult[RankingMetrics]:
        """Train a model with its settings, by all teachers."""
        targets = None
        if taught_by is not None:
            targets = answers_of(taught_by, graph, its_config.train, one)
            if isinstance(targets, Teacher):
                how = f"all entities, also for {len(targets.heads):,} queries that no training triple asks"
            else:
                how = f"{targets.answers.shape[1]} answers to each of {targets.answers.shape[0]:,} queries"
            tell(f"taught by {taught_by.path}: {how}")

        def each(found: EpochReport) -> None:
            for function in (on_epoch, report):
                if function is not None:
                    function(found)

        return fit(one, ready, its_config, each, progress=progress, teacher=targets, preferences=among)

    additions: tuple[Addition, ...] = ()
    result = None
    started = time.monotonic()
    if not add:
        result = train_one(model, config)
    if order:
        mrr = result.best_mrr if result is not None else _validation_mrr(model, config, graph)
        extended = add_modalities(model, config, ready, order, mrr, train_one, lambda addition: tell(addition.describe()))
        model, config, additions, result = extended.model, extended.config, extended.additions, extended.result or result
        if result is None:
            assert first is not None
            raise ConfigError(
                f"none of the modalities helps on validation ({'; '.join(item.describe() for item in additions)})",
                remedy=f"keep {first.path} as it is", key="add", value=list(add),
            )
    assert result is not None
    for note in result.notes:
        tell(f"  {note}")
    metrics = {
        "validation": result.metrics.as_dict(), "best_epoch": result.best_epoch, "fingerprint": graph.fingerprint,
        "epochs": result.epochs, "cost": {"seconds": time.monotonic() - started, "peak_bytes": peak_memory()},
    }
    if taught_by is not None:
        metrics["teacher"] = str(taught_by.path.resolve())
    if among is not None:
        metrics["preferences"] = RULES if preferred_by is None else str(preferred_by.path.resolve())
    if additions:
        metrics["additions"] = [asdict(addition) for addition in additions]
    description = describe(config, model, graph, metrics)
    return Model(model.cpu(), config, graph.entities, graph.relations, metrics, Path(), description, graph, result.reason)


def evaluate(model: Checkpoint | Ensemble | str | Path, data: Any = None, split: str = "valid") -> RankingMetrics:
    """Filtered ranking of a split.

    Examples:
        >>> import imf_core as imf
        >>> triples = [(f"e{i}", "next", f"e{(i + 1) % 20}") for i in range(20)]
        >>> model = imf.train(triples, {"model.dim": 8, "model.relation_dim": 4, "train.max_epochs": 1})
        >>> metrics = imf.evaluate(model)
        >>> metrics.mrr == model.metrics["validation"]["mrr"], sorted(metrics.slices)[:2]
        (True, ['1-1', '1-N'])

    Args:
        model: a model, an ensemble, or the folder of either.
        data: from `prepare`, a `KnowledgeGraph` or a graph folder; None: what the model was trained on.
        split: valid or test; test is for final figures.

    Returns:
        MRR, mean rank and Hits@k, with slices by direction, relation category and whether entities are cold.

    Raises:
        DataError: the graph cannot be read, or has no such split.
        CheckpointError: the graph has other entities or relations than the model.
    """
    opened = open_model(model) if isinstance(model, str | Path) else model
    graph = graph_for(opened, data)
    return rank_split(opened, graph, split, *open_split(graph, split))[OWN].metrics


def load(folder: Path | str) -> Model | Ensemble:
    """Load a checkpoint or an ensemble; nothing in it can run code.

        model = imf_core.load("results/demo/best")  # or from the Hugging Face Hub: "hf://OWNER/NAME", "hf://OWNER/NAME@REVISION"
        model.predictor().tails("LATIN SMALL LETTER E WITH ACUTE", "canonical_base", k=5)

    Raises:
        CheckpointError: it is missing, damaged, of another version, or the hub does not show it.
    """
    opened = open_model(folder)
    return opened if isinstance(opened, Ensemble) else Model.of(opened)


def configuration(
    base: Config | None, settings: Mapping[str, Any], start: Checkpoint | None = None,
    teacher: Checkpoint | Ensemble | None = None, *, source: str = "settings",
) -> Config:
    """The settings of a training run.

    Args:
        base: what they are put on; None: those of `start`, else of the teacher's strongest member, else the defaults.
        settings: by dotted name.
        start: its own settings hold, whatever `base` says of the model.
        teacher: see `train`.
        source: named in an error.

    Raises:
        ConfigError: a setting is refused.
        CheckpointError: a setting of the model changes although weights are continued.
    """
    chosen = base
    if start is not None:
        data = {} if base is None else {"data": base.data, "structure": base.structure}
        chosen = start.config.model_copy(update=data)
    elif teacher is not None:
        own = strongest(teacher).config
        chosen = own if base is None else own.model_copy(update={"data": base.data, "structure": base.structure})
    chosen = chosen or Config()
    changed = [key for key in settings if key.startswith("model.") and settings[key] != chosen.flat().get(key)]
    if start is not None and changed:
        raise CheckpointError(
            f"{changed[0]} cannot change when weights are continued", remedy="leave it out, or train without --from"
        )
    chosen = chosen.updated(settings, source=source)
    return chosen.model_copy(update={"data": chosen.data.absolute()})


def check_teacher(teacher: Checkpoint | Ensemble, graph: KnowledgeGraph) -> None:
    """Refuse a teacher of other entities or relations than the graph's.

    Raises:
        CheckpointError: they differ.
    """
    check_vocabulary(names_of(teacher).description, graph.entities, graph.relations, teacher.path)


def graph_for(model: Checkpoint | Ensemble, data: Any = None) -> KnowledgeGraph:
    """The graph to rank with a model.

    Args:
        model: its entities and relations must be the graph's.
        data: as of `evaluate`.

    Raises:
        DataError: the graph cannot be read.
        CheckpointError: the graph has other entities or relations.
    """
    checkpoint = names_of(model)
    if (prepared := already_prepared(data)) is not None:
        graph = prepared.graph
    elif isinstance(data, KnowledgeGraph):
        graph = data
    elif data is None and model.path == Path() and checkpoint.graph is not None:  # trained in this process
        return checkpoint.graph
    else:
        settings = checkpoint.config.data
        graph = graph_of(settings if data is None else settings.elsewhere(str(data)))
    check_vocabulary(checkpoint.description, graph.entities, graph.relations, model.path)
    return graph


def _order(config: Config, add: Sequence[str], start: Checkpoint | None, data: LinkData) -> tuple[str, ...]:
    """The modalities that are added one after another.

    Raises:
        ConfigError: there is nothing to add them to, or one of them is not in use.
    """
    if add and start is None:
        raise ConfigError("there is no trained model to add a modality to", remedy="give one by --from", key="add", value=add)
    if start is not None:
        return tuple(add)  # the order in which its own modalities came is history
    order = config.train.modality_order
    used = [modality.name for modality in data.select(config.model.modalities)]
    if odd := [name for name in order if name not in used]:
        raise ConfigError(
            f"train.modality_order names {odd[0]!r}; the modalities in use are {', '.join(used) or 'none'}",
            remedy="name some of these", key="train.modality_order", value=odd[0],
        )
    return order


def _validation_mrr(model: Imf, config: Config, graph: KnowledgeGraph) -> float:
    """Validation MRR of a trained model, with its own decision."""
    memory = MemoryBudget.of(config.train.memory_budget_mb)
    return rank_valid(model.eval(), graph, graph.valid, graph.known(), counted=graph.counted_valid, memory=memory).metrics.mrr


def _refuse_late(config: Config, prepared: Config, start: Checkpoint | None) -> None:
    """Refuse settings that the data was prepared without.

    Raises:
        ConfigError: names the first one.
    """
    before, now, usual = prepared.flat(), config.flat(), Config().flat()
    late = [name for name in now if name.startswith(_SHARED) and now[name] not in (before.get(name), usual.get(name))]
    late = [name for name in late if start is None or not name.startswith("structure.")]
    if late:
        raise ConfigError(
            f"{late[0]} belongs to the data, which is prepared already", remedy="give it to prepare()", key=late[0],
            value=now[late[0]],
        )
