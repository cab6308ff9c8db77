"""Texts that give answers away: the text of one end of a held-out triple contains the name of the other end."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from imf_core.data.graph.graph import RawGraph

MOST_EXAMPLES = 3
_SHORTEST = 3  # signs of a name that is looked for: "A" stands in every text
_AROUND = 40  # signs of the text shown before and behind the name
_KIND = re.compile(r"^[^:/]{1,30}: (?=\S)")  # "block: Latin-1 Supplement" is also said as "Latin-1 Supplement"
_IN_BRACKETS = re.compile(r"\s*\([^)]*\)$")  # "Georgia (country)" is also said as "Georgia"


def by_split(counts: Mapping[str, int], totals: Mapping[str, int]) -> str:
    """`3 of 10 valid and 4 of 12 test`; splits with a total of 0 are left out."""
    return " and ".join(f"{counts[split]:,} of {total:,} {split}" for split, total in totals.items() if total)


@dataclass(frozen=True)
class TextLeak:
    """Held-out triples of a relation whose texts contain the answer.

    Args:
        relation: its name.
        asked: `head` if the text of the head names the tail, `tail` if that of the tail names the head.
        counts: by split, held-out triples whose text names the answer.
        told: by split, held-out triples with a text on that side.
        examples: up to three, as `HEAD, TAIL: "...the text around the name..."`.
    """

    relation: str
    asked: str
    counts: Mapping[str, int]
    told: Mapping[str, int]
    examples: tuple[str, ...]

    @property
    def share(self) -> float:
        """Share of the held-out triples with a text that are given away, 0..1."""
        return sum(self.counts.values()) / max(1, sum(self.told.values()))

    def describe(self) -> str:
        """One line, with an example."""
        other = {"head": "tail", "tail": "head"}[self.asked]
        counts = by_split(self.counts, self.told)
        return f"{self.relation}: the text of the {self.asked} names the {other} in {counts} triples ({self.examples[0]})"


def text_leaks(raw: RawGraph, texts: Mapping[str, str], least: float = 0.05) -> tuple[TextLeak, ...]:
    """Look for the names of answers in the texts, as whole words, whatever the case.

    Args:
        raw: the graph, with its held-out lines.
        texts: by entity name.
        least: relations of which a smaller share is given away are left out, 0..1: some names stand in texts by chance.

    Returns:
        One entry a relation and side, the most given away first.
    """
    lowered = {name: f" {_words(text)} " for name, text in texts.items()}
    names = raw.entities.names
    counts: dict[tuple[int, str], Counter[str]] = {}
    asked_of: dict[tuple[int, str], Counter[str]] = {}
    examples: dict[tuple[int, str], list[str]] = {}
    for split, head, relation, tail in _held_out(raw):
        for asked, text_of, answer in (("head", names[head], names[tail]), ("tail", names[tail], names[head])):
            if text_of not in lowered or head == tail:
                continue
            key = relation, asked
            asked_of.setdefault(key, Counter())[split] += 1
            phrase = next((phrase for phrase in _phrases(answer) if f" {phrase} " in lowered[text_of]), None)
            if phrase is not None:
                counts.setdefault(key, Counter())[split] += 1
                shown = examples.setdefault(key, [])
                if len(shown) < MOST_EXAMPLES:
                    shown.append(f'{names[head]}, {names[tail]}: "{_around(texts[text_of], phrase)}"')
    leaks = [
        TextLeak(
            raw.relations.names[relation], asked, {split: found[split] for split in asked_of[relation, asked]},
            dict(asked_of[relation, asked]), tuple(examples[relation, asked]),
        )
        for (relation, asked), found in counts.items()
    ]
    leaks = [leak for leak in leaks if leak.share >= least]
    return tuple(sorted(leaks, key=lambda leak: (-sum(leak.counts.values()), leak.relation, leak.asked)))


def _held_out(raw: RawGraph) -> Iterator[tuple[str, int, int, int]]:
    for split in ("valid", "test"):
        for head, relation, tail in raw.splits[split].tolist() if split in raw.splits else ():
            yield split, head, relation, tail


@lru_cache(maxsize=100_000)
def _phrases(name: str) -> tuple[str, ...]:
    """What a name may be called in a text: itself, without its kind, without what stands in brackets."""
    bare = re.split(r"[/#]", name.strip("<>"))[-1] if "://" in name else _KIND.sub("", name)
    phrases = dict.fromkeys(_words(form) for form in (name, bare, _IN_BRACKETS.sub("", bare)))
    return tuple(phrase for phrase in phrases if len(phrase) >= _SHORTEST)


def _words(text: str) -> str:
    """Lower case, with one blank between words and no punctuation."""
    return " ".join(re.findall(r"\w+", text.replace("_", " ").casefold()))


def _around(text: str, phrase: str) -> str:
    """The text around a phrase."""
    pattern = r"\W+".join(map(re.escape, phrase.split()))
    match = re.search(pattern, text.replace("_", " ").casefold())
    if match is None:
        return text[: 2 * _AROUND]
    start, stop = max(0, match.start() - _AROUND), min(len(text), match.end() + _AROUND)
    return ("..." if start else "") + text[start:stop] + ("..." if stop < len(text) else "")
