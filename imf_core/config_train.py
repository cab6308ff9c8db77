"""Frozen settings of a training run, each with the range in which it may be searched; see `config.py`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from imf_core.config_base import OWN, Tunable
from imf_core.parts.sections import PartName, PartSection

Precision = Literal["fp32", "tf32", "bf16", "auto"]


class TrainConfig(PartSection):
    """One training run (model section 4)."""

    loss: Annotated[str, PartName("loss"), Tunable(choices=("ce", "bce"), default=False)] = Field(
        "ce", description="1-N loss: softmax cross entropy (ce) or binary cross entropy (bce, as published)"
    )
    weighting: Annotated[Literal["triple", "query"], Tunable(choices=("triple", "query"), default=False)] = Field(
        "triple", description="ce: every training triple counts the same, or every distinct query"
    )
    label_smoothing: Annotated[float, Tunable(low=0.0, high=0.2)] = Field(
        0.1, ge=0, lt=1, description="label smoothing epsilon"
    )
    regularizer: Annotated[str, PartName("regularizer", also=("none",)), Tunable(
        choices=("none", "n3", "dura", "ivr"), default=False
    )] = Field(
        "none", description="penalty on the vectors of each training triple: cubed moduli (n3), squares of context and answer "
        "(dura), or cubed moduli of the context too (ivr)"
    )
    regularizer_weight: Annotated[float, Tunable(
        low=1e-3, high=0.3, log=True, when={"train.regularizer": ("n3", "dura", "ivr", OWN)}
    )] = Field(0.01, ge=0, le=100, description="weight of the penalty, a mean over the triples of a step")
    relation_weight: Annotated[float, Tunable(choices=(0.0, 0.05, 0.25, 1.0), default=False)] = Field(
        0.0, ge=0, le=1000, description="weight of a loss on each triple's relation, told from head and tail; 0: none"
    )
    optimizer: Annotated[Literal["adam", "adamw", "adagrad"], Tunable(choices=("adam", "adagrad"), brings={
        "adagrad": {"model.norm": "none", "model.init_scale": 1e-3, "train.regularizer": "n3", "model.fusion": "none"}
    })] = Field(
        "adam", description="adagrad: Adagrad for the entity and relation vectors, Adam for everything else"
    )
    table_lr: Annotated[float, Tunable(low=0.02, high=0.5, log=True, when={"train.optimizer": ("adagrad",)})] = Field(
        0.1, gt=0, le=10, description="adagrad: learning rate of the entity and relation vectors"
    )
    lr: Annotated[float, Tunable(low=1e-3, high=1.5e-2, log=True)] = Field(8e-3, gt=0, le=1, description="learning rate")
    lr_decay: Annotated[float, Tunable(low=0.9, high=1.0, default=False)] = Field(
        1.0, gt=0, le=1, description="factor on the learning rate after each epoch"
    )
    weight_decay: Annotated[float, Tunable(low=1e-8, high=1e-3, log=True, default=False)] = Field(0.0, ge=0)
    average: Annotated[float, Tunable(choices=(0.0, 0.99, 0.999), default=False)] = Field(
        0.0, ge=0, lt=1, description="decay per step of the moving average of the weights that is evaluated and kept; 0: the "
        "weights themselves"
    )
    average_share: Annotated[float, Tunable(choices=(0.0, 1 / 3), default=False)] = Field(
        0.0, ge=0, le=1, description="share of the steps so far, counted from the latest, over which the weights that are "
        "evaluated and kept are averaged; 0: no such average"
    )
    precision: Precision = Field(
        "tf32", description="what a training step multiplies in (evaluation: fp32): tf32 is TF32 on a GPU and fp32 on a CPU; "
        "auto is bf16 on a CPU that has it in hardware, else tf32"
    )
    compile: bool = Field(
        False, description="trace the training step with torch.compile, where a compiler is at hand; the first step then takes "
        "up to a minute"
    )
    batch_size: Annotated[int, Tunable(choices=(128, 256, 512))] = Field(
        256, ge=1, description="queries a step, over all workers"
    )
    num_negatives: int | None = Field(
        None, ge=1, description="candidates that a step scores besides the known answers and as many heads of its queries at "
        "most, drawn anew in each step; null or as many as there are entities: all (1-N)"
    )
    answers_per_query: Annotated[int | None, Tunable(choices=(None, 8), default=False)] = Field(
        None, ge=1, description="ce: known answers of a query that come together in a step at most; the others are candidates "
        "like any other then, as in 1vsAll, so that no step is about one query with thousands of answers; null: all"
    )
    relation_run: int | None = Field(
        None, ge=1, description="queries of a relation that come together, so that a step has few relations; 1: any order; "
        "null: so many that the relations' matrices cost no more than the scores"
    )
    distil_weight: float = Field(
        1.0, ge=0, le=1000, description="weight of a teacher's answers in the loss (imf train --distil)"
    )
    distil_temperature: float = Field(2.0, gt=0, le=100, description="how much a teacher's probabilities are evened out")
    distil_answers: Literal["all", "unknown", "distribution"] = Field(
        "all", description="a teacher's answers that are learned from: its strongest, those of them that no training triple "
        "knows, or what it gives to every entity (distribution), for which it is asked anew in each step"
    )
    distil_queries: int = Field(
        512, ge=2, description="distribution: queries that the teacher is asked in a step; half of them no training triple asks"
    )
    distil_terms: Literal["every", "combined", "branches"] = Field(
        "every", description="who learns a teacher's decision: every branch and the combination, the combination (combined), "
        "or the combination, and each branch what the teacher's branches of its view say (branches)"
    )
    self_mi_weight: Annotated[float, Tunable(low=1e-3, high=1.0, log=True, default=False)] = Field(
        0.0, ge=0, le=1000, description="weight of the mutual information between the fused vector and each view; 0: none"
    )
    self_mi_temperature: float = Field(0.2, gt=0, le=100, description="temperature of that loss")
    preference_weight: float = Field(
        1.0, ge=0, le=1000, description="weight of a teacher's preferences among hard negatives (imf train --preferences)"
    )
    modality_order: tuple[str, ...] = Field(
        (), max_length=16, description="imf train: modalities added one after another, each kept only if validation gains"
    )
    max_epochs: int = Field(30, ge=1, description="upper bound; early stopping usually ends before")
    patience: int = Field(5, ge=1, description="evaluations without a better validation MRR before stopping")
    eval_every: int = Field(1, ge=1, description="epochs between evaluations")
    seed: int = Field(0, ge=0, lt=2**31)
    memory_budget_mb: int | None = Field(
        None, ge=8, description="memory for the scores of a step or an evaluation, MiB; null: an eighth of what is free, up to "
        "1 GiB (8 GiB on a GPU); where it runs out it is halved"
    )

    def samples(self, num_entities: int) -> bool:
        """Whether a step scores a part of so many entities alone."""
        return self.num_negatives is not None and self.num_negatives < num_entities

    @model_validator(mode="after")
    def _agree(self) -> TrainConfig:
        if self.num_negatives is not None and self.loss not in ("ce", "bce"):
            raise ValueError(f"num_negatives goes with ce and bce alone: the loss {self.loss} sees all candidates")
        if self.answers_per_query is not None and (self.loss != "ce" or self.weighting != "triple"):
            raise ValueError("answers_per_query goes with the loss ce and the weighting triple alone: else its other answers "
                             "would be told to be wrong")
        if self.distil_answers == "distribution" and self.distil_terms == "branches":
            raise ValueError("distil_terms=branches learns from a teacher's strongest answers: distil_answers=all or unknown")
        if self.average and self.average_share:
            raise ValueError("average and average_share exclude each other: set one of them to 0")
        return self
