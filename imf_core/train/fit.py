"""The training loop. No Ray, no MLflow: progress leaves through `on_epoch`, and an interrupted run goes on to the bit.

The random numbers of an epoch depend on (seed, epoch, rank) alone, so a run that resumes after epoch 3 draws in epoch 4
what the unbroken run would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from imf_core.config import Config
from imf_core.data.graph.graph import KnowledgeGraph, KnownAnswers
from imf_core.errors import DataError
from imf_core.evaluate.calibrate import calibrate, folds
from imf_core.evaluate.metrics import RankingMetrics
from imf_core.evaluate.ranking import evaluate
from imf_core.model.cold_entities import ColdEntities
from imf_core.model.imf import Imf
from imf_core.model.losses.distillation import SoftTargets
from imf_core.prepare.link_data import LinkData
from imf_core.runtime import WHOLE, MemoryBudget, Shard, keep_freed_memory
from imf_core.train.averaging import WeightAverage, averaged_tensors
from imf_core.train.batches import TrainingQueries
from imf_core.train.epoch import train_epoch
from imf_core.train.loop import FitResult, Loop, Saving, reduced
from imf_core.train.optimizers import Optimizers
from imf_core.train.progress import EpochReport, RunProgress


def build_model(config: Config, data: LinkData) -> Imf:
    """The model of a configuration, initialised from its seed; the structure branch from the data's table, if there is one.

    Raises:
        DataError: a configured modality is missing in the data.
    """
    graph, modalities = data.graph, data.select(config.model.modalities)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        model = Imf(config.model, graph.num_entities, graph.num_relations, modalities, config.train.loss, data.structure)
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
    teacher: SoftTargets | None = None,
) -> FitResult[RankingMetrics]:
    """Train until the validation MRR stops rising, and leave the best epoch's weights in the model.

    Args:
        model: from `build_model`, or a loaded checkpoint to continue.
        data: graph (train and valid are read; test is not reachable from here) and modalities.
        config: its `train` part rules the loop.
        on_epoch: called after each evaluation, on every rank; an exception it raises ends the run. A resumed run first
            repeats the last report that was saved, so that each epoch is reported at least once.
        shard: this process's part; with `world` > 1 a process group must exist and the gradients are averaged (DDP).
        saving: keep the training state, and resume from it if there is one.
        device: where to train; default: a GPU if there is one, else the CPU.
        progress: show a bar when the terminal is interactive.
        teacher: its answers to the training queries, see `imf_core.ensemble.teacher`; weighed by `train.distil_weight`.

    Returns:
        The best validation result.

    Raises:
        DataError: too few queries, or no validation triples.
        DivergedError: a loss or score became non-finite.
        ResourceError: a step or the ranking does not fit the memory, however little of it scores may take.
    """
    settings, graph = config.train, data.graph
    if not len(graph.valid):
        raise DataError("the graph has no validation triples", remedy="add valid.tsv: the best epoch is chosen on it")
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    keep_freed_memory()
    if settings.precision == "auto":
        settings = settings.model_copy(update={"precision": "bf16" if _has_bfloat16(device) else "fp32"})
    memory = MemoryBudget.of(settings.memory_budget_mb, device)
    settings = settings.model_copy(update={"memory_budget_mb": memory.size >> 20})
    config = config.model_copy(update={"train": settings})
    queries = TrainingQueries(graph, teacher)
    steps = queries.num_steps(settings.batch_size, shard.world)
    known = graph.known()
    optimizers = build_optimizers(model, config, early=shard.world == 1 and device.type == "cpu")
    loop = Loop(settings.max_epochs, settings.patience, settings.eval_every, shard, on_epoch, saving)
    run = loop.begin(model, optimizers, RankingMetrics.unpack)
    trained: nn.Module = model
    if shard.world > 1:
        # Sparse gradients are averaged by rows, see `Optimizers`. Names of the outermost module begin with a dot there.
        apart = [name if "." in name else f".{name}" for name in model.sparse_parameters(settings)]
        nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, apart)
        trained = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)

    def epoch(number: int) -> dict[str, float]:
        losses = train_epoch(trained, queries, config, number, shard, optimizers, device, memory)
        _average_buffers(model, shard)
        return losses

    def validate() -> RankingMetrics:
        model.replace_cold_rows()
        return _validate(model, graph, known, memory, shard, device)

    with closing(optimizers), _bar(progress, settings.max_epochs, run.epoch) as advance:
        loop.run(run, model, optimizers, epoch, steps, validate, advance)
    model.eval()
    return FitResult.of(run, memory.notes)


def _has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices itself; emulated, they are slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def build_optimizers(model: Imf, config: Config, early: bool) -> Optimizers:
    """The optimizers of the configuration, see `Optimizers`."""
    settings = config.train
    sparse = model.sparse_parameters(settings).values()
    made = Optimizers(model, settings.optimizer, settings.lr, settings.weight_decay, sparse, early)
    if settings.average:  # the decision weights are fitted anew at each evaluation
        made.average = WeightAverage(averaged_tensors(model.trained_state(), ["decision.logits"]), settings.average)
    return made


def _average_buffers(model: Imf, shard: Shard) -> None:
    """Give every rank the mean of the ranks' BatchNorm statistics: all evaluate, and go on from a save with, the same model."""
    if shard.world > 1:
        for name, buffer in model.named_buffers():
            if "running_" in name:
                dist.all_reduce(buffer)
                buffer /= shard.world


def _validate(
    model: Imf, graph: KnowledgeGraph, known: KnownAnswers, memory: MemoryBudget, shard: Shard, device: torch.device
) -> RankingMetrics:
    """Rank the validation triples. Learned decision weights are fitted to them crosswise: no triple is ranked by weights
    that saw it; the model keeps the weights fitted to all of them.
    """
    fitted = calibrate(model, graph, graph.valid, known, memory)
    if fitted is None:
        return reduced(evaluate(model, graph, graph.valid, known, memory=memory, shard=shard).metrics, shard, device)
    own, total = folds(graph.valid), RankingMetrics()
    for fold, logits in enumerate(fitted.crosswise):
        _set_logits(model, logits, shard)
        total = total + evaluate(model, graph, graph.valid[own == fold], known, memory=memory, shard=shard).metrics
    _set_logits(model, fitted.final, shard)
    return reduced(total, shard, device)


def _set_logits(model: Imf, logits: Tensor, shard: Shard) -> None:
    assert model.decision.logits is not None
    model.decision.logits.copy_(logits)
    if shard.world > 1:  # the ranks fit the same numbers; nothing rests on their last bits
        dist.broadcast(model.decision.logits, 0)


@contextmanager
def _bar(wanted: bool, total: int, done: int) -> Iterator[Callable[[RunProgress], None]]:
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
