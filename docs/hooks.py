"""What mkdocs calls while it builds the site: pages that lie elsewhere in the repository, notebooks, the table of settings.

Pages of `docs/` link to such files as they lie in the repository (`../results/README.md`), so that the links also work where
the repository is read without a site.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from imf_core.config import Config
from imf_core.config_base import Tunable

ROOT = Path(__file__).resolve().parents[1]
# Files of the repository that are part of the site; studies in `results/` are not.
ELSEWHERE = (
    "cluster/*", "examples/*", "examples/capitals/*", "results/*.md", "results/*.json", "results/configs/*", "results/img/*",
)
SETTINGS = "<!-- settings -->"


def on_files(files: Files, config: Any) -> Files:
    """Add the pages, pictures and examples that are kept in other folders; notebooks as pages too."""
    for path in sorted(path for pattern in ELSEWHERE for path in ROOT.glob(pattern) if path.is_file()):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
        if path.suffix == ".ipynb":
            page = "\n".join(notebook_page(json.loads(path.read_text(encoding="utf-8"))))
            files.append(File.generated(config, f"{name.removesuffix('.ipynb')}.md", content=page))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to other folders of the repository lead to their pages on the site."""
    if "/" in page.file.src_uri:
        return markdown
    markdown = re.sub(r"\]\(\.\./(?=(?:cluster|examples|results)/)", "](", markdown)
    return markdown.replace(SETTINGS, "\n".join(settings_tables()))


def notebook_page(notebook: dict[str, Any]) -> Iterator[str]:
    """A notebook as Markdown: its texts, its code, and what the code has shown."""
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            yield from (source, "")
            continue
        yield from ("```python", source, "```", "")
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "text/html" in data:
                yield from ("".join(data["text/html"]), "")
            elif "image/png" in data:
                yield from (f"![output](data:image/png;base64,{''.join(data['image/png']).strip()})", "")
            else:
                yield from ("```text", "".join(data["text/plain"]).rstrip("\n"), "```", "")


def settings_tables() -> Iterator[str]:
    """A table for each section of the settings: default, range that a search tries, meaning."""
    for section, field in Config.model_fields.items():
        yield from (f"## {section}", "", "| setting | default | searched | meaning |", "|---|---|---|---|")
        for name, info in field.annotation.model_fields.items():
            mark = next((mark for mark in info.metadata if isinstance(mark, Tunable)), None)
            default = json.dumps(info.get_default(call_default_factory=True), ensure_ascii=False)
            meaning = (info.description or "").replace("|", "\\|")
            yield f"| `{section}.{name}` | `{default}` | {searched(mark)} | {meaning} |"
        yield ""


def searched(mark: Tunable | None) -> str:
    """The range of a setting in words; empty for one that is never searched, in brackets where a space file has to name it."""
    if mark is None:
        return ""
    shown = ", ".join(map(str, mark.choices)) if mark.choices else f"{mark.low:g} to {mark.high:g}{', log' * mark.log}"
    return shown if mark.default else f"({shown})"
