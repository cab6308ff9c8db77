"""The bundled data sets; and `unicode`: a real multimodal graph that is generated in seconds, without a download.

Entities are the characters that DejaVu Sans (the font that comes with matplotlib) draws, and their attributes; relations are
the decompositions, case pairs and attributes of the Unicode Character Database; the picture of a character is its glyph, its
text the Unicode name. The folder has exactly the layout of a graph that a user brings.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from imf_core.data.bundled.codepages import write_codepages
from imf_core.data.bundled.glyphs import characters, font_file, pictures, write_lines
from imf_core.errors import DataError
from imf_core.files.atomic import atomic_folder
from imf_core.files.cache import REMEDY, cache_root
from imf_core.files.digest import sha256_of, sha256_of_file

BUNDLED = ("unicode",)  # graphs
BUNDLED_INTERACTIONS = ("codepages",)  # see codepages.py

_GENERATOR = 2  # raise it whenever the generated files change
_SEED = 0
_HELD_OUT = 0.1  # share of the triples in each of valid and test
_FILES = {
    "unicode": ("train.tsv", "valid.tsv", "test.tsv", "entities.txt", "relations.txt", "descriptions.tsv"),
    "codepages": ("interactions.tsv", "items.txt", "descriptions.tsv"),
}

_CATEGORIES = {
    "Lu": "uppercase letter", "Ll": "lowercase letter", "Lt": "titlecase letter", "Lm": "modifier letter", "Lo": "other letter",
    "Mn": "nonspacing mark", "Mc": "spacing mark", "Me": "enclosing mark", "Nd": "decimal digit", "Nl": "letter number",
    "No": "other number", "Pc": "connector punctuation", "Pd": "dash punctuation", "Ps": "opening punctuation",
    "Pe": "closing punctuation", "Pi": "initial quotation mark", "Pf": "final quotation mark", "Po": "other punctuation",
    "Sm": "mathematical symbol", "Sc": "currency symbol", "Sk": "modifier symbol", "So": "other symbol",
    "Zs": "space separator", "Zl": "line separator", "Zp": "paragraph separator", "Cf": "format character",
}
_BIDIRECTIONAL = {
    "L": "left to right", "R": "right to left", "AL": "right to left Arabic letter", "EN": "European number",
    "ES": "European number separator", "ET": "European number terminator", "AN": "Arabic number", "NSM": "nonspacing mark",
    "CS": "common number separator", "BN": "boundary neutral", "B": "paragraph separator", "S": "segment separator",
    "WS": "white space", "ON": "other neutral", "LRE": "left to right embedding", "LRO": "left to right override",
    "RLE": "right to left embedding", "RLO": "right to left override", "PDF": "pop directional format",
}
_COMBINING = {
    "1": "overlay", "9": "virama", "202": "attached below", "216": "attached above right", "220": "below", "228": "above left",
    "230": "above", "232": "above right", "233": "double below", "234": "double above", "240": "iota subscript",
}
# Kind of attribute -> (how it is said, what its values mean).
_PHRASES: dict[str, tuple[str, dict[str, str]]] = {
    "category": ("general category {}", _CATEGORIES),
    "bidirectional class": ("bidirectional class {}", _BIDIRECTIONAL),
    "combining class": ("combining class {}", _COMBINING),
    "script": ("script {} of characters", {}),
    "block": ("block {} of characters", {}),
    "numeric value": ("numeric value {}", {}),
}


def bundled_path(name: str) -> Path:
    """The folder of a bundled data set, generated on first use.

    It lies in `$IMF_CACHE`, else `$XDG_CACHE_HOME/imf-search`, else `~/.cache/imf-search`, else (no writable home) in the
    temporary folder, under a name that changes with the generator, the Unicode version and the font.

    Raises:
        DataError: unknown name, or a cache folder that cannot be written.
    """
    if name not in _FILES:
        raise DataError(f"no bundled data set {name!r}", remedy=f"known: {', '.join(_FILES)}", value=name)
    root = cache_root()
    target = root / f"{name}-{generator_version()}"
    if _complete(target, name):
        return target
    try:
        with atomic_folder(target, replace=target.exists()) as scratch:  # it exists if a cleaner has deleted some of its files
            (write_unicode if name == "unicode" else write_codepages)(scratch)
    except OSError as error:
        if not _complete(target, name):  # complete: another process was faster
            raise DataError(
                f"the data set {name} cannot be written to {root}: {error.strerror or error}",
                remedy=f"free some space there, or {REMEDY}", path=str(root),
            ) from error
    return target


def generator_version() -> str:
    """12 hex digits that change with everything that the content depends on: generator, Unicode data, font."""
    import fontTools

    facts = (_GENERATOR, unicodedata.unidata_version, fontTools.version, sha256_of_file(font_file()))
    return sha256_of([repr(facts)])[:12]


def write_unicode(folder: Path) -> None:
    """Write the graph: three splits, `entities.txt`, `relations.txt`, `descriptions.tsv` and `images/<entity>.png`.

    Args:
        folder: created where missing; files of the same names are replaced.
    """
    drawn = characters()
    named = list(dict.fromkeys(_triples(drawn)))
    heads_and_tails = {name for head, _, tail in named for name in (head, tail)}
    known = [name for name in drawn.values() if name in heads_and_tails]
    entities = known + sorted(heads_and_tails.difference(known))
    relations = sorted({relation for _, relation, _ in named})
    entity_ids = {name: position for position, name in enumerate(entities)}
    relation_ids = {name: position for position, name in enumerate(relations)}
    ids = np.array([(entity_ids[h], relation_ids[r], entity_ids[t]) for h, r, t in named], dtype=np.int64)
    digests = [hashlib.blake2b(f"{_SEED}\t{h}\t{r}\t{t}".encode(), digest_size=8).digest() for h, r, t in named]
    # A hash decides instead of a random generator: the split is then the same with every version of NumPy.
    part = _split(ids, np.frombuffer(b"".join(digests), dtype=">u8"), len(entities), len(relations))

    (folder / "images").mkdir(parents=True, exist_ok=True)
    for code, split in enumerate(("train", "valid", "test")):
        rows = ids[part == code]
        rows = rows[np.lexsort(rows.T[[2, 1, 0]])]
        write_lines(folder / f"{split}.tsv", (f"{entities[h]}\t{relations[r]}\t{entities[t]}" for h, r, t in rows.tolist()))
    write_lines(folder / "entities.txt", entities)
    write_lines(folder / "relations.txt", relations)
    points = {name: point for point, name in drawn.items()}
    write_lines(folder / "descriptions.tsv", (f"{name}\t{_describe(name, points.get(name))}" for name in entities))
    for name, picture in pictures({name: points[name] for name in known}):
        picture.save(folder / "images" / f"{name}.png", compress_level=1)


def _split(ids: np.ndarray, digests: np.ndarray, num_entities: int, num_relations: int) -> np.ndarray:
    """(T,) 0 train, 1 valid, 2 test.

    Held-out triples are the only link between their two entities, so that no split shows another one's pair through an
    inverse or a second relation; and each entity and relation has a triple in train.
    """
    heads, kinds, tails = ids.T
    pairs = np.minimum(heads, tails) * num_entities + np.maximum(heads, tails)
    _, group, size = np.unique(pairs, return_inverse=True, return_counts=True)
    alone = size[group] == 1
    order = np.lexsort((digests, alone))  # pairs with several links first: they stay in train and cover their entities for free
    keep = ~alone
    nodes = np.stack((heads[order], tails[order]), axis=1).ravel()
    keep[order[np.unique(nodes, return_index=True)[1] // 2]] = True
    keep[order[np.unique(kinds[order], return_index=True)[1]]] = True
    free = order[~keep[order]]
    count = min(round(_HELD_OUT * len(ids)), len(free) // 2)
    part = np.zeros(len(ids), dtype=np.int8)
    part[free[:count]], part[free[count : 2 * count]] = 1, 2
    return part


def _triples(characters: dict[int, str]) -> Iterator[tuple[str, str, str]]:
    from fontTools import unicodedata as database

    for point, name in characters.items():
        sign = chr(point)
        links = [*_decomposition(sign), *_case(sign)]
        mirror = database.Mirrored.MIRRORED.get(point, 0)
        if mirror > point:  # the relation is symmetric: one direction says it all
            links.append(("mirrored", mirror))
        for relation, other in links:
            if other in characters and other != point:
                yield name, relation, characters[other]
        yield name, "category", f"category: {unicodedata.category(sign)}"
        yield name, "script", f"script: {database.script_name(database.script(sign))}"
        yield name, "block", f"block: {database.block(sign)}"
        yield name, "bidirectional_class", f"bidirectional class: {unicodedata.bidirectional(sign)}"
        if unicodedata.combining(sign):
            yield name, "combining_class", f"combining class: {unicodedata.combining(sign)}"
        value = unicodedata.numeric(sign, None)
        if value is not None:
            yield name, "numeric_value", f"numeric value: {Fraction(value).limit_denominator(1000)}"


def _decomposition(sign: str) -> Iterator[tuple[str, int]]:
    """(relation, code point) of each part: base and mark, or the parts of a compatibility decomposition by its kind."""
    kind, *parts = unicodedata.decomposition(sign).split() or [""]
    if not kind:
        return
    if not kind.startswith("<"):
        points = [int(part, 16) for part in (kind, *parts)]
        yield from zip(("canonical_base", "canonical_mark") if parts else ("canonical_equivalent",), points, strict=True)
        return
    points = [int(part, 16) for part in parts]
    if kind == "<fraction>":
        slash = points.index(ord("\N{FRACTION SLASH}"))
        yield from (("fraction_numerator", point) for point in points[:slash])
        yield from (("fraction_denominator", point) for point in points[slash + 1 :])
        return
    yield f"compatibility_{kind[1:-1]}", points[0]
    yield from (("compatibility_next", point) for point in points[1:])


def _case(sign: str) -> Iterator[tuple[str, int]]:
    lower, upper = sign.lower(), sign.upper()
    if lower != sign and len(lower) == 1:
        yield "lowercase", ord(lower)
    if upper != sign and len(upper) == 1 and upper.lower() != sign:  # where it says more than lowercase: final sigma, ...
        yield "uppercase", ord(upper)


def _describe(name: str, point: int | None) -> str:
    """The text of an entity: of a character its Unicode name and nothing that a relation asks for, of an attribute a phrase."""
    if point is not None:
        return name.lower()
    kind, _, value = name.partition(": ")
    phrase, meanings = _PHRASES[kind]
    return phrase.format(meanings.get(value, value))


def _complete(folder: Path, name: str) -> bool:
    return (folder / "images").is_dir() and all((folder / file).is_file() for file in _FILES[name])
