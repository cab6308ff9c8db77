"""Frozen settings of data, structure, model and training (`config_train.py`), each with the range in which it may be searched.

A setting's default, its bounds and its search range are in one place, so that one line answers "what is it, which values are
allowed, and which does the search try". `tune/space/space.py` reads the `Tunable` marks; nothing here imports a search library.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from imf_core.config_base import OWN, Section, Settings, Share, Tunable
from imf_core.config_train import TrainConfig
from imf_core.errors import ConfigError
from imf_core.parts.sections import PartName, PartSection

MissingPolicy = Literal["learned", "mean", "neutral"]
Scoring = Annotated[str, PartName("scorer")]
DecisionMode = Literal["uniform", "fixed", "learned", "relation"]
_FUSIONS = ("tucker", "meta", "meta_cp", "concat", "gated")  # those that a search tries if its space names model.fusion
FusionKind = Annotated[str, PartName("fusion", also=("none",))]
STRUCTURE, FUSED = "structure", "fused"
SPLIT_FILES = ("train", "valid", "test")  # settings of the data that name a file


class DataConfig(PartSection):
    """Where the graph is, and which views of its entities are built."""

    path: str = Field("unicode", description="graph folder, or the name of a bundled data set (unicode)")
    train: str | None = Field(None, description="file of training triples, instead of the one in the folder")
    valid: str | None = Field(None, description="file of validation triples, instead of the one in the folder")
    test: str | None = Field(None, description="file of test triples, instead of the one in the folder")
    test_size: Share = Field(
        0.0, description="share of the triples, for example 10%, set aside from train as test where there is no test file"
    )
    unseen: Literal["keep", "drop"] = Field(
        "keep", description="valid and test triples with an entity or relation that train lacks: rank them, or leave them out"
    )
    text: Literal["auto", "names", "descriptions", "literals", "none"] = Field(
        "auto", description="text view: descriptions.tsv if there (auto), the entity names, the literals of N-Triples, or none"
    )
    images: Literal["auto", "none"] = Field("auto", description="image view: the folder images/ if there (auto), or none")
    text_encoder: Annotated[str, PartName("text_encoder", open=True)] = Field(
        "ngrams", description="what reads texts: ngrams, words (built in), minilm, or a transformers model by folder or name"
    )
    more_text_encoders: tuple[Annotated[str, PartName("text_encoder", open=True)], ...] = Field(
        (), max_length=16, description="further readers of the texts; each makes a modality that is called as the reader"
    )
    text_pooling: Literal["auto", "mean", "cls", "pooler"] = Field(
        "auto", description="one vector from a text model's tokens; auto: pooler for BERT, mean for sentence models"
    )
    image_encoder: Annotated[str, PartName("image_encoder", open=True)] = Field(
        "bitmap",
        description="what reads pictures: bitmap (built in), efficientnet-lite0, vgg16, timm:NAME, or a transformers model",
    )
    encoders: tuple[Annotated[str, PartName("encoder")], ...] = Field(
        (), max_length=16, description="further modalities, each made by an encoder of one's own that is called so"
    )
    text_width: int = Field(128, ge=2, le=4096, description="width of the character n-gram text features")
    image_width: int = Field(64, ge=2, le=4096, description="width of the bitmap image features")

    @model_validator(mode="before")
    @classmethod
    def _beside_train(cls, values: Any) -> Any:
        """If only a training file is given, use its folder: never another graph's validation triples or lists of names."""
        if isinstance(values, Mapping) and values.get("train") and "path" not in values:
            return {**values, "path": os.path.dirname(str(values["train"])) or "."}
        return values

    def elsewhere(self, path: str) -> DataConfig:
        """These settings for the graph in another folder, without the explicit files and with its own test split."""
        test_size = self.test_size if os.path.realpath(path) == os.path.realpath(self.path) else 0.0
        return self.model_copy(update={"path": path, "train": None, "valid": None, "test": None, "test_size": test_size})

    def absolute(self) -> DataConfig:
        """These settings with absolute paths of the explicit files."""
        given = {name: os.path.abspath(os.path.expanduser(file)) for name in SPLIT_FILES if (file := getattr(self, name))}
        return self.model_copy(update=given)


class HeadConfig(Section):
    """A further branch of the model: a view scored in another way, with vectors of its own. Null: as in `ModelConfig`."""

    view: str = Field(description="structure, or a modality")
    scoring: Scoring = Field(description="relation model")
    dim: int | None = Field(None, ge=2, le=4096)
    relation_dim: int | None = Field(None, ge=1, le=4096)
    block_size: int | None = Field(None, ge=1, le=256)
    norm: Literal["batch", "none"] | None = None
    init_scale: float | None = Field(None, ge=0, le=10)
    dropout_input: float | None = Field(None, ge=0, lt=1)
    dropout_relation: float | None = Field(None, ge=0, lt=1)
    dropout_context: float | None = Field(None, ge=0, lt=1)
    parts: int | None = Field(None, ge=1, le=16)
    penalty: float = Field(1.0, ge=0, le=1000, description="factor on train.regularizer_weight")
    optimizer: Literal["adam", "adagrad"] | None = Field(None, description="of its vectors; null: as train.optimizer")
    only: bool = Field(False, description="the view has no other branch, and is neither fused nor contrasted")

    @property
    def branch(self) -> str:
        """Name of the branch."""
        return f"{self.view}_{self.scoring}"


class ModelConfig(PartSection):
    """Shape and behaviour of `Imf` (model sections 2 to 5)."""

    modalities: tuple[str, ...] | None = Field(
        None, description="feature modalities in use; null = all found, [] = structure only"
    )
    dim: Annotated[int, Tunable(choices=(64, 96, 128))] = Field(
        128, ge=2, le=4096, description="entity dimension d (embedding, or hidden, size)"
    )
    relation_dim: Annotated[int, Tunable(choices=(32, 64, 96), when={"model.scoring": ("contextual",)})] = Field(
        64, ge=1, le=4096, description="relation dimension r of the contextual model; the other scorers use d"
    )
    fusion: Annotated[FusionKind, Tunable(choices=_FUSIONS, default=False)] = Field(
        "tucker", description="how the views of an entity, or of a relation, become one: low-rank bilinear (tucker), layers "
        "with weights of each entity's own (meta), the same factored (meta_cp), the same for all (concat), gates (gated), "
        "pools of several widths (multiscale), attention between the views (cross_attention), learned queries (hub), or "
        "adapters (modular); none: no fused branch"
    )
    fusion_rank: Annotated[int, Tunable(low=1, high=4, when={"model.fusion": ("tucker",)})] = Field(
        2, ge=1, le=64, description="tucker: rank k of the factorised core"
    )
    fusion_widths: Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Tunable(
        choices=((), (128,), (256, 128)), when={"model.fusion": ("concat", "meta", "meta_cp")}
    )] = Field((128,), max_length=8, description="concat, meta, meta_cp: widths of the hidden layers; [] = a single layer")
    meta_dim: Annotated[int, Tunable(low=2, high=8, when={"model.fusion": ("meta", "meta_cp")})] = Field(
        5, ge=1, le=64, description="meta, meta_cp: width S of the meta information"
    )
    meta_hidden: Annotated[int, Tunable(
        choices=(32, 64, 128), when={"model.fusion": ("meta", "meta_cp")}, default=False
    )] = Field(
        64, ge=1, le=4096, description="meta, meta_cp: width of the hidden layer that makes the meta information"
    )
    cp_rank: Annotated[int, Tunable(low=4, high=64, log=True, when={"model.fusion": ("meta_cp",)})] = Field(
        16, ge=1, le=1024, description="meta_cp: rank Q of the factored meta learner"
    )
    multiscale_pools: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        (1, 2, 4), min_length=1, max_length=8, description="multiscale: coordinates averaged into one, scale by scale"
    )
    attention_layers: int = Field(2, ge=1, le=8, description="cross_attention: number of layers")
    attention_heads: int = Field(4, ge=1, le=64, description="cross_attention: heads of each attention")
    hub_queries: int = Field(4, ge=1, le=64, description="hub: number of learned queries")
    hub_context: Annotated[int, Tunable(low=0, high=8, when={"model.fusion": ("hub",)}, default=False)] = Field(
        4, ge=0, le=64, description="hub: known facts of an entity that its queries see and are guided by; 0: none"
    )
    adapter_width: Annotated[int, Tunable(low=4, high=64, when={"model.fusion": ("modular",)}, default=False)] = Field(
        16, ge=1, le=4096, description="modular: width of each view's adapter"
    )
    scoring: Annotated[Scoring, Tunable(choices=("contextual", "complex"))] = Field(
        "contextual", description="relation model of each branch: the paper's (contextual), its block-term form (block), or a "
        "plainer one"
    )
    block_size: Annotated[int, Tunable(choices=(4, 8, 16), when={"model.scoring": ("block",)}, default=False)] = Field(
        8, ge=1, le=256, description="block: width P of the blocks that share a P x P x P core; it divides dim"
    )
    parts: int = Field(
        1, ge=1, le=16, description="similarity: equal parts of the vectors, each compared with each; 3 for features by words"
    )
    norm: Annotated[Literal["batch", "none"], Tunable(choices=("batch", "none"), default=False)] = Field(
        "batch", description="normalisation of heads and contexts in the relation models; transe has none"
    )
    init_scale: Annotated[float, Tunable(choices=(0.0, 1e-3, 1e-2), default=False)] = Field(
        0.0, ge=0, le=10, description="standard deviation of the first entity and relation vectors; 0: Xavier's"
    )
    heads: tuple[HeadConfig, ...] = Field(
        (), max_length=16, description="further branches: a view scored by another relation model, with vectors of its own, "
        "for example [{view: structure, scoring: complex}]"
    )
    second_scoring: Annotated[
        str, PartName("scorer", also=("none",)), Tunable(choices=("none", "contextual", "complex"))
    ] = Field("none", description="a second relation model of structure: a branch with vectors, norm and dropout of its own")
    decision: Annotated[DecisionMode, Tunable(choices=("learned", "relation", "uniform", "fixed"))] = Field(
        "learned", description="how the branches' predictions are weighted"
    )
    decision_weights: dict[str, float] | None = Field(
        None, description="decision: fixed; weight of each branch, normalised to sum 1"
    )
    missing: Annotated[MissingPolicy, Tunable(choices=("learned", "mean", "neutral"), default=False)] = Field(
        "learned", description="what stands in for a modality that an entity lacks"
    )
    finetune_features: Annotated[bool, Tunable(choices=(True, False), default=False)] = Field(
        False, description="train the projected feature table itself, as the published code does"
    )
    dropout_input: Annotated[float, Tunable(low=0.0, high=0.4)] = Field(
        0.1, ge=0, lt=1, description="dropout of the head vector"
    )
    dropout_relation: Annotated[float, Tunable(low=0.0, high=0.5, default=False)] = Field(
        0.1, ge=0, lt=1, description="dropout of the relation's matrix"
    )
    dropout_context: Annotated[float, Tunable(low=0.0, high=0.5)] = Field(
        0.3, ge=0, lt=1, description="dropout of the context vector"
    )
    dropout_fusion: Annotated[float, Tunable(low=0.0, high=0.4, when={
        "model.fusion": (*_FUSIONS, "multiscale", "cross_attention", "hub", "modular", OWN)
    })] = Field(0.1, ge=0, lt=1, description="dropout before fusion")
    contrastive_weight: Annotated[float, Tunable(low=1e-3, high=1.0, log=True)] = Field(
        0.01, ge=0, description="weight of the contrastive constraint; 0 switches it off"
    )
    temperature: Annotated[float, Tunable(low=0.05, high=1.0, log=True)] = Field(
        0.2, gt=0, le=100, description="temperature tau of the contrastive constraint"
    )
    joint_weight: Annotated[float, Tunable(low=0.1, high=2.0, log=True, default=False)] = Field(
        1.0, ge=0, description="weight of the loss on the fused decision"
    )

    def of_head(self, head: HeadConfig) -> ModelConfig:
        """These settings for a further branch alone."""
        own = {name: value for name in type(self).model_fields if (value := getattr(head, name, None)) is not None}
        return ModelConfig.model_validate({**self.model_dump(), **own, "heads": (), "second_scoring": "none"})

    @property
    def all_heads(self) -> tuple[HeadConfig, ...]:
        """The further branches: `heads`, and that of `second_scoring`, whose recipe goes with any first one."""
        if self.second_scoring == "none":
            return self.heads
        return (*self.heads, HeadConfig(
            view=STRUCTURE, scoring=self.second_scoring, norm="batch", init_scale=0.0, dropout_input=0.2, dropout_relation=0.1,
            dropout_context=0.4 if self.second_scoring == "contextual" else 0.0, penalty=0.0, optimizer="adam",
        ))

    @property
    def heads_only(self) -> frozenset[str]:
        """The modalities that nothing but heads score."""
        return frozenset(head.view for head in self.heads if head.only)

    @model_validator(mode="after")
    def _agree(self) -> ModelConfig:
        names = [head.branch for head in self.all_heads]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"heads has {twice[0]} twice; a view and a relation model make one head")
        for head in self.all_heads:
            if head.view == FUSED:
                raise ValueError("a head scores structure or a modality, not fused")
            if head.only and head.view == STRUCTURE:
                raise ValueError("heads: structure always has a branch of its own; only is for a modality")
            self.of_head(head)  # its numbers agree with each other too
        weights = list(self.decision_weights.values()) if self.decision_weights is not None else [1.0]
        if self.decision == "fixed" and (min(weights, default=0.0) < 0 or sum(weights) <= 0):
            raise ValueError("decision_weights must be >= 0 with a positive sum")
        if self.scoring == "complex" and self.dim % 2:
            raise ValueError(f"scoring: complex needs an even dim, found {self.dim}")
        if self.scoring == "block" and self.dim % self.block_size:
            raise ValueError(f"scoring: block needs a dim that block_size {self.block_size} divides, found {self.dim}")
        return self


class StructureConfig(Section):
    """Initial values of the structure branch (model section 1). The table is computed once; all trials share it."""

    init: Literal["random", "gat", "file"] = Field(
        "random", description="random, graph attention trained on the training triples (gat), or a table of one's own (file)"
    )
    file: str | None = Field(None, description="init: file; .safetensors, or .npy beside .names.txt, aligned by entity name")
    width: int = Field(128, ge=2, le=4096, description="width of the attention's vectors; adapted to model.dim")
    heads: int = Field(2, ge=1, le=64, description="attention heads of the first layer; they share the width")
    epochs: int = Field(100, ge=1, description="passes over the training triples")
    lr: float = Field(5e-3, gt=0, le=1, description="learning rate")
    margin: float = Field(1.0, gt=0, description="margin between a triple's L1 distance and its corruption's")
    batch_size: int = Field(2048, ge=1, description="training triples a step")
    negatives: int = Field(2, ge=1, le=1024, description="corrupted triples for each training triple")
    neighbours: int = Field(16, ge=1, description="neighbours that an entity looks at in a step; bounds the memory")
    dropout: float = Field(0.3, ge=0, lt=1, description="dropout of attention weights and of the first layer's output")
    seed: int = Field(0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _agree(self) -> StructureConfig:
        if (self.init == "file") != (self.file is not None):
            raise ValueError("init: file and the path of the file belong together")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads")
        return self


class Config(Settings):
    """Everything that determines one run."""

    data: DataConfig = DataConfig()
    structure: StructureConfig = StructureConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()

    def _left_open(self, flat: Mapping[str, Any]) -> tuple[str, ...]:
        """The folder follows the training file."""
        unchosen = self.data.train is None and self.data.path == DataConfig().path
        return ("data.path",) if flat.get("data.train") and "data.path" not in flat and unchosen else ()


def published() -> Config:
    """The published code's behaviour (section 8): bce, plain mean of sigmoids, no joint and no contrastive loss."""
    return Config(
        model=ModelConfig(
            dim=256,
            relation_dim=256,
            fusion_rank=2,
            decision="uniform",
            finetune_features=True,
            contrastive_weight=0.0,
            joint_weight=0.0,
            dropout_input=0.3,
            dropout_relation=0.4,
            dropout_context=0.5,
            dropout_fusion=0.2,
        ),
        train=TrainConfig(
            loss="bce",
            weighting="query",
            label_smoothing=0.1,
            lr=5e-4,
            batch_size=256,
            max_epochs=1000,
            eval_every=10,
            patience=10,
        ),
    )


PRESETS = {"paper": Config, "published": published}


def preset(name: str) -> Config:
    """`paper` (default behaviour) or `published`."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}", remedy=f"choose one of {', '.join(PRESETS)}", key="preset", value=name)
    return PRESETS[name]()
