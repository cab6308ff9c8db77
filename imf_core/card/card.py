"""`imf card`: a model card from what the files of a checkpoint say, and of the study that it lies in."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from imf_core.card.text import CITATION, FOR, NOT_FOR, UNKNOWN, Facts, count, limits
from imf_core.checkpoint.checkpoint import Checkpoint
from imf_core.config import ModelConfig
from imf_core.data.graph.graph import ALL_LINES, SPLITS, counted_title, overlap_words
from imf_core.errors import CheckpointError, DataError
from imf_core.files.markdown import one_line, table
from imf_core.parts.sections import own_parts_of
from imf_core.study_reader import summary_beside

FIGURES = {
    "mrr": "MRR", "hits_at_1": "Hits@1", "hits_at_3": "Hits@3", "hits_at_10": "Hits@10", "mean_rank": "mean rank",
}
_SPLITS = {"validation": "valid", "test": "test"}
_ENCODERS = {"text": "text_encoder", "image": "image_encoder"}


def read_study(checkpoint: Path) -> Facts:
    """`summary.json` of the study whose best checkpoint this is; empty if it is not of a study.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return Facts(summary_beside(checkpoint))
    except DataError as error:
        remedy = "restore the summary, or move the checkpoint elsewhere"
        raise CheckpointError(error.problem, remedy=remedy, **error.facts) from error


def model_card(loaded: Checkpoint, study: Facts, address: str = "FOLDER") -> str:
    """The whole card.

    Args:
        loaded: the checkpoint.
        study: its study's summary; empty where it has none.
        address: how a reader loads it: `hf://OWNER/NAME`, or FOLDER for the folder of the card.
    """
    metrics = Facts(loaded.metrics)
    name = str(study.at("study") or loaded.path.resolve().name)
    parts = [
        front_matter(loaded, metrics, name), f"# {one_line(name)}", "",
        "A link prediction model: asked (head, relation, ?) or (?, relation, tail), it ranks "
        f"{count(loaded.model.num_entities)} entities. It is an IMF (Interactive Multimodal Fusion, WWW 2023): a branch for "
        "structure, one for each modality, one for their fusion, and a decision over them. Written by `imf card` from "
        f"the files of the checkpoint; what they do not hold is marked *{UNKNOWN}*.", "",
        "## Model", "", *_model(loaded), "## Training data", "", *_data(loaded, metrics, study),
        "## How it was chosen", "", *_choice(loaded, metrics), "## Figures", "", *_figures(metrics, study),
        *(["## The study", "", *_study(study)] if study.at("study") is not None else []),
        "## What it is for", "", *FOR, "", "Not for:", "", *NOT_FOR, "", "## Limits", "", *limits(loaded), "",
        "## How to use it", "", *_use(loaded, address), "## Licence", "",
        "Not chosen yet: whoever publishes this model names its licence here and as `license:` in the front matter. The data "
        "that it was trained on has a licence of its own.", "", "## Citation", "", CITATION,
    ]
    return "\n".join(parts).rstrip() + "\n"


def front_matter(loaded: Checkpoint, metrics: Facts, name: str) -> str:
    """The YAML block, without a licence, and without a figure that is not finite or not there."""
    data = _hub_name(Path(loaded.config.data.path).name)
    results = []
    for stored, split in _SPLITS.items():
        values = {key: value for key in FIGURES if (value := metrics.number(stored, key)) is not None}
        if values:
            results.append({
                "task": {"type": "graph-ml", "name": "Link prediction"},
                "dataset": {"name": data, "type": data, "split": split},
                "metrics": [{"type": key, "name": FIGURES[key], "value": value} for key, value in values.items()],
            })
    described: dict[str, Any] = {
        "library_name": "imf-search", "pipeline_tag": "graph-ml",
        "tags": ["imf", "knowledge-graph", "link-prediction", "multimodal", "safetensors"], "datasets": [data],
    }
    if results:
        described |= {"metrics": list(FIGURES), "model-index": [{"name": _hub_name(name), "results": results}]}
    text = yaml.safe_dump(described, sort_keys=False, allow_unicode=False, width=120)
    return f"---\n# license: yours to choose\n{text}---\n"


def _hub_name(name: str) -> str:
    """Letters, digits, `.`, `_` and `-`: what the hub takes as a name; the body of the card has the true one."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.") or "unnamed"


def _model(loaded: Checkpoint) -> list[str]:
    model, settings = loaded.model, loaded.config.model
    versions = Facts(loaded.description).at("versions")
    written_by = ", ".join(f"{key} {value}" for key, value in versions.items()) if isinstance(versions, dict) else UNKNOWN
    rows = [
        ["branches", ", ".join(model.branches)], ["entity dimension", str(settings.dim)],
        ["relation model", settings.scoring], ["fusion", _fusion(settings)], ["decision", settings.decision],
        ["loss", loaded.config.train.loss], ["missing modalities", settings.missing],
        ["trained parameters", count(model.num_parameters)], ["written by", written_by],
    ]
    if own := own_parts_of(loaded.config):
        rows.append(["parts of one's own", ", ".join(part.title for part in own)])
    if settings.scoring == "contextual":
        rows.insert(2, ["relation dimension", str(settings.relation_dim)])
    return table(["", ""], rows, left=2)


def _fusion(settings: ModelConfig) -> str:
    """The operator and its size."""
    rank = {"tucker": settings.fusion_rank, "meta_cp": settings.cp_rank}.get(settings.fusion)
    return settings.fusion if rank is None else f"{settings.fusion}, rank {rank}"


def _data(loaded: Checkpoint, metrics: Facts, study: Facts) -> list[str]:
    data, model = loaded.config.data, loaded.model
    rows = [["path", data.path], ["fingerprint", str(metrics.at("fingerprint") or UNKNOWN)]]
    rows += [["entities", count(model.num_entities)], ["relations", count(model.num_relations)]]
    counted = study.part("audit")
    rows += [[f"distinct {split} triples", count(counted.number(split, "distinct"))] for split in SPLITS]
    lines = table(["", ""], rows, left=2)
    for name in model.all_modalities:
        mask = model.mask(name)
        present = model.num_entities if mask is None else int(mask.sum())
        note = ""
        if name in _ENCODERS:
            note = f"; encoder by the settings: {getattr(data, _ENCODERS[name])} (ready-made features go before it)"
        share = f"{count(present)} of {count(model.num_entities)} entities ({100 * present / model.num_entities:.1f} %)"
        lines.append(f"- {one_line(name)}: {share}{one_line(note)}")
    return [*lines, *([] if model.all_modalities else ["- no modality: structure alone"]), ""]


def _choice(loaded: Checkpoint, metrics: Facts) -> list[str]:
    settings = loaded.config.train
    rows = [
        ["validation MRR", metrics.shown("validation", "mrr")], ["best epoch", count(metrics.number("best_epoch"))],
        ["epochs trained", count(metrics.number("epochs"))], ["epochs at most", str(settings.max_epochs)],
        ["seed", str(settings.seed)], ["minutes of training", _per(metrics.number("cost", "seconds"), 60)],
        ["peak memory of its process, GB", _per(metrics.number("cost", "peak_bytes"), 1e9)],
    ]
    listed = [[key, json.dumps(value)] for key, value in loaded.config.flat().items()]
    return [
        "Of its training, the epoch with the best validation MRR was kept.", "", *table(["", ""], rows, left=2),
        "<details><summary>All settings</summary>", "", *table(["setting", "value"], listed, left=2), "</details>", "",
    ]


def _per(number: float | None, unit: float) -> str:
    return UNKNOWN if number is None else f"{number / unit:.1f}"


def _figures(metrics: Facts, study: Facts) -> list[str]:
    shared = [stored for stored in _SPLITS if metrics.part(stored, "slices", ALL_LINES).values]
    lines = [
        "Filtered ranking among all entities, both directions, a tie counts with its mean rank. The epoch was chosen by the "
        "validation figures, which are therefore a little too good; test is the figure to quote"
        + (f", of the triples that are new to the model, not `{ALL_LINES}`." if shared else "."), "",
    ]
    for stored, split in _SPLITS.items():
        lines += [f"### {stored.capitalize()}", ""]
        part = metrics.part(stored)
        if not part.values:
            lines += [f"{UNKNOWN.capitalize()}: the checkpoint holds no {stored} figures.", ""]
            continue
        slices = part.part("slices")
        if stored in shared:
            whole, clean = (int(facts.number("count") or 0) // 2 for facts in (slices.part(ALL_LINES), part))
            lines += [f"{overlap_words(split, whole, clean if clean < whole else 0).capitalize()}.", ""]
        elif unmarked := _unmarked(study, split):
            lines += [unmarked, ""]
        first = counted_title(part.number("count") or 0, slices.number(ALL_LINES, "count"))
        rows = [[first, *_row(part)], *([name, *_row(slices.part(name))] for name in slices.values)]
        lines += table(["slice", "queries", *FIGURES.values()], rows)
        if not slices.values:
            lines += [f"Slices: {UNKNOWN}.", ""]
    return lines


def _unmarked(study: Facts, split: str) -> str:
    """A warning for figures of an earlier version, which ranked the lines that a split shares with others like the rest."""
    counts = study.part("audit", split)
    earlier = [name for name in ("train", "valid") if name != split]
    met = [f"{count(number)} stand in {name}" for name in earlier if (number := counts.number(f"in_{name}"))]
    return f"Of {count(counts.number('lines'))} lines {' and '.join(met)}: these figures are too good." if met else ""


def _row(part: Facts) -> list[str]:
    if part.number("count") == 0:
        return ["0", *["-"] * len(FIGURES)]  # stored as zeros, which would read as bad figures
    return [count(part.number("count")), *(part.shown(key) for key in FIGURES)]


def _study(study: Facts) -> list[str]:
    trials = {state: number for state, number in study.part("trials").values.items() if number}
    tried = ", ".join(f"{number} {state}" for state, number in trials.items()) or UNKNOWN
    seeds = study.at("seeds")
    rows = [
        ["study", str(study.at("study"))], ["trials", tried],
        ["best validation MRR of a trial", study.shown("best_validation_mrr")],
        ["seeds of the retrained winner", ", ".join(map(str, seeds)) if isinstance(seeds, list) and seeds else UNKNOWN],
        ["validation MRR over the seeds", _spread(study.part("winner_validation_mrr"))],
        ["validation MRR on structure alone", study.shown("structure_only_validation_mrr")],
    ]
    without = study.part("validation_mrr_without")
    rows += [[f"validation MRR without {name}", without.shown(name)] for name in without.values]
    rows += [[f"test {title} over the seeds", _spread(study.part("test").part(key), key)] for key, title in FIGURES.items()]
    if (whole := study.part("test", "mrr_all_lines")).number("mean") is not None:
        rows += [["test MRR over the seeds, all lines", _spread(whole)]]
    rows += [["test opened, times", count(study.number("test_opened"))]]
    for split, title in (("valid", "validation"), ("test", "test")):
        points = study.number("points_over_baseline", split)
        rows.append([f"points above a baseline without training, {title}", UNKNOWN if points is None else f"{points:+.1f}"])
    text = "Settings were chosen on validation, and this checkpoint is the seed with the best validation MRR."
    return [text, "", *table(["", ""], rows, left=2)]


def _spread(values: Facts, key: str = "mrr") -> str:
    mean, spread = values.shown("mean", kind=key), values.number("std")
    return mean if spread is None else f"{mean} ± {values.shown('std', kind=key)}"


def _use(loaded: Checkpoint, address: str) -> list[str]:
    head = next((name for name in loaded.entities.names if name.isprintable()), "NAME")
    relation = next((name for name in loaded.relations.names if name.isprintable()), "RELATION")
    ask = shlex.join(["imf", "predict", address, f"--head={head}", f"--relation={relation}"])
    where = "; `FOLDER` is the folder of this card" if address == "FOLDER" else ""
    return [
        f"With `imf-search` installed{where}. The files are safetensors and JSON: loading them runs no code.", "",
        "```", ask, "```", "", "```python", "from imf_core.predict import Predictor", "",
        f'for answer in Predictor.load("{address}").tails({head!r}, {relation!r}, k=5):',
        "    print(answer.entity, answer.score, answer.branch_scores)", "```", "",
    ]
