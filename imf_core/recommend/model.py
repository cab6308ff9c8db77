"""MetaMMF (TOIS 2023, arXiv 2501.07110): a recommender that fuses an item's features with weights of the item's own.

    e_i = [MetaStack(f_i) ; id_i]        f_i: concatenated features of the item, id_i: a trained vector of its own
    MetaMMF_MF    scores e_u . e_i
    MetaMMF_GCN   first applies two GraphSAGE layers over the bipartite graph of the training interactions

The controls are the same model with static layers (`mlp`) or without features (`id`).

Shapes: `U` users, `I` items, `F` width of all features together, `d` vector width, `B` interactions of a step, `K` negatives of
each, `P` training interactions, `S` meta width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from imf_core.data.features.modality import Modality
from imf_core.model.dropout import Dropout
from imf_core.model.fusion.meta_layers import CpLayer, DynamicLayer, MetaStack, WeightedLayer
from imf_core.recommend.config import RecommenderConfig
from imf_core.recommend.sage import Neighbours, SageLayer


class ItemFeatures(nn.Module):
    """The frozen features of all items side by side; a trained vector replaces a missing modality.

    Args:
        modalities: of the I items, at least one.
    """

    def __init__(self, modalities: Sequence[Modality]) -> None:
        super().__init__()
        self.widths = tuple(modality.width for modality in modalities)
        self.register_buffer("table", torch.from_numpy(np.concatenate([item.standardised() for item in modalities], axis=1)))
        self.register_buffer("masks", torch.from_numpy(np.stack([item.mask for item in modalities], axis=1)))
        self.table: Tensor
        self.masks: Tensor
        # Zero is the mean of standardised features: an item without a modality starts as the mean item.
        self.missing = nn.ParameterDict({
            item.name: nn.Parameter(torch.zeros(item.width)) for item in modalities if not item.mask.all()
        })
        self.names = tuple(item.name for item in modalities)

    def forward(self) -> Tensor:
        """(I, F)."""
        if not self.missing:
            return self.table
        filler = [
            self.missing[name] if name in self.missing else self.table.new_zeros(width)
            for name, width in zip(self.names, self.widths, strict=True)
        ]
        lacking = torch.repeat_interleave(~self.masks, torch.tensor(self.widths, device=self.masks.device), dim=1)  # (I, F)
        return torch.where(lacking, torch.cat(filler), self.table)


class Recommender(nn.Module):
    """Scores of items for users. Built by `build_recommender`.

    Args:
        config: shape and behaviour.
        num_users, num_items: U and I.
        modalities: features of the items; ignored if `config.fusion` is `id`.
        train: (P, 2) int64, distinct user and item ids: the graph, and which users and items are not cold.
    """

    def __init__(
        self, config: RecommenderConfig, num_users: int, num_items: int, modalities: Sequence[Modality], train: np.ndarray
    ) -> None:
        super().__init__()
        self.config, self.num_users, self.num_items = config, num_users, num_items
        self.num_interactions = len(train)
        # Not saved: computed from the training interactions, which a checkpoint has anyway.
        self.register_buffer("seen_users", _seen(train[:, 0], num_users), persistent=False)
        self.register_buffer("seen_items", _seen(train[:, 1], num_items), persistent=False)
        self.seen_users: Tensor
        self.seen_items: Tensor
        fused = config.fusion != "id"
        self.features = ItemFeatures(modalities) if fused else None
        self.fuse = _stack(config, sum(self.features.widths)) if self.features is not None else None
        self.user_table = _table(num_users, config.width)
        self.item_table = _table(num_items, config.id_width if fused else config.width)

    @property
    def modality_names(self) -> tuple[str, ...]:
        """The feature modalities in use, in the order in which they are concatenated."""
        return self.features.names if self.features is not None else ()

    @property
    def num_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def trained_state(self) -> dict[str, Tensor]:
        """The tensors that training changes, by name: the state without frozen features."""
        trained = {name for name, _ in self.named_parameters()}
        return {name: tensor for name, tensor in self.state_dict().items() if name in trained}

    def item_vectors(self) -> Tensor:
        """(I, d) vectors before any graph layer. A cold item has no trained vector: only its features count."""
        own = torch.where(self.seen_items[:, None], self.item_table, torch.zeros((), device=self.item_table.device))
        if self.features is None or self.fuse is None:
            return own
        return torch.cat((self.fuse(self.features()), own), dim=1)

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Vectors of all users (U, d) and all items (I, d), in one pass over the graph.

        In evaluation mode a cold user gets the mean vector of the others.
        """
        users, items = self.encode(self.user_table, self.item_vectors())
        if not self.training and not bool(self.seen_users.all()):
            users = torch.where(self.seen_users[:, None], users, users[self.seen_users].mean(dim=0))
        return users, items

    def encode(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Initial vectors of users (U, d) and items (I, d) -> those whose dot product is the score."""
        raise NotImplementedError  # abstract

    def forward(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """BPR loss (Rendle et al., UAI 2009): mean -log sigmoid of the positive's score minus the negative's.

        Args:
            users: (B,) int64 ids.
            positives: (B,) int64, an item of each user.
            negatives: (B, K) int64, items that the user does not have.

        Returns:
            Scalar, nats.
        """
        user_vectors, item_vectors = self.vectors()
        asked = functional.embedding(users, user_vectors)  # (B, d)
        positive = (asked * functional.embedding(positives, item_vectors)).sum(dim=1, keepdim=True)  # (B, 1)
        negative = (asked[:, None] * functional.embedding(negatives, item_vectors)).sum(dim=2)  # (B, K)
        return functional.softplus(negative - positive).mean()


class MetaMMF_MF(Recommender):
    """Matrix factorisation: scores are dot products of the initial vectors."""

    def encode(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """See `Recommender.encode`; unchanged."""
        return users, items


class MetaMMF_GCN(Recommender):
    """Two GraphSAGE layers over the training graph; leaky ReLU and dropout after each.

    If the graph has more than `config.full_edges` interactions, a training step averages at most `config.neighbours` neighbours
    of a node, drawn in each layer and step. Evaluation always uses all.
    """

    def __init__(
        self, config: RecommenderConfig, num_users: int, num_items: int, modalities: Sequence[Modality], train: np.ndarray
    ) -> None:
        super().__init__(config, num_users, num_items, modalities, train)
        self.of_users, self.of_items = Neighbours(train, num_users), Neighbours(train[:, ::-1], num_items)
        self.layers = nn.ModuleList(SageLayer(config.width, config.width) for _ in range(2))
        self.drops = nn.ModuleList((Dropout(config.dropout_first), Dropout(config.dropout_second)))

    def encode(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """See `Recommender.encode`."""
        sampled = self.training and self.num_interactions > self.config.full_edges
        most = self.config.neighbours if sampled else None
        for layer, drop in zip(self.layers, self.drops, strict=True):
            averages = self.of_users(items, most), self.of_items(users, most)  # (U, d), (I, d)
            users, items = (
                drop(functional.leaky_relu(layer(nodes, means))) for nodes, means in zip((users, items), averages, strict=True)
            )
        return users, items


KINDS: dict[str, type[Recommender]] = {"mf": MetaMMF_MF, "gcn": MetaMMF_GCN}


def build_recommender(
    config: RecommenderConfig, num_users: int, num_items: int, modalities: Sequence[Modality], train: np.ndarray
) -> Recommender:
    """The model named by `config.encoder`; arguments as of `Recommender`."""
    return KINDS[config.encoder](config, num_users, num_items, modalities, train)


def _stack(config: RecommenderConfig, width: int) -> MetaStack:
    dims: dict[str, int] = {} if config.fusion == "mlp" else {"meta_dim": config.meta_dim, "meta_hidden": config.meta_hidden}

    def layer(width_in: int, width_out: int) -> WeightedLayer:
        if config.fusion == "meta":
            return DynamicLayer(width_in, width_out, config.meta_dim)
        if config.fusion == "meta_cp":
            return CpLayer(width_in, width_out, config.meta_dim, config.cp_rank)
        return WeightedLayer(width_in, width_out)

    stack = MetaStack((width, *config.widths), layer, **dims)
    for weighted in stack.layers:
        _shrink_dynamic_weights(weighted)
    return stack


def _shrink_dynamic_weights(layer: nn.Module) -> None:
    """Initialise the dynamic weights as small as the published code does, which draws T as a matrix (S, in * out).

    As large as the static ones, they would multiply the variance in each layer: after four or five layers the first scores
    would be hundreds of times those of the static control.
    """
    if not isinstance(layer, DynamicLayer | CpLayer):
        return
    width_in, width_out = layer.static.shape
    signal = len(layer.tensors if isinstance(layer, DynamicLayer) else layer.mix)
    std = (2 / (signal + width_in * width_out)) ** 0.5
    if isinstance(layer, DynamicLayer):
        nn.init.normal_(layer.tensors, std=std)
    else:  # the factors give each number of T the variance of the static weight, 2 / (in + out)
        with torch.no_grad():
            layer.mix.mul_(std / (2 / (width_in + width_out)) ** 0.5)


def _seen(ids: np.ndarray, count: int) -> Tensor:
    return torch.from_numpy(np.bincount(ids, minlength=count) > 0)


def _table(rows: int, width: int) -> nn.Parameter:
    return nn.Parameter(nn.init.xavier_normal_(torch.empty(rows, width)))
