"""The `imf` command: train, evaluate and predict without a search."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from imf_core.checkpoint.carry_over import carry_over
from imf_core.checkpoint.checkpoint import Checkpoint, check_vocabulary, load_checkpoint, load_state, save_checkpoint
from imf_core.commands.card.card import card
from imf_core.commands.data.audit import audit_command
from imf_core.commands.data.convert import convert
from imf_core.commands.data.convert_features import convert_features
from imf_core.commands.data.encode import encode
from imf_core.commands.model.compare import compare
from imf_core.commands.model.ensemble import ensemble
from imf_core.commands.model.export import export
from imf_core.commands.model.predict_file import predict_file
from imf_core.commands.recommender.answer import recommend
from imf_core.commands.recommender.train import app as recommender
from imf_core.commands.serve.serve import serve
from imf_core.commands.terminal import show_error, terminal
from imf_core.config import Config, preset
from imf_core.config_base import parse_overrides
from imf_core.data.audit.report import certain_hits
from imf_core.data.graph.graph import TEST_WORDS, open_split
from imf_core.ensemble.ensemble import Ensemble, answers_of, names_of, open_model, open_predictor, rank_with, strongest
from imf_core.errors import CheckpointError, ConfigError, ImfError
from imf_core.evaluate.metrics import RankingMetrics
from imf_core.evaluate.ranking import evaluate_decisions
from imf_core.model.decision import alternatives
from imf_core.predict import Answer
from imf_core.prepare.link_data import LinkData, graph_of, prepare
from imf_core.runtime import MemoryBudget
from imf_core.train.estimate import estimate_of
from imf_core.train.fit import build_model, fit
from imf_core.train.progress import EpochReport

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Multimodal link prediction: train one model, evaluate it, ask it. For a search see tune/search.py.",
)

DataOption = Annotated[str | None, typer.Option("--data", help="Graph folder, or the bundled data set `unicode`.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="A setting, for example train.lr=0.001. Repeatable.")]


@app.command()
def train(
    out: Annotated[Path, typer.Argument(help="Where the checkpoint goes.")],
    data: DataOption = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML settings.")] = None,
    preset_name: Annotated[str, typer.Option("--preset", help="paper (default) or published.")] = "",
    start: Annotated[Path | None, typer.Option("--from", help="Continue this checkpoint; the graph may have changed.")] = None,
    distil: Annotated[Path | None, typer.Option("--distil", help="Learn from this checkpoint or ensemble too.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be trained and its memory, and stop.")] = False,
    settings: SetOption = None,
) -> None:
    """Train one model; the best validation epoch is kept.

    Example: imf train results/mine --data mygraph --set train.lr=0.002
    """
    console = terminal()
    loaded = load_checkpoint(start) if start is not None else None
    master = open_model(distil) if distil is not None else None
    chosen = _configuration(config, preset_name, loaded, data, settings, master)
    # A continued model brings its own vectors: no table is made for it.
    ready = prepare(chosen.data, chosen.structure if loaded is None else None, progress=True)
    _describe(console, ready)
    memory = estimate_of(chosen, ready)
    console.print(f"  memory: {memory.describe()}")
    if shortage := memory.shortage():
        console.print(f"  warning: {shortage}", style="yellow")
    if master is not None:
        check_vocabulary(names_of(master).description, ready.graph.entities, ready.graph.relations, master.path)
    if dry_run:
        return
    model = build_model(chosen, ready)
    if loaded is not None:
        names = ready.graph.entities.names, ready.graph.relations.names
        if (loaded.entities.names, loaded.relations.names) == names:
            load_state(model, loaded.model.state_dict(), loaded.path)
        else:
            console.print(f"from {loaded.path}: {carry_over(model, loaded, ready).describe()}", soft_wrap=True)
    console.print(f"{model.num_parameters:,} parameters; branches {', '.join(model.branches)}")

    def show(report: EpochReport) -> None:
        console.print(
            f"epoch {report.epoch:3d}  loss {report.train_loss:.4f}  validation MRR {report.metrics.mrr:.4f}"
            f"  best {report.best_mrr:.4f}  {report.seconds:.1f} s"
        )

    teacher = None
    if master is not None:
        teacher = answers_of(master, ready.graph)
        console.print(f"taught by {distil}: {teacher.answers.shape[1]} answers to each of {len(teacher.answers):,} queries")
    result = fit(model, ready, chosen, show, progress=True, teacher=teacher)
    for note in result.notes:
        console.print(f"  {note}")
    metrics = {"validation": result.metrics.as_dict(), "best_epoch": result.best_epoch, "fingerprint": ready.graph.fingerprint}
    if distil is not None:
        metrics["teacher"] = str(distil.resolve())
    save_checkpoint(out, model, chosen, ready.graph.entities, ready.graph.relations, metrics)
    console.print(
        f"best validation MRR {result.best_mrr:.4f} in epoch {result.best_epoch} ({result.reason}); checkpoint: {out}"
    )


@app.command("evaluate")
def evaluate_command(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint or ensemble.")],
    data: DataOption = None,
    split: Annotated[str, typer.Option(help=f"valid or test. {TEST_WORDS}")] = "valid",
    decisions: Annotated[
        bool, typer.Option("--decisions", help="Also the plain mean, each branch alone and all but one, from the same scores.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Filtered ranking of a split: MRR, mean rank, Hits@1/3/10, with all slices."""
    opened = open_model(checkpoint)
    loaded = names_of(opened)
    if decisions and isinstance(opened, Ensemble):
        raise ConfigError("an ensemble has no branches to decide by", remedy="leave out --decisions, or name a member's folder")
    graph = graph_of(loaded.config.data if data is None else loaded.config.data.elsewhere(data))
    check_vocabulary(loaded.description, graph.entities, graph.relations, checkpoint)
    triples, known = open_split(graph, split)
    found = {}
    if decisions:
        own = loaded.model.decision
        memory = MemoryBudget.of(loaded.config.train.memory_budget_mb)
        found = evaluate_decisions(loaded.model, graph, triples, known, {own.mode: own, **alternatives(own)}, memory=memory)
        metrics = found[own.mode].metrics
    else:
        metrics = rank_with(opened, graph, triples, known).metrics
    if as_json:
        others = {name: ranked.metrics.flat() for name, ranked in found.items()}
        print(json.dumps(metrics.as_dict() | ({"decisions": others} if decisions else {}), indent=1))
        return
    terminal().print(_metrics_table({"all": metrics, **metrics.slices}, f"{checkpoint}: {split}"))
    if decisions:
        terminal().print(_metrics_table({name: ranked.metrics for name, ranked in found.items()}, "decisions", "decision"))
    if certain := certain_hits(graph.num_entities):
        terminal().print(certain)


@app.command()
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint or ensemble, for example results/<study>/best.")],
    relation: Annotated[str | None, typer.Option("--relation", "-r", help="Relation name.")] = None,
    head: Annotated[str | None, typer.Option("--head", help="Head entity: asks for tails.")] = None,
    tail: Annotated[str | None, typer.Option("--tail", help="Tail entity: asks for heads.")] = None,
    k: Annotated[int, typer.Option("-k", "--top", min=1, help="Number of answers.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    file: Annotated[
        Path | None, typer.Option("--file", help="Questions, one a line: head<TAB>relation<TAB>?, or ?<TAB>relation<TAB>tail.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Answers to --file: OUT.tsv or OUT.jsonl.")] = None,
) -> None:
    """Answer (head, relation, ?) or (?, relation, tail) by name; or a file of such questions.

    Example: imf predict results/demo/best --head "LATIN SMALL LETTER E WITH ACUTE" -r canonical_base
    """
    if file is not None or out is not None:
        if file is None or out is None or relation is not None or head is not None or tail is not None:
            remedy = "write --file QUESTIONS.tsv --out ANSWERS.tsv"
            raise ConfigError("--file needs --out and nothing else to ask", remedy=remedy)
        count = predict_file(open_predictor(checkpoint), file, out, k)
        terminal().print(f"{count:,} questions answered: {out}", soft_wrap=True)
        return
    if relation is None:
        raise ConfigError("no relation to ask about", remedy="give --relation, or questions in a file: --file and --out")
    if (head is None) == (tail is None):
        raise ConfigError("give either --head or --tail", remedy="--head asks for tails, --tail asks for heads")
    predictor = open_predictor(checkpoint)
    answers = predictor.tails(head, relation, k) if head is not None else predictor.heads(str(tail), relation, k)
    if as_json:
        print(json.dumps([vars(answer) for answer in answers], indent=1))
        return
    question = f"({head}, {relation}, ?)" if head is not None else f"(?, {relation}, {tail})"
    terminal().print(_answers_table(question, answers))


@app.command("config")
def show_config(preset_name: Annotated[str, typer.Option("--preset", help="paper or published.")] = "paper") -> None:
    """Print every setting with its default, as YAML that --config reads."""
    for section, fields in preset(preset_name).model_dump().items():
        known = type(getattr(Config(), section)).model_fields
        print(f"{section}:")
        for name, value in fields.items():
            note = known[name].description
            print(f"  {name}: {json.dumps(value)}" + (f"  # {note}" if note else ""))


app.command("audit")(audit_command)
app.command()(compare)
app.command()(card)
app.command()(serve)
app.command()(encode)
app.command()(ensemble)
app.command()(convert)
app.command()(export)
app.command("convert-features")(convert_features)
app.command()(recommend)
app.add_typer(recommender, name="recommender")


def main() -> None:
    """Entry point: errors of the user's making are shown without a traceback, exit status 2."""
    try:
        app()
    except ImfError as error:
        sys.exit(show_error(error))


def _configuration(
    config: Path | None, preset_name: str, start: Checkpoint | None, data: str | None, settings: list[str] | None,
    master: Checkpoint | Ensemble | None,
) -> Config:
    """What to train with: the settings of --from, of --config or --preset, or those of a teacher, and then --set."""
    if start is not None:
        if config is not None:
            raise ConfigError(
                "--config and --from exclude each other", remedy="--from brings its own settings; change them by --set"
            )
        chosen = start.config
    elif master is not None and config is None and preset_name == "":
        chosen = strongest(master).config
    else:
        chosen = Config.load(config) if config is not None else preset(preset_name or "paper")
    overrides = parse_overrides(settings or [])
    if data is not None:
        overrides["data.path"] = data
    changed = [key for key in overrides if key.startswith("model.") and overrides[key] != chosen.flat().get(key)]
    if start is not None and changed:
        raise CheckpointError(
            f"{changed[0]} cannot change when weights are continued", remedy="leave it out, or train without --from"
        )
    chosen = chosen.updated(overrides, source="--set")
    return chosen.model_copy(update={"data": chosen.data.absolute()})


def _describe(console: Console, data: LinkData) -> None:
    console.print(data.graph.describe())
    for note in data.describe():
        console.print(f"  {note}")


def _metrics_table(rows: Mapping[str, RankingMetrics], title: str, first: str = "slice") -> Table:
    table = Table(title=title)
    for column in (first, "ranks", "MRR", "MR", "H@1", "H@3", "H@10"):
        table.add_column(column, justify="left" if column == first else "right")
    for name, part in rows.items():
        if part.count:
            hits = (f"{part.hits_at(k):.4f}" for k in (1, 3, 10))
            table.add_row(name, f"{part.count:,}", f"{part.mrr:.4f}", f"{part.mean_rank:.1f}", *hits)
    return table


def _answers_table(question: str, answers: list[Answer]) -> Table:
    table = Table(title=question)
    table.add_column("answer")
    table.add_column("probability", justify="right")
    for branch, weight in answers[0].weights.items():
        table.add_column(f"{branch} ({weight:.2f})", justify="right")
    for answer in answers:
        table.add_row(answer.entity, f"{answer.score:.4f}", *(f"{score:.4f}" for score in answer.branch_scores.values()))
    return table


if __name__ == "__main__":
    main()
