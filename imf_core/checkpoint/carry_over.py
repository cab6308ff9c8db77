"""Carrying the weights of a checkpoint over to a graph whose entities and relations have changed: rows are matched by name, the
vectors of new entities are predicted from their features.

Shapes: `N` entities of the new graph, `K` of them known to the checkpoint, `n` new ones, `f` feature width, `d` vector width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from imf_core.checkpoint.checkpoint import Checkpoint
from imf_core.data.graph.graph import Vocabulary
from imf_core.errors import CheckpointError
from imf_core.model.imf import Imf
from imf_core.model.modality_table import ModalityTable
from imf_core.prepare.link_data import LinkData

_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the ridge regression, times the mean square of a feature
_HELD_BACK = 0.1  # share of the known entities that the penalty is chosen on
_SAME = 1e-3  # features with a smaller relative difference are the same
_SMALL_PENALTY = 1e-8  # for many more entities than features
_CHUNK = 2**14  # rows of features at a time


@dataclass(frozen=True)
class CarriedOver:
    """Counts of the rows that were carried over.

    Args:
        known, new, gone: entities in both graphs, only in the new one, only in the checkpoint.
        known_relations, new_relations, gone_relations: the counts of relations.
        described: new entities whose vectors are predicted from their features; the others start as the mean of the known ones.
        refitted: modalities whose features of the known entities differ from those that the checkpoint was trained on, with
            the share 0..1 of the variance of the checkpoint's vectors that the new features explain.
    """

    known: int
    new: int
    gone: int
    known_relations: int
    new_relations: int
    gone_relations: int
    described: int
    refitted: dict[str, float] = field(default_factory=dict)

    def describe(self) -> str:
        """One line; what did not change is left out."""
        parts = [f"{self.known:,} entities and {self.known_relations:,} relations keep their weights"]
        if self.new:
            plain = self.new - self.described
            parts.append(
                f"{self.new:,} new entities start from "
                + (f"their features ({self.described:,})" if self.described else "")
                + (" and " if self.described and plain else "")
                + (f"the mean of the known ones ({plain:,})" if plain else "")
            )
        if self.new_relations:
            parts.append(f"{self.new_relations:,} new relations start as the seed draws them")
        if self.gone or self.gone_relations:
            parts.append(f"{self.gone:,} entities and {self.gone_relations:,} relations are left behind")
        if self.refitted:
            shares = ", ".join(f"{name} ({100 * share:.0f} %)" for name, share in self.refitted.items())
            parts.append(f"changed features are mapped to the vectors of known entities as far as they explain them: {shares}")
        return "; ".join(parts)


@torch.no_grad()
def carry_over(model: Imf, start: Checkpoint, data: LinkData) -> CarriedOver:
    """Fill a newly initialised model of the new graph with a checkpoint's weights.

    Vectors and relation-wise decision weights are matched by name. The structure vector of a new entity, and its row of a
    trained feature table, are predicted by ridge regression from its features, fitted to the entities that the checkpoint
    knows; a tenth of them choose the penalty. Without features it is the mean vector. Frozen features come from the new graph.
    Some encoders' features depend on the whole graph (character n-grams do); if those of known entities have changed, their
    projection is fitted to the vectors that the checkpoint gave them. All other weights are copied.

    Args:
        model: from `build_model` with the checkpoint's model settings; changed in place.
        start: the checkpoint.
        data: the new graph, with the same modalities.

    Raises:
        CheckpointError: the graphs have no entity or no relation in common, or the modalities differ.
    """
    old = start.model
    if model.all_modalities != old.all_modalities:
        raise CheckpointError(
            f"{start.path} has the modalities {_listed(old.all_modalities)}, the graph {_listed(model.all_modalities)}",
            remedy="give the graph the same modalities, or choose them by model.modalities",
        )
    graph = data.graph
    entities, relations = _Match.of(start.entities, graph.entities), _Match.of(start.relations, graph.relations)
    if not len(entities.own) or not len(relations.own):
        kind = "entities" if not len(entities.own) else "relations"
        raise CheckpointError(
            f"{start.path} and the graph have no {kind} in common", remedy="train without --from: no weight would be kept"
        )
    _shared_weights(model, start)
    for name, table in model.relations.items():
        _rows_by_name(table, old.relations[name], relations.both_ways())
    if model.decision.logits is not None and old.decision.logits is not None and len(old.decision.logits) > 1:
        common = old.decision.logits.mean(dim=0)
        model.decision.logits.copy_(common.expand_as(model.decision.logits))  # for relations that are new
        _rows_by_name(model.decision.logits, old.decision.logits, relations.both_ways())
    views = [_View(item.name, item.standardised(), item.mask) for item in data.select(model.config.modalities)]
    for name, structure in model.structure_tables.items():
        _entity_rows(structure, old.structure_tables[name], entities, views)
    model.cold_entities = None  # every row is informed now
    described, refitted = np.zeros(len(graph.entities), dtype=bool), {}
    for view in views:
        described |= view.mask
        for branch, own in model.feature_tables.items():
            if model.of_branch[branch].view != view.name:
                continue
            other = old.feature_tables[branch]
            if own.table is not None and other.table is not None:
                _entity_rows(own.table, other.table, entities, [view])
            elif not own.frozen and (share := _projection(own, other, entities)) is not None:
                refitted[view.name] = share
    new = entities.new
    return CarriedOver(
        len(entities.own), len(new), len(start.entities) - len(entities.own), len(relations.own), len(relations.new),
        len(start.relations) - len(relations.own), int(described[new].sum()), refitted,
    )


@dataclass(frozen=True)
class _View:
    """Standardised features (N, f) of a modality, and a mask (N,) of the entities that have it."""

    name: str
    matrix: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class _Match:
    """Rows of two vocabularies with the same names.

    Args:
        own: (K,) int64 ids in the new vocabulary, ascending.
        other: (K,) int64 ids of the same names in the old one.
        sizes: of the new and the old vocabulary.
    """

    own: np.ndarray
    other: np.ndarray
    sizes: tuple[int, int]

    @classmethod
    def of(cls, old: Vocabulary, new: Vocabulary) -> _Match:
        pairs = [(number, old.index[name]) for number, name in enumerate(new.names) if name in old.index]
        own, other = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        return cls(own, other, (len(new), len(old)))

    @property
    def new(self) -> np.ndarray:
        """(n,) ids of the names that the old vocabulary lacks."""
        return np.setdiff1d(np.arange(self.sizes[0]), self.own)

    def both_ways(self) -> _Match:
        """The match of relations and their inverses, whose ids follow: K becomes 2K."""
        own, other = (
            np.concatenate([ids, ids + size]) for ids, size in zip((self.own, self.other), self.sizes, strict=True)
        )
        return _Match(own, other, (2 * self.sizes[0], 2 * self.sizes[1]))


def _rows_by_name(table: Tensor, old: Tensor, match: _Match) -> None:
    if table.shape[1:] == old.shape[1:]:
        table[torch.from_numpy(match.own)] = old[torch.from_numpy(match.other)].to(table)


def _shared_weights(model: Imf, start: Checkpoint) -> None:
    """Copy all tensors that have no row for each entity or relation."""
    own, other = model.trained_state(), start.model.trained_state()
    for name, tensor in own.items():
        by_rows = name == "structure" or name.endswith(".table") or name.startswith(("relations.", "head_structure."))
        if by_rows or ".projection." in name:
            continue
        if name == "decision.logits" and len(tensor) > 1:
            continue
        found = other.get(name)
        if found is None and name.endswith(".missing"):
            continue  # every entity had the modality; now some lack it, and their common vector stays as initialised
        if found is None or found.shape != tensor.shape:
            shape = "nothing" if found is None else tuple(found.shape)
            raise CheckpointError(
                f"{start.path}: {name} is {shape}, the model needs {tuple(tensor.shape)}",
                remedy="use the model settings that the checkpoint was trained with",
            )
        tensor.copy_(found)


def _projection(own: ModalityTable, old: ModalityTable, match: _Match) -> float | None:
    """Give a modality's frozen features the checkpoint's projection, or one that maps them to the same vectors.

    Features are centred and scaled over the entities of their graph, so the same raw features differ by a common factor and
    shift, which is undone.

    Args:
        own, old: the modality in the new model (changed in place) and in the checkpoint's.
        match: of the entities.

    Returns:
        None if the features are the same; else the share 0..1 of the known vectors' variance that the fitted projection
        explains.
    """
    assert own.projection is not None and old.projection is not None and own.features is not None and old.features is not None
    ids, others = torch.from_numpy(match.own), torch.from_numpy(match.other)
    both = own.mask[ids] & old.mask[others]
    ids, others = ids[both], others[both]
    if own.features.shape[1] == old.features.shape[1] and _rescaled(own, old, ids, others):
        own.projection.load_state_dict(old.projection.state_dict())
        return None
    if len(ids) < 2:
        return 0.0
    wanted = old.projection(old.features[others]).double()  # (K, d)
    centre, aim = own.features[ids].double().mean(dim=0), wanted.mean(dim=0)
    rows = own.features[ids].double() - centre
    normal = _Normal(rows.T @ rows, rows.T @ (wanted - aim))
    weights = normal.solve(_SMALL_PENALTY)  # (f, d)
    own.projection.weight.copy_(weights.T)
    own.projection.bias.copy_(aim - centre @ weights)
    left = (rows @ weights - (wanted - aim)).square().sum() / (wanted - aim).square().sum().clamp_min(1e-12)
    return float(1 - left)


def _rescaled(own: ModalityTable, old: ModalityTable, ids: Tensor, others: Tensor) -> bool:
    """Put the features of `own` on the checkpoint's scale; False, and nothing is changed, if they would still differ.

    Args:
        own, old: the modality in the new model and in the checkpoint's.
        ids, others: (K,) the same entities in both.
    """
    assert own.features is not None and old.features is not None
    if len(ids) < 2:
        return True
    mine, wanted = own.features[ids].double(), old.features[others].double()
    centre, aim = mine.mean(dim=0), wanted.mean(dim=0)
    factor = (wanted - aim).norm() / (mine - centre).norm().clamp_min(1e-12)
    if float(((mine - centre) * factor + aim - wanted).norm()) > _SAME * float(wanted.norm()):
        return False
    moved = (own.features.double() - centre) * factor + aim
    own.features = torch.where(own.mask[:, None], moved, 0.0).to(own.features)
    own.features[ids] = old.features[others]  # to the bit
    return True


def _entity_rows(table: Tensor, old: Tensor, match: _Match, views: Sequence[_View]) -> None:
    """Fill a table (N, d): rows of known entities by name from `old`, rows of new ones predicted from their features."""
    known = old[torch.from_numpy(match.other)]
    new = match.new
    if len(new):
        table[torch.from_numpy(new)] = _predicted(match.own, new, known.double(), views).to(table)
    _rows_by_name(table, old, match)


def _predicted(known: np.ndarray, new: np.ndarray, targets: Tensor, views: Sequence[_View]) -> Tensor:
    """Vectors of new entities by ridge regression on features; the mean of the known ones for those without any feature.

    Args:
        known: (K,) ids of known entities.
        new: (n,) ids of new entities.
        targets: (K, d) float64 vectors of the known ones.
        views: features of all N entities.

    Returns:
        (n, d) float64.
    """
    mean = targets.mean(dim=0)
    result = mean.expand(len(new), -1).clone()
    described = np.logical_or.reduce([view.mask for view in views]) if views else np.zeros(0, dtype=bool)
    if not views or not described[new].any() or not described[known].any():
        return result
    usable = np.flatnonzero(described[known])
    held_back = usable[np.random.default_rng(0).random(len(usable)) < _HELD_BACK]
    fitted = np.setdiff1d(usable, held_back)
    everything = _Normal.of(known[usable], targets[usable] - mean, views)
    penalty = _PENALTIES[-1]
    if len(held_back) and len(fitted):
        trial = everything.less(_Normal.of(known[held_back], targets[held_back] - mean, views))
        errors = {
            candidate: float(sum(
                ((_features(views, known[part]) @ weights - (targets[part] - mean)) ** 2).sum() for part in _parts(held_back)
            ))
            for candidate in _PENALTIES for weights in [trial.solve(candidate)]
        }
        penalty = min(errors, key=lambda candidate: errors[candidate])
    weights = everything.solve(penalty)  # (f, d)
    for part in _parts(np.flatnonzero(described[new])):
        result[part] = mean + _features(views, new[part]) @ weights
    return result


@dataclass(frozen=True)
class _Normal:
    """The normal equations of a ridge regression, summed over chunks of entities: gram (f, f) and moment (f, d)."""

    gram: Tensor
    moment: Tensor

    @classmethod
    def of(cls, entities: np.ndarray, targets: Tensor, views: Sequence[_View]) -> _Normal:
        width = sum(view.matrix.shape[1] + 1 for view in views)
        gram = torch.zeros(width, width, dtype=torch.float64)
        moment = torch.zeros(width, targets.shape[1], dtype=torch.float64)
        for part in _parts(np.arange(len(entities))):
            rows = _features(views, entities[part])
            gram += rows.T @ rows
            moment += rows.T @ targets[part]
        return cls(gram, moment)

    def less(self, other: _Normal) -> _Normal:
        return _Normal(self.gram - other.gram, self.moment - other.moment)

    def solve(self, penalty: float) -> Tensor:
        ridge = self.gram.diagonal().mean().clamp_min(1e-12) * penalty
        return torch.linalg.solve(self.gram + ridge * torch.eye(len(self.gram), dtype=torch.float64), self.moment)


def _features(views: Sequence[_View], entities: np.ndarray) -> Tensor:
    """(n,) ids -> (n, f) float64: the features of all modalities side by side, each followed by its mask."""
    parts = []
    for view in views:
        mask = view.mask[entities, None]
        parts += [np.where(mask, view.matrix[entities], 0.0), mask]
    return torch.from_numpy(np.concatenate([part.astype(np.float64) for part in parts], axis=1))


def _parts(positions: np.ndarray) -> list[np.ndarray]:
    return [positions[low : low + _CHUNK] for low in range(0, len(positions), _CHUNK)]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
