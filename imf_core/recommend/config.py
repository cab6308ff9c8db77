"""Frozen settings of the recommender (model section 7): interactions, MetaMMF, training. See `imf_core/config.py`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from imf_core.config import DataConfig
from imf_core.config_base import Section, Settings, Tunable
from imf_core.parts.sections import PartName, PartSection

Fusion = Literal["meta", "meta_cp", "mlp", "id"]
_META = {"model.fusion": ("meta", "meta_cp")}
_GCN = {"model.encoder": ("gcn",)}


class InteractionConfig(PartSection):
    """Where the interactions are, how they are split, and which features of the items are built."""

    path: str = Field("codepages", description="folder or file of interactions, or the name of a bundled data set (codepages)")
    min_rating: float | None = Field(None, description="interactions with a lower rating are left out; null: all count")
    label: str | None = Field(
        None, description="column in which 0 marks what is no interaction; null: every line is one"
    )
    split_seed: int = Field(0, ge=0, lt=2**31, description="which interactions of a user are held out, where no files say so")
    drop_cold: bool = Field(False, description="leave out items without any interaction; else they can be recommended")
    text: Literal["auto", "names", "descriptions", "none"] = Field(
        "auto", description="text of the items: descriptions.tsv if there (auto), their names, or none"
    )
    images: Literal["auto", "none"] = Field("auto", description="pictures of the items: the folder images/ if there (auto)")
    text_encoder: Annotated[str, PartName("text_encoder", open=True)] = Field(
        "ngrams", description="what reads texts, as for a graph"
    )
    image_encoder: Annotated[str, PartName("image_encoder", open=True)] = Field(
        "bitmap", description="what reads pictures, as for a graph"
    )
    text_width: int = Field(128, ge=2, le=4096, description="width of the character n-gram text features")
    image_width: int = Field(64, ge=2, le=4096, description="width of the bitmap image features")

    def absolute(self) -> InteractionConfig:
        """These settings unchanged: there are no explicit files, and `path` may name a bundled data set."""
        return self

    def views(self) -> DataConfig:
        """The `DataConfig` from which the items' text and image features are built."""
        shared = ("text", "images", "text_encoder", "image_encoder", "text_width", "image_width")
        return DataConfig(path=self.path, **{name: getattr(self, name) for name in shared}, **(self.__pydantic_extra__ or {}))


class RecommenderConfig(Section):
    """Shape and behaviour of the recommender."""

    encoder: Literal["mf", "gcn"] = Field("gcn", description="score of the vectors themselves (mf), or after two graph layers")
    fusion: Annotated[Fusion, Tunable(choices=("meta", "meta_cp", "mlp", "id"))] = Field(
        "meta",
        description="item features to vector: a layer of its own for each item (meta; meta_cp: low rank), the same "
        "layers for all (mlp), or no features (id)",
    )
    modalities: tuple[str, ...] | None = Field(None, description="feature modalities in use; null = all found")
    widths: tuple[int, ...] = Field(
        (1024, 512, 256, 32), min_length=1, max_length=8, description="widths of the fusion's layers"
    )
    id_width: int = Field(32, ge=1, le=1024, description="width of the items' own trained vectors beside the fused features")
    meta_dim: Annotated[int, Tunable(choices=(3, 5, 8), when=_META, default=False)] = Field(
        5, ge=1, le=64, description="S, width of the meta information"
    )
    meta_hidden: int = Field(64, ge=1, le=4096, description="hidden width of the network that makes the meta information")
    cp_rank: Annotated[int, Tunable(choices=(16, 32, 64), when={"model.fusion": ("meta_cp",)}, default=False)] = Field(
        32, ge=1, le=1024, description="Q, rank of the factorised dynamic weights (meta_cp)"
    )
    dropout_first: Annotated[float, Tunable(low=0.0, high=0.6, when=_GCN)] = Field(
        0.5, ge=0, lt=1, description="dropout after the first graph layer"
    )
    dropout_second: Annotated[float, Tunable(low=0.0, high=0.5, when=_GCN)] = Field(
        0.2, ge=0, lt=1, description="dropout after the second graph layer"
    )
    neighbours: int = Field(
        16, ge=1, description="neighbours that a node hears in a step where the graph is larger than full_edges"
    )
    full_edges: int = Field(4_000_000, ge=0, description="training interactions up to which a step hears all neighbours")

    @model_validator(mode="after")
    def _agree(self) -> RecommenderConfig:
        if min(self.widths) < 1 or max(self.widths) > 8192:
            raise ValueError("widths must lie between 1 and 8192")
        return self

    @property
    def width(self) -> int:
        """d, width of the vectors of users and items."""
        return self.widths[-1] + self.id_width


class RecommenderTrainConfig(Section):
    """One training run of the recommender."""

    lr: Annotated[float, Tunable(low=3e-4, high=1e-2, log=True)] = Field(1e-3, gt=0, le=1, description="learning rate of Adam")
    weight_decay: Annotated[float, Tunable(low=1e-7, high=1e-3, log=True)] = Field(1e-6, ge=0)
    batch_size: Annotated[int, Tunable(choices=(1000, 3000), default=False)] = Field(
        3000, ge=1, description="interactions a step, over all workers"
    )
    num_negatives: Annotated[int, Tunable(choices=(1, 5, 10), default=False)] = Field(
        5, ge=1, le=1024, description="items that the user has not, drawn anew for each interaction and step"
    )
    max_epochs: int = Field(100, ge=1, description="upper bound; early stopping usually ends before")
    patience: int = Field(10, ge=1, description="evaluations without a better validation MRR before stopping")
    eval_every: int = Field(1, ge=1, description="epochs between evaluations")
    seed: int = Field(0, ge=0, lt=2**31)
    memory_budget_mb: int | None = Field(
        None, ge=8, description="memory for the scores of an evaluation, MiB; null: an eighth of what is free, up to 1 GiB"
    )


class RecommendConfig(Settings):
    """Everything that determines one run of the recommender."""

    data: InteractionConfig = InteractionConfig()
    model: RecommenderConfig = RecommenderConfig()
    train: RecommenderTrainConfig = RecommenderTrainConfig()


def model_name(config: RecommenderConfig) -> str:
    """`MetaMMF_GCN`, `MetaMMF_MF`, or a control: `MLP_GCN`, `ID_MF`, ..."""
    kind: dict[Any, str] = {"meta": "MetaMMF", "meta_cp": "MetaMMF-CP", "mlp": "MLP", "id": "ID"}
    return f"{kind[config.fusion]}_{config.encoder.upper()}"
