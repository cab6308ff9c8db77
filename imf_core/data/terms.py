"""Names as terms of N-Triples and back: every name has one term, and from the term the same name is read again.

- A name that is an absolute IRI stands as it is: `http://example.org/Berlin` is `<http://example.org/Berlin>`.
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
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def term_of(name: str, kind: str) -> str:
    """The term of a name, without angle brackets.

    Args:
        name: an entity's or a relation's name; its undecodable bytes are surrogate escapes.
        kind: `entity` or `relation`; only entities can be blank nodes.
    """
    if kind == "entity" and _BLANK.fullmatch(name):
        return name
    if is_iri(name) and not name.startswith(_PREFIX):
        return name
    return _PREFIX + quote_from_bytes(name.encode("utf-8", "surrogateescape"), safe="")


def name_of(term: str, kind: str) -> str:
    """The name that `term_of` gave this term; a term that it never gives is its own name."""
    if term.startswith(_PREFIX):
        name = unquote_to_bytes(term[len(_PREFIX) :]).decode("utf-8", "surrogateescape")
        if term_of(name, kind) == term:
            return name
    return term


def in_brackets(term: str) -> str:
    """A term as it stands in a statement: IRIs in angle brackets, blank nodes bare."""
    return term if term.startswith("_:") else f"<{term}>"


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
