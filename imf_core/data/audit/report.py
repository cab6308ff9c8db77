"""What an audit found: as JSON, as lines of plain text and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Protocol

from imf_core.data.audit.baseline import BaselineMetrics
from imf_core.data.audit.leaks import TextLeak
from imf_core.data.audit.links import LinkLeak
from imf_core.data.audit.relations import DUPLICATE, INVERSE, SYMMETRIC, RelationPair
from imf_core.data.graph.graph import SPLITS, overlap_words
from imf_core.files.markdown import one_line, table
from imf_core.files.pages import summary_html

WORDS = {"train": "training", "valid": "validation", "test": "test"}
_NAMED = 3  # groups, and members of one, named in text
_LISTED = 10  # relation pairs of a kind named in text; JSON has all
_LOOKS = {INVERSE: "{a} looks like inverse of {b}", DUPLICATE: "{a} looks like {b}", SYMMETRIC: "{a} looks symmetric"}


Table = tuple[list[str], list[list[str]]]  # column titles, rows


class Baseline(Protocol):
    """Metrics of a baseline that needs no training."""

    @property
    def mrr(self) -> float:
        """Mean reciprocal rank, 0..1."""

    def describe(self) -> str:
        """One line, in percent."""

    def as_dict(self) -> Mapping[str, Any]:
        """Plain values, from which it can be built again."""


class Audit:
    """What an audit tells, whatever the data; a subclass is a frozen dataclass with these fields and more.

    Args:
        source: where the data is from.
        problems: what `--strict` refuses.
        warnings: what the user should know and need not mend.
        baseline: baselines without training, by split.
    """

    source: str
    problems: Sequence[str]
    warnings: Sequence[str]
    baseline: Mapping[str, Baseline]

    @property
    def size(self) -> str:
        """How large the data is, in words."""
        raise NotImplementedError  # abstract

    @property
    def named_answers(self) -> Mapping[str, str]:
        """Modalities that name the answers of held-out examples, and of how many, in words: to compare with a model without."""
        return {}

    @property
    def overlaps(self) -> Mapping[str, str]:
        """By split, how many of its lines stand in an earlier split and what its figures are of, in words."""
        return {}

    @property
    def counts(self) -> dict[str, int]:
        """How large the data is, in numbers by name."""
        return {}

    def lines(self) -> list[str]:
        """What the tables do not say, one fact a line."""
        return self.baseline_lines()

    def tables(self) -> dict[str, tuple[str, Table]]:
        """For a report: name -> caption, and columns and rows."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        raise NotImplementedError  # abstract

    def _repr_html_(self) -> str:
        """In a notebook."""
        lists = {"Problems": self.problems, "Warnings": self.warnings, "Found": self.lines()}
        return summary_html(f"audit of {self.source}", [self.size], dict(self.tables().values()), lists)

    def baseline_lines(self) -> list[str]:
        """`baseline without training, test: MRR 29.6, MR 1661, ... (a model should beat its MRR)`."""
        return [
            f"baseline without training, {WORDS[name]}: {metrics.describe()} (a model should beat its MRR)"
            for name, metrics in self.baseline.items()
        ]

    def markdown(self) -> str:
        """A section for a report, heading included."""
        text = ["## Audit of the data", "", one_line(f"{self.source}: {self.size}."), ""]
        for title, entries in (("Problems", self.problems), ("Warnings", self.warnings), ("Found", self.lines())):
            if title == "Found":
                text += [line for _, (columns, rows) in self.tables().values() for line in table(columns, rows)]
            if entries:
                text += [f"**{title}**", "", *(f"- {one_line(entry)}" for entry in entries), ""]
        return "\n".join(text)


@dataclass(frozen=True)
class SplitCounts:
    """Counts of one split; counts are of lines unless said otherwise.

    Args:
        present: the split has a file.
        lines: lines of the file.
        distinct: different triples among them.
        in_train, in_valid, in_test: lines whose triple is in that split too (for the split itself: all lines).
        clean: lines whose triple is in no other split.
        cold: lines with an entity that no training triple holds.
        self_loops: lines whose head is their tail.
        linked: lines that are no training triple themselves, but whose pair is linked in train, in either direction.
        linked_same, linked_reversed: the same, by a triple in the same direction, in the opposite one.
        unseen: `2 unseen entities in 2 test triples; 1 unseen relation in 1`; empty if there are none.
        unseen_entities, unseen_relations: different ones that no training triple holds.
        unseen_relation_lines: lines with such a relation.
    """

    present: bool = False
    lines: int = 0
    distinct: int = 0
    in_train: int = 0
    in_valid: int = 0
    in_test: int = 0
    clean: int = 0
    cold: int = 0
    self_loops: int = 0
    linked: int = 0
    linked_same: int = 0
    linked_reversed: int = 0
    unseen: str = ""
    unseen_entities: int = 0
    unseen_relations: int = 0
    unseen_relation_lines: int = 0


@dataclass(frozen=True)
class Coverage:
    """How many entities have a modality, by looking at names alone.

    Args:
        name: of the modality: `image`, `text`, or that of the feature file.
        present: entities that have it.
        entities: N.
        empty: entities with a blank text, which counts as none.
        unknown: ids that are no entity of the graph.
        several: entities with several pictures (their features are averaged).
        alike: groups of entities with the same picture, byte for byte, or the same row of image features.
        problem: what makes it unusable, in one sentence; empty where nothing does.
    """

    name: str
    present: int
    entities: int
    empty: int = 0
    unknown: int = 0
    several: int = 0
    alike: tuple[tuple[str, ...], ...] = ()
    problem: str = ""

    def describe(self) -> str:
        """`text 3 of 5 (1 empty)`."""
        details = [f"{self.empty:,} empty"] if self.empty else []
        details += [f"{self.several:,} with several"] if self.several else []
        shown = {"image": "images"}.get(self.name, self.name)
        return f"{shown} {self.present:,} of {self.entities:,}" + (f" ({', '.join(details)})" if details else "")


@dataclass(frozen=True)
class AuditReport(Audit):
    """The audit of a graph.

    Args:
        source: where the graph is from.
        entities, relations: N and R.
        splits: counts of train, valid and test; one that is not there counts 0.
        relation_names: names in id order.
        similar: relations that say the same.
        single_triple_relations: names of relations with one training triple.
        categories: `1-1`, `1-N`, `N-1`, `N-N` -> number of `relations` (that train holds) and of lines per split.
        coverage: by modality.
        leaks: texts that name the answers of held-out triples, see `text_leaks`.
        links: training triples between the ends of held-out triples, see `link_leaks`.
        collisions: groups of entity names that a reader cannot tell apart.
        loops: by split, up to three triples of an entity with itself.
        baseline: metrics of the baseline without training, by split.
        notes: what the reader said.
        problems: what `--strict` refuses: a search could not run on it, or its figures would not mean what they say.
        warnings: what one should know, but cannot or need not mend.
    """

    source: str
    entities: int
    relations: int
    splits: Mapping[str, SplitCounts]
    relation_names: tuple[str, ...]
    similar: tuple[RelationPair, ...]
    single_triple_relations: tuple[str, ...]
    categories: Mapping[str, Mapping[str, int]]
    coverage: tuple[Coverage, ...]
    leaks: tuple[TextLeak, ...]
    links: tuple[LinkLeak, ...]
    collisions: tuple[tuple[str, ...], ...]
    loops: Mapping[str, tuple[str, ...]]
    baseline: Mapping[str, BaselineMetrics]
    notes: tuple[str, ...]
    problems: list[str]
    warnings: list[str]

    @property
    def contaminated(self) -> bool:
        """Whether a split holds triples of another one."""
        return any(part.clean < part.lines for part in self.splits.values())

    @property
    def named_answers(self) -> Mapping[str, str]:
        """Of the text: `it names the answer in at least 412 of 2,726 test triples`; empty where it names few."""
        most: dict[str, dict[str, int]] = {split: {} for split in SPLITS[1:]}  # a triple may be told from both sides
        for leak in self.leaks:
            for split, count in leak.counts.items():
                most[split][leak.relation] = max(count, most[split].get(leak.relation, 0))
        told = [
            f"{sum(counts.values()):,} of {self.splits[split].lines:,} {WORDS[split]}"
            for split, counts in most.items() if any(counts.values())
        ]
        return {"text": f"it names the answer in at least {' and '.join(told)} triples"} if told else {}

    @property
    def overlaps(self) -> Mapping[str, str]:
        """See `Audit.overlaps`."""
        valid, test = self.splits["valid"], self.splits["test"]
        counts = {"valid": (valid.lines, valid.lines - valid.in_train), "test": (test.lines, test.clean)}
        return {
            split: overlap_words(split, count, clean, "lines") for split, (count, clean) in counts.items() if clean < count
        }

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values; each of `train`, `valid` and `test` has all counts even where it has no file."""
        described = {
            kind: [self._pair(pair) for pair in self.similar if pair.kind == kind] for kind in (INVERSE, DUPLICATE, SYMMETRIC)
        }
        return {
            "source": self.source,
            "entities": self.entities,
            "relations": self.relations,
            **{name: asdict(self.splits[name]) for name in SPLITS},
            "contaminated": self.contaminated,
            "self_loops": {name: self.splits[name].self_loops for name in SPLITS},
            "linked_pairs": {name: self.splits[name].linked for name in SPLITS[1:]},
            "unseen": {name: self.splits[name].unseen for name in SPLITS[1:]},
            "single_triple_relations": list(self.single_triple_relations),
            "inverse_relations": described[INVERSE],
            "near_duplicate_relations": described[DUPLICATE],
            "symmetric_relations": described[SYMMETRIC],
            "categories": {name: dict(counts) for name, counts in self.categories.items()},
            "coverage": {entry.name: asdict(entry) for entry in self.coverage},
            "text_leaks": [{**asdict(leak), "share": leak.share} for leak in self.leaks],
            "link_leaks": [{**asdict(leak), "share": leak.share} for leak in self.links],
            "colliding_names": [list(group) for group in self.collisions],
            "self_loop_examples": {name: list(shown) for name, shown in self.loops.items()},
            "baseline": {name: metrics.as_dict() for name, metrics in self.baseline.items()},
            "notes": list(self.notes),
            "problems": list(self.problems),
            "warnings": list(self.warnings),
        }

    def split_rows(self) -> Table:
        """The table of the splits: columns and rows."""
        columns = ["split", "lines", "distinct", "in train", "in valid", "in test", "clean", "cold", "linked", "self-loops"]
        rows = []
        for name in SPLITS:
            part = self.splits[name]
            counts = (part.lines, part.distinct, part.in_train, part.in_valid, part.in_test, part.clean, part.cold, part.linked)
            cells = [f"{count:,}" for count in (*counts, part.self_loops)] if part.present else ["-"] * (len(columns) - 1)
            if part.present:
                cells[2 + SPLITS.index(name)] = "-"  # a split against itself says nothing
            rows.append([name, *cells])
        return columns, rows

    def category_rows(self) -> Table:
        """The table of the relation categories: columns and rows."""
        columns = ["category", "relations", *(f"{name} triples" for name in SPLITS)]
        rows = [[name, *(f"{counts[key]:,}" for key in ("relations", *SPLITS))] for name, counts in self.categories.items()]
        return columns, rows

    @property
    def size(self) -> str:
        """How large the graph is, in words."""
        return f"{self.entities:,} entities, {self.relations:,} relations"

    @property
    def counts(self) -> dict[str, int]:
        """Entities, relations, triples of each split, and entities with each modality."""
        triples = {f"{name}_triples": part.lines for name, part in self.splits.items() if part.present}
        covered = {f"entities_with_{entry.name}": entry.present for entry in self.coverage}
        return {"entities": self.entities, "relations": self.relations, **triples, **covered}

    def tables(self) -> dict[str, tuple[str, Table]]:
        """For a report: name -> caption, and columns and rows."""
        return {"splits": ("the splits", self.split_rows()), "categories": ("relations by category", self.category_rows())}

    def lines(self) -> list[str]:
        """What the tables do not say, one fact a line, without wrapping."""
        lines = [f"{WORDS[a]} and {WORDS[b]} are disjoint" for a, b in combinations(SPLITS, 2) if self._disjoint(a, b)]
        for name in SPLITS:
            part = self.splits[name]
            repeats = part.lines - part.distinct
            if repeats:
                lines.append(f"{name}: {_count(repeats, 'duplicate')} removed ({part.distinct:,} left)")
            if part.self_loops:
                lines.append(f"{name}: {_count(part.self_loops, 'self-loop')} kept ({', '.join(self.loops[name])})")
            if part.unseen:
                lines.append(part.unseen)
            if part.linked:
                lines.append(
                    f"{name}: {part.linked:,} of {part.lines:,} triples are no training triple, but link a pair that train "
                    f"links too ({part.linked_same:,} in the same direction, {part.linked_reversed:,} reversed)"
                )
        singles = self.single_triple_relations
        if singles:
            listed = ", ".join(singles[:_LISTED]) + (", ..." if len(singles) > _LISTED else "")
            lines.append(f"{_count(len(singles), 'single-triple relation')}: {listed}")
        lines += self.relation_lines()
        if self.coverage:
            lines.append(self.coverage_line())
        for entry in self.coverage:
            if entry.alike:
                entities = sum(map(len, entry.alike))
                groups = _groups(entry.alike, "group")
                lines.append(f"{entry.name}: {entities:,} entities share theirs with others, byte for byte: {groups}")
        if self.collisions:
            lines.append(f"names that differ in case, blanks or address alone: {_groups(self.collisions, 'group')}")
        lines += _leak_lines("texts give answers away (compare a model without them)", self.leaks)
        lines += _leak_lines("links of train give answers of held-out triples away", self.links)
        lines += self.baseline_lines()
        return lines + list(self.notes)

    def relation_lines(self) -> list[str]:
        """`r2 looks like inverse of r1: 3 of 4 test triples (...)`, the first of each kind."""
        lines = []
        for kind in (INVERSE, DUPLICATE, SYMMETRIC):
            pairs = [pair for pair in self.similar if pair.kind == kind]
            lines += [self._relation_line(pair) for pair in pairs[:_LISTED]]
            if len(pairs) > _LISTED:
                lines.append(f"... and {len(pairs) - _LISTED:,} more {kind} relations (all of them: --json)")
        return lines

    def coverage_line(self) -> str:
        """`coverage: images 3 of 5, text 3 of 5 (1 empty), 1 unknown id`."""
        parts = [entry.describe() for entry in self.coverage]
        unknown = sum(entry.unknown for entry in self.coverage)
        return "coverage: " + ", ".join([*parts, *([_count(unknown, "unknown id")] if unknown else [])])

    def _disjoint(self, first: str, second: str) -> bool:
        parts = self.splits[first], self.splits[second]
        return all(part.lines for part in parts) and not getattr(parts[0], f"in_{second}")

    def _pair(self, pair: RelationPair) -> dict[str, Any]:
        return {**asdict(pair), "a": self.relation_names[pair.a], "b": self.relation_names[pair.b]}

    def _relation_line(self, pair: RelationPair) -> str:
        a, b = self.relation_names[pair.a], self.relation_names[pair.b]
        looks = _LOOKS[pair.kind].format(a=a, b=b)
        shares = f"{100 * pair.share_a:.0f} % of {a}" + (f", {100 * pair.share_b:.0f} % of {b}" if pair.a != pair.b else "")
        given = [
            f"{count:,} of {self.splits[name].lines:,} {WORDS[name]} triples"
            for name, count in (("test", pair.test), ("valid", pair.valid)) if self.splits[name].present
        ]
        return f"{looks}: {', '.join(given)}{' ' if given else ''}({_count(pair.shared, 'shared pair')}: {shares})"


def certain_hits(num_entities: int) -> str:
    """The warning that no rank can be above 10; empty if one can."""
    return f"{num_entities} entities are ranked: Hits@10 is 1 by construction" if num_entities <= 10 else ""


def _leak_lines(title: str, leaks: Sequence[TextLeak] | Sequence[LinkLeak]) -> list[str]:
    more = [f"  ... and {len(leaks) - _LISTED:,} more (all of them: --json)"] if len(leaks) > _LISTED else []
    return [f"{title}:", *(f"  {leak.describe()}" for leak in leaks[:_LISTED]), *more] if leaks else []


def _groups(groups: Sequence[Sequence[str]], noun: str) -> str:
    """`12 groups (a = b; c = d = e; f = g; ...)`."""
    shown = "; ".join(" = ".join(group[:_NAMED]) + (" = ..." if len(group) > _NAMED else "") for group in groups[:_NAMED])
    return f"{_count(len(groups), noun)} ({shown}{'; ...' if len(groups) > _NAMED else ''})"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
