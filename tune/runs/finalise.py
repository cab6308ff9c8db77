"""The end of a study: the winner retrained with several seeds, and the test split opened, once.

This is the only place of the search that reads test triples. Everything was chosen before on validation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from imf_core.checkpoint.checkpoint import load_checkpoint, save_checkpoint
from imf_core.config import Config
from imf_core.data.audit.baseline import BaselineMetrics
from imf_core.errors import ImfError
from imf_core.evaluate.metrics import RankingMetrics
from imf_core.evaluate.redecide import redecide
from imf_core.evaluate.test_once import RANKS_FILE, Tested, flat, rank_test
from imf_core.prepare.link_data import LinkData
from imf_core.recommend.checkpoint import is_recommender
from imf_core.recommend.config import RecommendConfig
from imf_core.recommend.data.prepare import RecommendData
from imf_core.recommend.topk import TopKMetrics
from imf_core.runtime import MemoryBudget
from tune import recommend_final
from tune.data_check import baseline_of
from tune.plan.opening import OpenStudy
from tune.plan.plan import Plan
from tune.runs.runner import run_variants
from tune.settings import AnyConfig
from tune.study.records import TrialRecord
from tune.task import StudyData
from tune.tracking.tracker import Tracker

STRUCTURE_ONLY = "structure alone"
_BY = {STRUCTURE_ONLY: "on"}


@dataclass(frozen=True)
class Final:
    """What finalising found.

    Args:
        seeds: of the retrained winners that ended well.
        validation: best validation MRR of each, with the decision weights that it keeps.
        test: test metrics of each; empty where the graph has no test split.
        structure_only: validation MRR of the control; None where there is none.
        without: validation MRR of the winner's settings without one modality, by its name; only where there are several.
        checkpoint: the seed with the best validation MRR.
        example: a validation head and relation, or a user, to ask about.
        test_opened: how often the study has read the test split: 1, and once more for each winner that an extension brings.
        test_baseline: what the baseline without training reaches on test; None where there is none.
        control: what the winner is measured against: its settings on structure alone, or with the other kind of fusion.
        decisions: test metrics of each seed under other decision weights, by what those are.
        pooled: test metrics of the seeds together; None where there is one.
    """

    seeds: tuple[int, ...]
    validation: tuple[float, ...]
    test: tuple[dict[str, float], ...]
    structure_only: float | None
    without: dict[str, float]
    checkpoint: Path
    example: tuple[str, ...]
    test_opened: int
    test_baseline: BaselineMetrics | TopKMetrics | None = None
    control: str = STRUCTURE_ONLY
    decisions: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    pooled: Mapping[str, float] | None = None

    def for_report(self) -> dict[str, Any]:
        """As fields of `StudyResult`."""
        return {
            "structure_only_mrr": self.structure_only, "without": self.without, "winner_seed_mrr": self.validation,
            "test_runs": self.test, "seeds": self.seeds, "checkpoint": self.checkpoint, "example": self.example,
            "test_opened": self.test_opened, "control": self.control, "test_decisions": self.decisions,
            "test_pooled": self.pooled,
        }


def finalise(plan: Plan, study: OpenStudy, winner: TrialRecord, tracker: Tracker, console: Console) -> Final:
    """Retrain the winner and open the test split; what an earlier session has done of it is not done again.

    Args:
        plan: the study's plan; its graph knows where the test split is, its prepared data does not hold it.
        study: keeps what was found.
        winner: the trial with the best validation MRR.

    Raises:
        ImfError: no seed could be trained to its end.
    """
    seeds = [plan.settings.seed + offset for offset in range(plan.settings.seeds)]
    for event in reversed(study.journal.events):
        if event["event"] == "final" and event["winner"] == winner.trial_id and event["asked"] == seeds:
            console.print(f"trial {winner.number} was finalised already", highlight=False)
            return _known(plan, event, _times_opened(study))
    chosen = plan.space.config_for(winner.params)
    names = {seed: f"{winner.trial_id}-seed-{seed}" for seed in seeds}
    variants = {name: chosen.updated({"train.seed": seed}) for seed, name in names.items()}
    control = _control(plan, chosen, seeds[0])
    alone = f"{winner.trial_id}-{control[0].replace(' ', '-')}" if control is not None else ""
    removed = _without(plan, chosen, seeds[0])
    names_of = {name: f"{winner.trial_id}-without-{name}" for name in removed}
    variants |= {names_of[name]: config for name, config in removed.items()}
    if control is not None:
        variants[alone] = control[1]
    beside = f", and its settings {_BY.get(control[0], 'with')} {control[0]}" if control is not None else ""
    beside += " and without each modality" if removed else ""
    console.print(f"finalising: trial {winner.number} with {len(seeds)} seed(s){beside}", highlight=False)
    taken = {name: winner for name in names.values() if variants[name] == chosen}  # that seed is the trial's own
    runs = run_variants(plan, study, variants, plan.settings.study_dir / "final", tracker, console, taken)
    done = [seed for seed in seeds if _usable(runs.get(names[seed]))]
    if not done:
        reasons = "; ".join(f"{name}: {record.reason}" for name, (record, _) in runs.items())
        raise ImfError(
            f"no seed of the winner could be trained to its end ({reasons})",
            remedy=f"see the error files in {plan.settings.study_dir / 'final'}",
        )
    retune = _redecided if isinstance(plan.data, LinkData) else _as_trained
    reached = {name: retune(plan, run) for name, run in runs.items() if _usable(run)}
    for seed in done:
        if told := reached[names[seed]].said:
            console.print(f"  seed {seed}: {told}", highlight=False)
    validation = [reached[names[seed]].mrr for seed in done]
    tested, rules = _open_test(plan, study, {seed: runs[names[seed]][1] for seed in done}, console)
    test = tested.own
    best = max(range(len(done)), key=lambda position: validation[position])
    _publish(runs[names[done[best]]][1], plan.settings.study_dir / "best", test[best].as_dict() if test else None)
    found = study.journal.append(
        "final", winner=winner.trial_id, asked=seeds, seeds=done, validation=validation,
        test=[flat(metrics) if isinstance(metrics, RankingMetrics) else metrics.flat() for metrics in test],
        decisions=tested.decisions, pooled=tested.pooled,
        structure_only=reached[alone].mrr if alone in reached else None,
        without={name: reached[run].mrr for name, run in names_of.items() if run in reached},
        control=control[0] if control is not None else "",
        baseline=rules.as_dict() if rules is not None else None,
    )
    return _known(plan, found, _times_opened(study))


def _known(plan: Plan, event: Mapping[str, Any], opened: int) -> Final:
    """What a journal says of a finalised winner."""
    return Final(
        seeds=tuple(event["seeds"]), validation=tuple(event["validation"]), test=tuple(event["test"]),
        structure_only=event["structure_only"], without=dict(event["without"]), checkpoint=plan.settings.study_dir / "best",
        example=_example(plan.data), test_opened=opened, test_baseline=_baseline(plan.data, event["baseline"]),
        control=event.get("control") or STRUCTURE_ONLY, decisions=event.get("decisions") or {}, pooled=event.get("pooled"),
    )


def _example(data: StudyData) -> tuple[str, ...]:
    """A head and a relation, or a user, to ask about."""
    first = data.graph.valid[0]
    if isinstance(data, RecommendData):
        return (data.interactions.users.names[first[0]],)
    return data.graph.entities.names[first[0]], data.graph.relations.names[first[1]]


def _baseline(data: StudyData, values: Mapping[str, Any] | None) -> BaselineMetrics | TopKMetrics | None:
    """From the journal."""
    if values is None:
        return None
    return TopKMetrics.from_dict(values) if isinstance(data, RecommendData) else BaselineMetrics(**values)


def _times_opened(study: OpenStudy) -> int:
    return sum(event["event"] == "test" for event in study.journal.events)


def _control(plan: Plan, chosen: AnyConfig, seed: int) -> tuple[str, AnyConfig] | None:
    """What the winner is measured against, by its name; None where there is nothing."""
    if isinstance(chosen, RecommendConfig):
        return recommend_final.control(chosen, seed) if plan.data.modalities else None
    return (STRUCTURE_ONLY, structure_only(chosen, seed)) if len(plan.branches) > 1 else None


def _without(plan: Plan, chosen: AnyConfig, seed: int) -> Mapping[str, AnyConfig]:
    """The winner's settings without each modality, where there are several."""
    used = tuple(modality.name for modality in plan.data.select(chosen.model.modalities))
    if isinstance(chosen, RecommendConfig):
        return recommend_final.without(chosen, used, seed)
    return {name: without(chosen, name, used, seed) for name in used} if len(used) > 1 else {}


def final_runs(plan: Plan) -> int:
    """Runs that finalising a winner takes, its settings as the base has them: seeds and what they are measured against."""
    base, seed = plan.base, plan.settings.seed
    return plan.settings.seeds + (_control(plan, base, seed) is not None) + len(_without(plan, base, seed))


def structure_only(config: Config, seed: int) -> Config:
    """The same settings without any modality."""
    flat: dict[str, Any] = {"model.modalities": [], "model.decision": "uniform", "model.decision_weights": None}
    return config.updated({**flat, "train.seed": seed})


def without(config: Config, name: str, used: Sequence[str], seed: int) -> Config:
    """The same settings without one of the modalities `used`; the weights of the others keep their proportions."""
    rest = [modality for modality in used if modality != name]
    flat: dict[str, Any] = {"model.modalities": rest, "train.seed": seed}
    if config.model.decision_weights is not None:
        flat["model.decision_weights"] = {key: value for key, value in config.model.decision_weights.items() if key != name}
    return config.updated(flat)


@dataclass(frozen=True)
class _Reached:
    """Validation MRR of a final run with the decision it keeps, and what is said of it."""

    mrr: float
    said: str = ""


def _as_trained(plan: Plan, run: tuple[TrialRecord, Path]) -> _Reached:
    return _Reached(float(run[0].best_mrr or 0.0))


def _redecided(plan: Plan, run: tuple[TrialRecord, Path]) -> _Reached:
    """Tune the decision weights of a final run again and keep the better; what an earlier session did stays as it is."""
    record, path = run
    assert isinstance(plan.data, LinkData)
    loaded = load_checkpoint(path)
    found = loaded.metrics.get("decision")
    if found is None:
        memory = MemoryBudget.of(plan.base.train.memory_budget_mb)
        tuned = redecide(loaded.model, plan.data.graph, memory)
        if tuned is None:
            return _Reached(float(record.best_mrr or 0.0))
        found = tuned.as_dict()
        config = tuned.apply(loaded.model, loaded.config)
        metrics = {**loaded.metrics, "decision": found}
        save_checkpoint(path, loaded.model, config, loaded.entities, loaded.relations, metrics)
    kept, mrr = str(found["kept"]), found["held_back_mrr"]
    ways = {"trained": "as trained", "common": "tuned again", "relation": "tuned again for each relation"}
    others = ", ".join(f"{ways[kind]} {value:.4f}" for kind, value in mrr.items() if kind != kept)
    return _Reached(float(mrr[kept]), f"decision weights {ways[kept]}: held-back validation MRR {mrr[kept]:.4f} ({others})")


def _open_test(
    plan: Plan, study: OpenStudy, checkpoints: Mapping[int, Path], console: Console
) -> tuple[Tested, BaselineMetrics | TopKMetrics | None]:
    """Rank the test triples with each seed's checkpoint and without training; nothing else in a search scores them."""
    graph, folders = plan.data.graph, list(checkpoints.values())
    if graph.test_reader is None:
        console.print("the data has no test split: validation figures only")
        return Tested([]), None
    study.journal.append("test", checkpoints=list(map(str, folders)))  # before: it counts, whatever happens then
    if isinstance(plan.data, RecommendData):
        found, popular = recommend_final.test_metrics(plan.data, folders, plan.base.train.memory_budget_mb)
        return Tested(found), popular
    graph = plan.data.graph
    triples = graph.open_test()
    for note in graph.test_notes:
        console.print(f"  {escape(note)}", highlight=False)
    known = graph.known(graph.train, graph.valid, triples)
    memory = MemoryBudget.of(plan.base.train.memory_budget_mb)
    ranks_file = folders[0].parent.parent / RANKS_FILE
    return rank_test(checkpoints, graph, triples, known, memory, ranks_file), baseline_of(graph, triples, known)


def _publish(source: Path, target: Path, test: Mapping[str, object] | None) -> None:
    """Write the best checkpoint where the user finds it, with its test figures and their slices inside."""
    if is_recommender(source):
        recommend_final.publish(source, target, test)
        return
    loaded = load_checkpoint(source)
    metrics = {**loaded.metrics, **({"test": test} if test is not None else {})}
    save_checkpoint(target, loaded.model, loaded.config, loaded.entities, loaded.relations, metrics)


def _usable(run: tuple[TrialRecord, Path] | None) -> bool:
    return run is not None and run[0].state.usable and run[0].best_mrr is not None and run[1].is_dir()
