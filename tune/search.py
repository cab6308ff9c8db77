"""The search: `python tune/search.py`, or the copy of this file that `ray submit` uploads to a home folder."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn


def find_packages() -> None:
    """Put the source tree first on `sys.path`: around this file, in IMF_HOME, installed, in ~/imf or in the current folder."""
    script = Path(__file__).resolve()
    named, installed = os.environ.get("IMF_HOME"), find_spec("imf_core")
    roots = [script.parent.parent, *([Path(named).expanduser()] if named else [])]
    roots += [Path(installed.origin).parents[1]] if installed is not None and installed.origin else []
    roots += [Path("~/imf").expanduser(), Path.cwd()]
    root = next((root for root in roots if (root / "imf_core" / "__init__.py").is_file()), None)
    if root is None:
        refuse(
            f"{script} cannot find the packages imf_core and tune (looked in {', '.join(map(str, roots))})",
            "set IMF_HOME to the root of the repository on this machine, or mount it at ~/imf as cluster/cluster.yaml does",
        )
    original = root / "tune" / "search.py"
    if script != original.resolve() and script.read_bytes() != original.read_bytes():
        refuse(f"{script} differs from the code in {root}", "upload the code again: ray rsync-up cluster.yaml")
    sys.path[0] = str(root)


def refuse(problem: str, remedy: str) -> NoReturn:
    """Exit with status 2, without a traceback."""
    print(f"Error: {problem}\n  What to do: {remedy}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    if not __package__:
        find_packages()
    from tune.environment import environment, parse_address

    environment(parse_address(sys.argv))  # before anything imports ray

    from tune.options import run
    from tune.pipeline import search

    run(search)
