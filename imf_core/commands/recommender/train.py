"""`imf recommender`: train, evaluate and audit the recommender; its answers come from `imf recommend`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from imf_core.checkpoint.checkpoint import check_vocabulary
from imf_core.commands.config import print_settings
from imf_core.commands.model.graph import SplitOption
from imf_core.commands.terminal import terminal
from imf_core.config_base import parse_overrides
from imf_core.errors import ConfigError, DataError
from imf_core.recommend.checkpoint import load_recommender, save_recommender
from imf_core.recommend.config import InteractionConfig, RecommendConfig, model_name
from imf_core.recommend.data.atomic_files import atomic_notes
from imf_core.recommend.data.audit import InteractionAudit, audit_interactions
from imf_core.recommend.data.prepare import InteractionSource, prepare_recommend
from imf_core.recommend.fit import build_model, evaluate_recommender, fit_recommender, popularity_baseline
from imf_core.recommend.topk import K, TopKMetrics
from imf_core.runtime import MemoryBudget
from imf_core.train.progress import EpochReport

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="MetaMMF recommender: users, items, features of the items. For a search: tune/search.py --task recommend.",
)
DataOption = Annotated[
    str | None,
    typer.Option("--data", help="Folder or file of interactions, or the bundled `codepages`; default: as the settings say."),
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="A setting, for example model.fusion=mlp. Repeatable.")]


@app.command()
def train(
    out: Annotated[Path, typer.Argument(help="Where the checkpoint goes.")],
    data: DataOption = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML settings; default: as `config` prints.")] = None,
    settings: SetOption = None,
) -> None:
    """Train one recommender; the best validation epoch is kept.

    Example: imf recommender train results/mine --data mydata --set model.encoder=mf
    """
    console = terminal()
    chosen = configuration(config, data, settings)
    ready = prepare_recommend(chosen.data)
    interactions = ready.interactions
    for line in (interactions.describe(), *(f"  {note}" for note in ready.describe(chosen.model.modalities))):
        console.print(line, soft_wrap=True)
    model = build_model(chosen, ready)
    console.print(f"{model_name(chosen.model)}: {model.num_parameters:,} parameters")

    def show(report: EpochReport[TopKMetrics]) -> None:
        ndcg = report.metrics.flat()[f"ndcg_at_{K}"]
        console.print(
            f"epoch {report.epoch:3d}  loss {report.train_loss:.4f}  validation MRR {report.metrics.mrr:.4f}"
            f"  NDCG@{K} {ndcg:.4f}  best MRR {report.best_mrr:.4f}  {report.seconds:.1f} s"
        )

    result = fit_recommender(model, ready, chosen, show)
    for note in result.notes:
        console.print(f"  {note}")
    metrics = {"validation": result.metrics.as_dict(), "best_epoch": result.best_epoch, "fingerprint": interactions.fingerprint}
    save_recommender(out, model, chosen, interactions, metrics)
    baseline = popularity_baseline(interactions, interactions.valid, (interactions.train,))
    console.print(metrics_table({model_name(chosen.model): result.metrics, "popularity": baseline}, "validation"))
    console.print(
        f"best validation MRR {result.best_mrr:.4f} in epoch {result.best_epoch} ({result.reason}); checkpoint: {out}"
    )


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of a recommender.")],
    data: DataOption = None,
    split: SplitOption = "valid",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Precision, recall, hit ratio and NDCG at 10 and MRR of a split, beside recommending the most popular items."""
    loaded = load_recommender(checkpoint)
    source = loaded.config.data if data is None else loaded.config.data.model_copy(update={"path": data})
    data_set = prepare_recommend(source).interactions
    check_vocabulary(loaded.description, data_set.users, data_set.items, checkpoint, ("users", "items"))
    if split not in ("valid", "test"):
        raise ConfigError(f"unknown split {split!r}", remedy="choose valid or test", key="split", value=split)
    train, valid = data_set.train, data_set.valid
    relevant, known = (valid, (train,)) if split == "valid" else (data_set.open_test(), (train, valid))
    if not len(relevant):
        raise DataError(
            f"{data_set.source} has no {split} interactions: there is nobody to rank for",
            remedy="give another --data or --split; imf recommender audit counts them",
        )
    memory = MemoryBudget.of(loaded.config.train.memory_budget_mb)
    metrics = {
        model_name(loaded.config.model): evaluate_recommender(loaded.model, data_set, relevant, known, memory),
        "popularity": popularity_baseline(data_set, relevant, known),
    }
    if as_json:
        print(json.dumps({name: part.as_dict() for name, part in metrics.items()}, indent=1))
        return
    terminal().print(metrics_table(metrics, f"{checkpoint}: {split}"))


@app.command("audit")
def audit_command(
    data: Annotated[str, typer.Argument(help="Folder or file of interactions, or `codepages`.")],
    min_rating: Annotated[float | None, typer.Option(help="Leave out interactions rated lower; default: none.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the split, where the files give none.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="End with status 1 where there is a problem.")] = False,
) -> None:
    """What is wrong, or worth knowing, about interactions: overlaps of the splits, cold items, repeats, coverage."""
    print_audit(InteractionConfig(path=data, min_rating=min_rating, split_seed=seed), as_json=as_json, strict=strict)


def print_audit(config: InteractionConfig, *, as_json: bool, strict: bool) -> None:
    """Print the audit of interactions; arguments as of the command."""
    source = InteractionSource.open(config)
    beside = atomic_notes(source.path, source.raw.items.names)
    report = audit_interactions(source.raw, source.split, source.modalities[0], beside)
    if as_json:
        print(json.dumps(report.to_json(), indent=1))
    else:
        show_interactions(terminal(), report)
    if strict and report.problems:
        raise typer.Exit(1)


@app.command("config")
def show_config() -> None:
    """Print every setting with its default, as YAML that --config reads."""
    print_settings(RecommendConfig())


def configuration(config: Path | None, data: str | None, settings: list[str] | None) -> RecommendConfig:
    """The settings of a YAML file, overridden by --data and --set.

    Raises:
        ConfigError: a setting is refused.
    """
    base = RecommendConfig.load(config) if config is not None else RecommendConfig()
    overrides = parse_overrides(settings or [])
    if data is not None:
        overrides["data.path"] = data
    return base.updated(overrides, source="--set")


def metrics_table(rows: Mapping[str, TopKMetrics], title: str) -> Table:
    """A table with a row of metrics for each model."""
    table = Table(title=title)
    for position, column in enumerate(("model", "users", f"P@{K}", f"R@{K}", f"HR@{K}", f"NDCG@{K}", "MRR")):
        table.add_column(column, justify="right" if position else "left")
    for name, metrics in rows.items():
        flat = metrics.flat()
        kinds = ("precision", "recall", "hit_ratio", "ndcg")
        table.add_row(name, f"{metrics.count:,}", *(f"{flat[f'{kind}_at_{K}']:.4f}" for kind in kinds), f"{metrics.mrr:.4f}")
    return table


def show_interactions(console: Console, report: InteractionAudit) -> None:
    """Print an audit: the table, then one fact on each line, then warnings and problems."""
    console.print(f"{report.source}: {report.users:,} users, {report.items:,} items", soft_wrap=True)
    columns, rows = report.split_rows()
    table = Table()
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for line in report.lines():
        console.print(line, soft_wrap=True)
    for title, style, entries in (("Warning ", "bold yellow", report.warnings), ("Problem ", "bold red", report.problems)):
        for entry in entries:
            console.print(Text(title, style=style), entry, sep="", soft_wrap=True)
