"""N-Triples: one statement a line, entities and relations as IRIs; literals are no entities."""

from __future__ import annotations

from pathlib import Path

from imf_core.data.files import GraphFiles


def literal_texts(source: Path | str | GraphFiles) -> dict[str, str]:
    """The literals of each subject as one text: entity name -> its literals, joined by spaces in the order of the file.

    Reads the training file of `source` and `literals.nt` in the folder, if there. Language tags and data
    types are dropped. The literals of validation and test files are left alone.

    Raises:
        DataError: no N-Triples file, or a line that cannot be used.
    """
    raise NotImplementedError
