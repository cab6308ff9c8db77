"""The audit: what is wrong, or worth knowing, about a graph before anything is trained on it.

With finalising it is the one place that looks at test triples: it compares them with the other splits, and ranks them by
the baseline without training only where it is asked to.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from imf_core.data.audit.baseline import BaselineMetrics, OneStepRules
from imf_core.data.audit.columns import swapped_columns
from imf_core.data.audit.leaks import text_leaks
from imf_core.data.audit.links import link_leaks
from imf_core.data.audit.names import colliding, self_loops
from imf_core.data.audit.relations import RelationPair, flipped, is_in, pair_codes, similar_relations
from imf_core.data.audit.report import WORDS, AuditReport, Coverage, SplitCounts, certain_hits
from imf_core.data.graph.graph import CATEGORY_NAMES, SPLITS, KnowledgeGraph, KnownAnswers, RawGraph
from imf_core.data.graph.splits import codes, counted_of, distinct
from imf_core.data.graph.unseen import find_unseen, seen_in

_CHANCE = 5  # so few held-out examples may all be cold by chance


def repair_command(source: str) -> str:
    """The command that repairs a graph.

    Args:
        source: of the raw graph: a folder, or another origin, whose command has placeholders.
    """
    folder, out = (source, f"{source.rstrip('/')}-repaired") if Path(source).is_dir() else ("DIR", "OUT")
    return shlex.join(["imf", "audit", folder, "--repair", out])


def audit(
    raw: RawGraph, *, coverage: Sequence[Coverage] = (), baseline_splits: Sequence[str] = ("valid", "test"),
    texts: Mapping[str, str] | None = None,
) -> AuditReport:
    """Look at every line of a graph.

    Problems (what `--strict` refuses) are: no training triple, a validation or test file without triples, a triple in two
    splits, and a modality that cannot be read or that no entity has. Repeats within a split, unseen entities, inverse relations
    and missing splits are no problems: the readers deal with them, or they are part of the data's nature.

    Args:
        raw: all lines of all splits, test included.
        coverage: of the modalities, if it was looked at.
        baseline_splits: which splits the baseline without training ranks; a search leaves test out, so that nobody sees a
            test score before its end. Validation ranks are filtered by train and valid, test ranks by all.
        texts: of the entities, by name, in which the names of answers are looked for; None: there are none.
    """
    splits, size = raw.splits, (len(raw.entities), len(raw.relations))
    unique = {name: distinct(rows, *size) for name, rows in splits.items()}
    counts = _counts(splits, unique, *size)
    similar: list[RelationPair] = []
    metrics: dict[str, BaselineMetrics] = {}
    if len(raw.train):
        similar = similar_relations(unique, *size)
        metrics = _baselines(unique, baseline_splits, *size)
    uses = np.bincount(unique["train"][:, 1], minlength=size[1])
    return AuditReport(
        source=raw.source,
        entities=size[0],
        relations=size[1],
        splits=counts,
        relation_names=raw.relations.names,
        similar=tuple(similar),
        single_triple_relations=tuple(raw.relations.names[relation] for relation in np.flatnonzero(uses == 1)),
        categories=_categories(raw, unique["train"]),
        coverage=tuple(coverage),
        leaks=text_leaks(raw, texts) if texts else (),
        links=link_leaks(unique, raw.entities, raw.relations),
        collisions=colliding(raw.entities.names),
        loops={name: self_loops(rows, raw.entities, raw.relations) for name, rows in unique.items()},
        baseline=metrics,
        notes=raw.notes,
        problems=[*raw.problems, *swapped_columns(raw), *_problems(counts, coverage, raw.source)],
        warnings=_warnings(counts, similar, size[0], raw.source),
    )


def _counts(
    splits: dict[str, np.ndarray], unique: dict[str, np.ndarray], num_entities: int, num_relations: int
) -> dict[str, SplitCounts]:
    known = {name: np.sort(codes(rows, num_entities, num_relations)) for name, rows in unique.items()}
    seen_entities, seen_relations = seen_in(unique["train"], num_entities, num_relations)
    pairs = [np.unique(pair_codes(rows, num_entities)) for rows in (unique["train"], flipped(unique["train"]))]
    counts = {}
    for name in SPLITS:
        if name not in splits:
            counts[name] = SplitCounts()
            continue
        rows = splits[name]
        triple_codes = codes(rows, num_entities, num_relations)
        inside = {other: is_in(triple_codes, known.get(other, triple_codes[:0])) for other in SPLITS if other != name}
        elsewhere = np.any(list(inside.values()), axis=0)
        inside[name] = np.ones(len(triple_codes), dtype=bool)
        not_in_train = rows[~inside["train"]]  # train itself is left out: looking up all of its pairs would be slow
        links = [is_in(pair_codes(not_in_train, num_entities), linked) for linked in pairs]
        unseen = find_unseen(name, rows, seen_entities, seen_relations)
        counts[name] = SplitCounts(
            present=True,
            lines=len(rows),
            distinct=len(unique[name]),
            in_train=int(inside["train"].sum()),
            in_valid=int(inside["valid"].sum()),
            in_test=int(inside["test"].sum()),
            clean=int((~elsewhere).sum()),
            cold=int(unseen.in_entity.sum()),
            self_loops=int((rows[:, 0] == rows[:, 2]).sum()),
            linked=int((links[0] | links[1]).sum()),
            linked_same=int(links[0].sum()),
            linked_reversed=int(links[1].sum()),
            unseen=unseen.describe(),
            unseen_entities=unseen.num_entities,
            unseen_relations=unseen.num_relations,
            unseen_relation_lines=int(unseen.in_relation.sum()),
        )
    return counts


def _baselines(
    unique: dict[str, np.ndarray], wanted: Sequence[str], num_entities: int, num_relations: int
) -> dict[str, BaselineMetrics]:
    ranked = [name for name in SPLITS[1:] if name in wanted and len(unique.get(name, ()))]
    if not ranked:
        return {}
    rules = OneStepRules(unique["train"], num_entities, num_relations)
    metrics = {}
    for name in ranked:
        filters = SPLITS if name == "test" else SPLITS[:2]
        parts = [_asked(unique[other], unique[name], num_relations) for other in filters if other in unique]
        earlier = [unique[other] for other in SPLITS[: SPLITS.index(name)] if other in unique]
        counted = counted_of(unique[name], earlier, num_entities, num_relations)
        metrics[name] = rules.evaluate(unique[name], KnownAnswers.build(parts, num_relations), counted)
    return metrics


def _asked(triples: np.ndarray, ranked: np.ndarray, num_relations: int) -> np.ndarray:
    """The triples that answer a query of the ranked ones: an index of all would be large and mostly never read."""
    tails, heads = (np.unique(ranked[:, column] * num_relations + ranked[:, 1]) for column in (0, 2))
    asks_tail = is_in(triples[:, 0] * num_relations + triples[:, 1], tails)
    return triples[asks_tail | is_in(triples[:, 2] * num_relations + triples[:, 1], heads)]


def _categories(raw: RawGraph, train: np.ndarray) -> dict[str, dict[str, int]]:
    """Category -> relations that train holds, and lines of each split."""
    if not len(train):
        return {}
    categories = KnowledgeGraph(raw.entities, raw.relations, train, train[:0]).categories
    used = np.zeros(len(raw.relations), dtype=bool)
    used[train[:, 1]] = True  # a relation that only valid or test holds has no category
    counts = {name: {"relations": int((used & (categories == code)).sum())} for code, name in enumerate(CATEGORY_NAMES)}
    for split in SPLITS:
        rows = getattr(raw, split)
        kinds = rows[:, 1] if rows is not None else train[:0, 1]
        per_category = np.bincount(categories[kinds[used[kinds]]], minlength=len(CATEGORY_NAMES))
        for code, name in enumerate(CATEGORY_NAMES):
            counts[name][split] = int(per_category[code])
    return counts


def _problems(counts: dict[str, SplitCounts], coverage: Sequence[Coverage], source: str) -> list[str]:
    problems = []
    valid, test = counts["valid"], counts["test"]
    if not counts["train"].lines:
        problems.append("there is no training triple: put head<TAB>relation<TAB>tail lines into train.tsv")
    for name in SPLITS[1:]:
        if counts[name].present and not counts[name].lines:
            problems.append(f"the {WORDS[name]} file holds no triple")
    if valid.in_train or valid.in_test:
        problems.append(
            f"{valid.in_train:,} of {valid.lines:,} validation lines stand in train and {valid.in_test:,} in test; "
            f"{valid.clean:,} stand in neither: figures are of those that are not in train, and what lines of test choose has "
            f"seen test ({repair_command(source)} writes a repaired copy)"
        )
    if test.in_train:
        overlaps = f"{test.in_train:,} overlap{'' if test.in_train == 1 else 's'}"
        problems.append(
            f"{overlaps} of test with train: {test.in_train:,} of {test.lines:,} test lines stand in train; figures are of the "
            "others, with those of all beside (test is never changed: take them out of train by hand if the split is yours)"
        )
    if test.lines > _CHANCE and test.cold == test.lines:
        told = f"all {test.lines:,} test lines have an entity or relation that training lacks"
        problems.append(f"{told}: are they named as there? (split by entity they are so by design)")
    for entry in coverage:
        if entry.problem:
            problems.append(f"{entry.name}: {entry.problem}")
        elif not entry.present and entry.entities:
            agree = "do the names agree with the graph's?"
            problems.append(f"{entry.name}: none of the {entry.entities:,} entities has it; {agree}")
    return problems


def _warnings(counts: dict[str, SplitCounts], similar: Sequence[RelationPair], num_entities: int, source: str) -> list[str]:
    warnings = []
    if certain := certain_hits(num_entities):
        warnings.append(certain)
    if not counts["valid"].present:
        warnings.append(
            f"no validation split: a search sets triples of train aside by a fixed seed; {repair_command(source)} writes a "
            "copy that has one"
        )
    if not counts["test"].present:
        warnings.append(
            "no test split: a search can choose, but has no test score to report (--test-size 10% sets one aside; imf split "
            "DIR OUT writes a copy that has one)"
        )
    for name in SPLITS[1:]:
        part = counts[name]
        if part.cold:
            cold = f"{part.cold:,} cold {WORDS[name]} triple{'' if part.cold == 1 else 's'}"
            warnings.append(f"{cold} of {part.lines:,}: with an entity that is in no training triple")
    given = sum(pair.test for pair in similar)
    if given:
        warnings.append(
            f"relations that say the same (inverse, near-duplicate, symmetric) give {given:,} of {counts['test'].lines:,} test "
            "triples away: one rule answers them as well as a model does"
        )
    return warnings
