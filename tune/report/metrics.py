"""The results of a study as metrics and as a few sentences, for a list of studies such as MLflow's."""

from __future__ import annotations

from imf_core.files.markdown import escaped
from tune.durations import duration
from tune.report.formatting import all_lines, mrr, plural, plus_minus, usable
from tune.report.result import StudyResult
from tune.study.records import count_states


def study_metrics(result: StudyResult) -> dict[str, float]:
    """All figures that exist, by name; names that belong together stand together when sorted. MRRs and gains are within -1..1.

    | name | what |
    | --- | --- |
    | `best_mrr` | best validation MRR of a trial, as in the trials' own runs |
    | `valid_mrr`, `valid_mrr_std` | validation MRR of the retrained winner over the seeds: mean and deviation |
    | `test_*`, `test_*_std` | test metrics of the retrained winner over the seeds: mean and deviation |
    | `*_mrr_all_lines` | MRR of all lines of a split that shares some with an earlier one; the other figures are of the rest |
    | `test_mrr_ensemble` | test MRR of the ensemble of the seeds |
    | `baseline_valid_mrr`, `baseline_test_mrr` | MRR of the baseline without training |
    | `gain_text`, ... | what a modality adds: validation MRR of the winner minus that of its settings without the modality |
    | `gain_over_control` | validation MRR of the winner minus that of the control, by default structure alone |
    | `trials`, `trials_completed`, ... | number of trials, of all and by state |
    | `seconds` | of all sessions |
    """
    validation, test = result.winner_validation(), result.test()
    compared = validation["mean"]
    values: dict[str, float | None] = {
        "best_mrr": result.winner.best_mrr if result.winner is not None else None,
        "best_mrr_all_lines": result.winner.metrics.get("mrr_all_lines") if result.winner is not None else None,
        "valid_mrr": compared, "valid_mrr_std": validation["std"],
        **{f"test_{name}": value["mean"] for name, value in test.items()},
        **{f"test_{name}_std": value["std"] for name, value in test.items()},
        "test_mrr_ensemble": result.test_pooled["mrr"] if result.test_pooled is not None else None,
        **{f"baseline_{split}_mrr": baseline.mrr for split, baseline in result.baseline.items()},
        **{f"gain_{name}": compared - value for name, value in result.without.items() if compared is not None},
        "trials": len(result.records), **{f"trials_{state}": count for state, count in count_states(result.records).items()},
        "seconds": result.wall_seconds,
    }
    if compared is not None and result.structure_only_mrr is not None:
        values["gain_over_control"] = compared - result.structure_only_mrr
    return {name: float(value) for name, value in values.items() if usable(value)}


def description(result: StudyResult) -> str:
    """What was searched, on what, and the result: two or three sentences of Markdown."""
    states = ", ".join(f"{number} {state}" for state, number in count_states(result.records).items() if number)
    size = f" ({result.audit.size})" if result.audit is not None else ""
    text = f"Search of {plural(len(result.records), 'trial')} ({states or 'none'}) in {duration(result.wall_seconds)} on "
    text += f"{result.data}{size}; task: {result.task}."
    if result.winner is None:
        return escaped(f"{text} No trial has a validation MRR.")
    text += f" Trial {result.winner.number} won with validation MRR {mrr(result.winner.best_mrr)}"
    if result.winner_seed_mrr:
        text += f"; retrained with {plural(len(result.winner_seed_mrr), 'seed')}: {plus_minus(result.winner_validation())}"
    if (test := result.test()["mrr"])["mean"] is not None:
        text += f". Test MRR {plus_minus(test)}{all_lines(result.test().get('mrr_all_lines', {}).get('mean'))}"
        if (baseline := result.baseline.get("test")) is not None:
            text += f"; without training ({result.kind.baseline_name}) {mrr(baseline.mrr)}"
    return escaped(f"{text}.")
