"""Weights of a checkpoint for a graph whose entities and relations have changed: rows go by name, new entities are given
what their features say.

Shapes: `N` entities of the new graph, `K` of them known to the checkpoint, `f` numbers that describe an entity, `d` width.
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

_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the ridge regression, times the mean square of a described number
_HELD_BACK = 0.1  # of the known entities: they choose the penalty
_SAME = 1e-3  # features that differ by less, relatively, are the same
_LITTLE = 1e-8  # penalty where many more vectors than numbers are known
_CHUNK = 2**14  # rows that are described at a time


@dataclass(frozen=True)
class CarriedOver:
    """What became of the rows of a checkpoint.

    Args:
        known, new, gone: entities in both graphs, in the new one alone, in the checkpoint alone.
        known_relations, new_relations, gone_relations: the same of relations.
        described: new entities whose vectors come from their features; the others start as the mean of the known ones.
        refitted: modalities whose features of the known entities are not those that the checkpoint was trained on, and how much
            of the vectors that it gave them the new features explain, 0..1.
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
    """Fill a fresh model of the new graph with a checkpoint's weights.

    Vectors and relation-wise decision weights are found by name. The structure vector of a new entity, and its row of a
    trained feature table, are predicted by ridge regression from its features to the vectors of the entities that the
    checkpoint knows; a tenth of these choose the penalty. Without features it is their mean. Frozen features are the new
    graph's own. Those of some encoders depend on the whole graph (character n-grams do); where they come out otherwise for
    known entities, their projection is fitted to the vectors that these had. All other weights are taken as they are.

    Args:
        model: from `build_model` with the checkpoint's model settings; changed in place.
        start: what is carried over.
        data: the new graph, with the same modalities.

    Raises:
        CheckpointError: nothing in common, or other modalities than the checkpoint's.
    """
    old = start.model
    if model.modality_names != old.modality_names:
        raise CheckpointError(
            f"{start.path} has the modalities {_listed(old.modality_names)}, the graph {_listed(model.modality_names)}",
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
    _entity_rows(model.structure, old.structure, entities, views)
    model.cold_entities = None  # every row says something now
    described, refitted = np.zeros(len(graph.entities), dtype=bool), {}
    for view in views:
        described |= view.mask
        own, other = model.features[view.name], old.features[view.name]
        assert isinstance(own, ModalityTable) and isinstance(other, ModalityTable)
        if own.table is not None and other.table is not None:
            _entity_rows(own.table, other.table, entities, [view])
        elif (share := _projection(own, other, entities)) is not None:
            refitted[view.name] = share
    new = entities.new
    return CarriedOver(
        len(entities.own), len(new), len(start.entities) - len(entities.own), len(relations.own), len(relations.new),
        len(start.relations) - len(relations.own), int(described[new].sum()), refitted,
    )


@dataclass(frozen=True)
class _View:
    """Standardised features (N, f) of a modality and who has it (N,)."""

    name: str
    matrix: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class _Match:
    """Which rows of two vocabularies belong together.

    Args:
        own: (K,) ids in the new vocabulary, ascending. other: (K,) ids of the same names in the old one.
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
        """Ids that the old vocabulary lacks."""
        return np.setdiff1d(np.arange(self.sizes[0]), self.own)

    def both_ways(self) -> _Match:
        """Of relations: the inverse ones, whose ids follow, too."""
        own, other = (
            np.concatenate([ids, ids + size]) for ids, size in zip((self.own, self.other), self.sizes, strict=True)
        )
        return _Match(own, other, (2 * self.sizes[0], 2 * self.sizes[1]))


def _rows_by_name(table: Tensor, old: Tensor, match: _Match) -> None:
    if table.shape[1:] == old.shape[1:]:
        table[torch.from_numpy(match.own)] = old[torch.from_numpy(match.other)].to(table)


def _shared_weights(model: Imf, start: Checkpoint) -> None:
    """Copy what belongs to no entity and no relation: all tensors but those with a row each."""
    own, other = model.trained_state(), start.model.trained_state()
    for name, tensor in own.items():
        if name == "structure" or name.endswith(".table") or ".projection." in name or name.startswith("relations."):
            continue
        if name == "decision.logits" and len(tensor) > 1:
            continue
        found = other.get(name)
        if found is None and name.endswith(".missing"):
            continue  # every entity had the modality; now some lack it, and their common vector starts as drawn
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

    Returns:
        None where the features are the same; else the share of the known vectors' variance that the fitted projection explains.
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
    wanted = old.projection(old.features[others]).double()
    centre, aim = own.features[ids].double().mean(dim=0), wanted.mean(dim=0)
    rows = own.features[ids].double() - centre
    normal = _Normal(rows.T @ rows, rows.T @ (wanted - aim))
    weights = normal.solve(_LITTLE)
    own.projection.weight.copy_(weights.T)
    own.projection.bias.copy_(aim - centre @ weights)
    left = (rows @ weights - (wanted - aim)).square().sum() / (wanted - aim).square().sum().clamp_min(1e-12)
    return float(1 - left)


def _rescaled(own: ModalityTable, old: ModalityTable, ids: Tensor, others: Tensor) -> bool:
    """Put the features on the checkpoint's scale; False, and nothing changed, where they then still differ."""
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
    """Rows of the known entities by name, of the new ones as their features predict."""
    known = old[torch.from_numpy(match.other)]
    new = match.new
    if len(new):
        made = _predicted(match.own, new, known.double(), views)
        table[torch.from_numpy(new)] = made.to(table)
    _rows_by_name(table, old, match)


def _predicted(known: np.ndarray, new: np.ndarray, targets: Tensor, views: Sequence[_View]) -> Tensor:
    """(n, d) vectors of the new entities; the mean of the known ones for those without any feature."""
    mean = targets.mean(dim=0)
    result = mean.expand(len(new), -1).clone()
    described = np.logical_or.reduce([view.mask for view in views]) if views else np.zeros(0, dtype=bool)
    if not views or not described[new].any() or not described[known].any():
        return result
    place = np.flatnonzero(described[known])
    tested = place[np.random.default_rng(0).random(len(place)) < _HELD_BACK]
    learned = np.setdiff1d(place, tested)
    everything = _Normal.of(known[place], targets[place] - mean, views)
    penalty = _PENALTIES[-1]
    if len(tested) and len(learned):
        trial = everything.less(_Normal.of(known[tested], targets[tested] - mean, views))
        errors = {
            candidate: float(sum(
                ((_described(views, known[part]) @ weights - (targets[part] - mean)) ** 2).sum() for part in _parts(tested)
            ))
            for candidate in _PENALTIES for weights in [trial.solve(candidate)]
        }
        penalty = min(errors, key=lambda candidate: errors[candidate])
    weights = everything.solve(penalty)
    wanted = np.flatnonzero(described[new])
    for part in _parts(wanted):
        result[part] = mean + _described(views, new[part]) @ weights
    return result


@dataclass(frozen=True)
class _Normal:
    """The normal equations of a ridge regression, summed up over chunks of entities: (f, f) and (f, d)."""

    gram: Tensor
    moment: Tensor

    @classmethod
    def of(cls, entities: np.ndarray, targets: Tensor, views: Sequence[_View]) -> _Normal:
        width = sum(view.matrix.shape[1] + 1 for view in views)
        gram = torch.zeros(width, width, dtype=torch.float64)
        moment = torch.zeros(width, targets.shape[1], dtype=torch.float64)
        for part in _parts(np.arange(len(entities))):
            rows = _described(views, entities[part])
            gram += rows.T @ rows
            moment += rows.T @ targets[part]
        return cls(gram, moment)

    def less(self, other: _Normal) -> _Normal:
        return _Normal(self.gram - other.gram, self.moment - other.moment)

    def solve(self, penalty: float) -> Tensor:
        ridge = self.gram.diagonal().mean().clamp_min(1e-12) * penalty
        return torch.linalg.solve(self.gram + ridge * torch.eye(len(self.gram), dtype=torch.float64), self.moment)


def _described(views: Sequence[_View], entities: np.ndarray) -> Tensor:
    """(n, f) float64: the features of the entities side by side, each modality followed by whether they have it."""
    parts = []
    for view in views:
        mask = view.mask[entities, None]
        parts += [np.where(mask, view.matrix[entities], 0.0), mask]
    return torch.from_numpy(np.concatenate([part.astype(np.float64) for part in parts], axis=1))


def _parts(places: np.ndarray) -> list[np.ndarray]:
    return [places[low : low + _CHUNK] for low in range(0, len(places), _CHUNK)]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
