"""Names as terms of N-Triples and back: every name has one term, and from the term the same name is read again.

- A name that is an absolute IRI is its own term: `http://example.org/Berlin` is `<http://example.org/Berlin>`.
- An entity name of the form `_:b0` is a blank node.
- Any other name is percent-encoded, byte by byte, after `urn:imf:`: `New York` is `<urn:imf:New%20York>`. So are names that
  begin with `urn:imf:` themselves, so that nothing is decoded that was not encoded.

Reading takes more than writing gives: a relative IRI such as `<Berlin>` is the name `Berlin`.
"""

from __future__ import annotations

import re
from urllib.parse import quote_from_bytes, unquote_to_bytes

_PREFIX = "urn:imf:"
_BLANK = re.compile(r"_:[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_-])?")
# What `term_of` makes of bytes: those that IRIs leave alone stand for themselves, and only the others are encoded.
_ENCODED = re.compile(
    r"(?:[A-Za-z0-9_.~-]|%(?!2[DE]|3[0-9]|4[1-9A-F]|5[0-9AF]|6[1-9A-F]|7[0-9AE])[0-9A-F]{2})*"
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def term_of(name: str, kind: str) -> str:
    """The term of a name, without angle brackets.

    Args:
        name: an entity's or a relation's name; its undecodable bytes are surrogate escapes.
        kind: `entity` or `relation`; only entities can be blank nodes.
    """
    if _as_it_is(name, kind):
        return name
    return _PREFIX + quote_from_bytes(name.encode("utf-8", "surrogateescape"), safe="")


def name_of(term: str, kind: str) -> str:
    """The name that `term_of` gave this term; a term that it never gives is its own name."""
    if term.startswith(_PREFIX) and _ENCODED.fullmatch(term, len(_PREFIX)):
        name = unquote_to_bytes(term[len(_PREFIX) :]).decode("utf-8", "surrogateescape")
        if not _as_it_is(name, kind):
            return name
    return term


def in_brackets(term: str) -> str:
    """A term as written in a statement: IRIs in angle brackets, blank nodes bare."""
    return term if term.startswith("_:") else f"<{term}>"


def _as_it_is(name: str, kind: str) -> bool:
    """Whether a name is its own term."""
    if kind == "entity" and _BLANK.fullmatch(name):
        return True
    return is_iri(name) and not name.startswith(_PREFIX)


def is_iri(name: str) -> bool:
    """Whether a name is an absolute IRI."""
    if not _SCHEME.match(name):
        return False  # most names of other formats: spares the parser
    from pyoxigraph import NamedNode

    try:
        NamedNode(name)
    except ValueError:
        return False
    return True
