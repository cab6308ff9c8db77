"""Training a link predictor. No Ray, no MLflow: progress is reported to `on_epoch`, and a resumed run gives the same bits.

The random numbers of an epoch depend on (seed, epoch, rank) alone, so a run that resumes after epoch 3 draws the same numbers
in epoch 4 as an uninterrupted run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from imf_core.config import STRUCTURE, Config
from imf_core.config_train import Precision, TrainConfig
from imf_core.data.graph.graph import KnowledgeGraph, KnownAnswers
from imf_core.errors import ConfigError, DataError
from imf_core.evaluate.calibrate import calibrate, rank_by_fold
from imf_core.evaluate.metrics import RankingMetrics
from imf_core.evaluate.ranking import evaluate
from imf_core.model.auxiliary import Auxiliary
from imf_core.model.cold_entities import ColdEntities
from imf_core.model.imf import Imf
from imf_core.model.known_facts import give_facts
from imf_core.model.losses.distillation import SoftTargets, Teacher
from imf_core.model.losses.preference import Preferences
from imf_core.model.static.step import StaticStep, why_not_static
from imf_core.prepare.link_data import LinkData
from imf_core.runtime import WHOLE, MemoryBudget, Shard, default_device, keep_freed_memory
from imf_core.train.averaging import WeightAverage, averaged_tensors
from imf_core.train.batches import TrainingQueries
from imf_core.train.epoch import train_epoch
from imf_core.train.loop import FitResult, Loop, Saving, reduced
from imf_core.train.optimizers import Optimizers
from imf_core.train.progress import EpochReport, RunProgress
from imf_core.train.step.captured import CudaGraphs, Recorder
from imf_core.train.step.planning import Planning
from imf_core.train.step.steps import Steps

logger = logging.getLogger(__name__)


def build_model(config: Config, data: LinkData) -> Imf:
    """The model of a configuration, initialised with its seed; the structure branch from the data's table, if there is one.

    Raises:
        DataError: a configured modality, or the view of a head, is missing in the data.
    """
    graph, modalities = data.graph, data.select(config.model.modalities)
    views = {STRUCTURE, *(modality.name for modality in data.modalities)}
    for head in config.model.heads:
        if head.view not in views:
            raise DataError(
                f"a head scores {head.view!r}; the graph has {', '.join(sorted(views))}", remedy="correct model.heads"
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        model = Imf(config.model, graph.num_entities, graph.num_relations, modalities, config.train.loss, data.structure)
        give_facts(model, graph)
    model.cold_entities = ColdEntities.of(torch.from_numpy(graph.seen), modalities, structure=data.structure is None)
    return model


def fit(
    model: Imf,
    data: LinkData,
    config: Config,
    on_epoch: Callable[[EpochReport], None] | None = None,
    *,
    shard: Shard = WHOLE,
    saving: Saving | None = None,
    device: torch.device | None = None,
    progress: bool = False,
    teacher: SoftTargets | Teacher | None = None,
    preferences: Preferences | None = None,
    static: bool | None = None,
) -> FitResult[RankingMetrics]:
    """Train until the validation MRR stops rising, and leave the best epoch's weights in the model.

    Args:
        model: from `build_model`, or a loaded checkpoint to continue.
        data: graph (train and valid are read; test is not reachable from here) and modalities.
        config: settings of the run.
        on_epoch: called after each evaluation, on every rank; an exception it raises ends the run. A resumed run first
            repeats the last saved report, so that each epoch is reported at least once.
        shard: this process; with `world` > 1 a process group must exist, and the gradients are averaged (DDP).
        saving: save the training state, and resume from it if there is one; None: do neither.
        device: where to train; default: a GPU if there is one, else the CPU.
        progress: show a progress bar if the terminal is interactive.
        teacher: its answers to the training queries, or itself, see `imf_core.ensemble.teacher`; weighed by
            `train.distil_weight`.
        preferences: of a teacher among hard negatives, see the same; weighed by `train.preference_weight`.
        static: train with the `StaticStep`, where the settings allow it; None: on a GPU, or if it is to be compiled.

    Returns:
        The best validation result.

    Raises:
        DataError: too few queries, or no validation triples.
        ConfigError: `train.distil_terms` or a teacher that is asked in each step does not go with sampled candidates.
        DivergedError: a loss or score became non-finite.
        ResourceError: a step or the ranking does not fit the memory even with the smallest budget for scores.
    """
    settings, graph = config.train, data.graph
    if not len(graph.valid):
        raise DataError("the graph has no validation triples", remedy="add valid.tsv: the best epoch is chosen on it")
    soft, asked = (None, teacher) if isinstance(teacher, Teacher) else (teacher, None)
    if teacher is not None and settings.samples(graph.num_entities) and (asked is not None or teacher.terms != "every"):
        key, value = ("train.distil_terms", teacher.terms) if asked is None else ("train.distil_answers", "distribution")
        raise ConfigError(
            f"{key}={value} needs the loss over all entities", remedy="leave train.num_negatives out", key=key, value=value
        )
    device = device or default_device()
    model.to(device)
    keep_freed_memory()
    settings = settings.model_copy(update={"precision": precision_on(device, settings.precision)})
    memory = MemoryBudget.of(settings.memory_budget_mb, device)
    settings = settings.model_copy(update={"memory_budget_mb": memory.size >> 20})
    config = config.model_copy(update={"train": settings})
    queries = TrainingQueries(graph, soft, settings.answers_per_query)
    steps = queries.num_steps(settings.batch_size, shard.world)
    known = graph.known()
    auxiliary = Auxiliary(model, settings, preferences, asked)
    optimizers = build_optimizers(model, config, early=shard.world == 1 and device.type == "cpu")
    loop = Loop(settings.max_epochs, settings.patience, settings.eval_every, shard, on_epoch, saving)
    run = loop.begin(model, optimizers, RankingMetrics.unpack)
    step = _static_step(model, settings, device.type == "cuda" or settings.compile if static is None else static)
    trained: nn.Module = model if step is None else step
    if shard.world > 1:
        # `Optimizers` averages sparse gradients by rows. DDP prefixes parameters of the outermost module with a dot.
        ignored = [name if "." in name else f".{name}" for name in model.sparse_parameters(settings)]
        nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
        trained = nn.parallel.DistributedDataParallel(trained, broadcast_buffers=False, gradient_as_bucket_view=True)

    planning = None if step is None else Planning(step)
    recorder: Recorder | None = CudaGraphs() if step is not None and device.type == "cuda" else None
    running = Steps(trained, settings, optimizers, device, memory, shard.world, planning, recorder)

    def epoch(number: int) -> dict[str, float]:
        losses = train_epoch(running, queries, config, number, shard)
        _average_buffers(model, shard)
        return losses

    def validate() -> RankingMetrics:
        model.replace_cold_rows()
        return _validate(model, graph, known, memory, shard, device)

    with closing(auxiliary), closing(optimizers), _bar(progress, settings.max_epochs, run.epoch) as advance:
        loop.run(run, model, optimizers, epoch, steps, validate, advance)
    model.eval()
    return FitResult.of(run, [*memory.notes, *running.notes])


def _static_step(model: Imf, settings: TrainConfig, wanted: bool) -> StaticStep | None:
    """The static step of a training; None, with a line in the log, where the settings do not allow it."""
    if not wanted:
        return None
    if (reason := why_not_static(model, settings)) is not None:
        logger.info("the training step works branch by branch: %s", reason)
        return None
    step = StaticStep(model, settings)
    if settings.compile:
        step.compile_losses()
    return step


def precision_on(device: torch.device, asked: Precision) -> Precision:
    """What `train.precision` means on a device.

    `auto` is the fastest that was measured: on a CPU bf16, if it multiplies that in hardware (emulation is slower than fp32),
    on a GPU TF32. TF32 is fp32 where there is none.
    """
    if device.type == "cuda":
        return "tf32" if asked == "auto" else asked
    if asked == "auto":
        capabilities = torch.cpu.get_capabilities()
        return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
    return "fp32" if asked == "tf32" else asked


def build_optimizers(model: Imf, config: Config, early: bool) -> Optimizers:
    """The optimizers of a configuration; `early` as of `Optimizers`."""
    settings = config.train
    sparse = model.sparse_parameters(settings).values()
    optimizers = Optimizers(
        model, settings.optimizer, settings.lr, settings.weight_decay, sparse, early, model.adagrad_parameters(settings),
        settings.table_lr
    )
    if settings.average or settings.average_share:
        averaged = averaged_tensors(model.trained_state(), ["decision.logits"])  # those are fitted again at each evaluation
        optimizers.average = WeightAverage(averaged, settings.average, settings.average_share)
    return optimizers


def _average_buffers(model: Imf, shard: Shard) -> None:
    """Average the BatchNorm statistics over the ranks, so that all evaluate and save the same model."""
    if shard.world > 1:
        for name, buffer in model.named_buffers():
            if "running_" in name:
                dist.all_reduce(buffer)
                buffer /= shard.world


def _validate(
    model: Imf, graph: KnowledgeGraph, known: KnownAnswers, memory: MemoryBudget, shard: Shard, device: torch.device
) -> RankingMetrics:
    """Rank the validation triples. Learned decision weights are fitted crosswise, so that no triple is ranked with weights that
    were fitted to it; the model keeps the weights fitted to all of them.
    """
    fitted, counted = calibrate(model, graph, graph.clean_valid, known, memory), graph.counted_valid
    if fitted is None:
        ranked = evaluate(model, graph, graph.valid, known, counted=counted, memory=memory, shard=shard)
        return reduced(ranked.metrics, shard, device)
    by_fold = []
    for logits in (*fitted.crosswise, fitted.final):
        assert model.decision.logits is not None
        model.decision.logits.copy_(logits)
        if shard.world > 1:  # every rank has fitted them; rank 0's make them equal to the last bit
            dist.broadcast(model.decision.logits, 0)
        by_fold.append({"": model.decision.with_logits(model.decision.logits)})
    ranked = rank_by_fold(model, graph, graph.valid, known, by_fold[:2], counted=counted, memory=memory, shard=shard)[""]
    return reduced(ranked.metrics, shard, device)


@contextmanager
def _bar(wanted: bool, total: int, done: int) -> Iterator[Callable[[RunProgress], None]]:
    """A progress bar over `total` epochs of which `done` are trained; yields a function that updates it."""
    console = Console(stderr=True)
    if not (wanted and console.is_terminal):
        yield lambda run: None
        return
    columns = (
        TextColumn("[bold]epoch"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total, completed=done)
        yield lambda run: bar.update(
            task, completed=run.epoch,
            description=f"validation MRR {run.curve[-1][1]:.4f}, best {run.best_mrr:.4f}" if run.curve else "",
        )
