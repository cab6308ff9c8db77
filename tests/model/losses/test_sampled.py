"""The sampled losses: equal to the full ones when everything is sampled, to their estimator written out densely when not,
and unbiased over all samples there are."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import Tensor

from imf_core.model.decision import combine, present_weights
from imf_core.model.losses.binary import joint_binary_loss
from imf_core.model.losses.dense import binary_loss, binary_loss_of_probabilities, softmax_loss
from imf_core.model.losses.negatives import NegativeSample
from imf_core.model.losses.sampled import ScoreRows, joint_sampled_loss
from imf_core.model.losses.softmax import joint_softmax_loss
from imf_core.model.losses.target import JointTarget, Positives

ANSWERS = [[0], [1, 6], [2, 3, 4], [5], [0, 1, 2, 3, 4, 5, 6, 7, 8]]  # of 9 entities: the last query has no other
NUM = 9
LOSSES = ["ce", "bce"]


def dot_block(_: int, context: Tensor, rows: Tensor) -> Tensor:
    return context @ rows.T


def dot_pairs(_: int, context: Tensor, rows: Tensor) -> Tensor:
    return (context * rows).sum(dim=1)


def distance_block(branch: int, context: Tensor, rows: Tensor) -> Tensor:
    return 3.0 + branch - torch.cdist(context, rows, p=1.0)


def distance_pairs(branch: int, context: Tensor, rows: Tensor) -> Tensor:
    return 3.0 + branch - (context - rows).abs().sum(dim=1)


SCORERS: dict[str, tuple[ScoreRows, ScoreRows]] = {"dot": (dot_block, dot_pairs), "distance": (distance_block, distance_pairs)}


def answers_of(tails: list[list[int]]) -> Positives:
    counts = torch.tensor([len(each) for each in tails])
    rows = torch.arange(len(tails)).repeat_interleave(counts)
    return Positives(rows, torch.tensor([tail for each in tails for tail in each]), counts.double())


def case(branches: int = 3, missing: bool = False, tails: list[list[int]] | None = None, **wanted: object) -> tuple:
    """Contexts, tables of all 9 entities, and the target."""
    tails = ANSWERS if tails is None else tails
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    contexts = [normal(len(tails), 4).requires_grad_() for _ in range(branches)]
    tables = [normal(NUM, 4).requires_grad_() for _ in range(branches)]
    masks: list[Tensor | None] = [None] * branches
    weights = normal(len(tails), branches).softmax(dim=1)
    if missing and branches > 1:
        masks[1:] = [(torch.arange(NUM) + branch) % 3 != 0 for branch in range(1, branches)]
        heads = [None, *((torch.arange(len(tails)) + branch) % 3 != 1 for branch in range(1, branches))]
        weights = present_weights(weights, heads)
    settings = {"smoothing": 0.1, "per_triple": False, "joint_weight": 0.7, **wanted}
    return contexts, tables, JointTarget(answers_of(tails), weights=weights, masks=masks, **settings)


def full(contexts: list[Tensor], tables: list[Tensor], target: JointTarget, loss: str, score: ScoreRows) -> tuple:
    """The 1-N losses in their plain form."""
    scores = [score(branch, *both) for branch, both in enumerate(zip(contexts, tables, strict=True))]
    common = target.positives, target.smoothing
    if loss == "ce":
        parts = [softmax_loss(each, *common, None, target.per_triple) for each in scores]
        values = [each.log_softmax(dim=1) for each in scores]
    else:
        parts = [binary_loss(each, *common) for each in scores]
        values = [each.sigmoid() for each in scores]
    total = torch.stack(parts).sum()
    if len(scores) > 1 and target.joint_weight:
        decided = combine(values, target.weights, target.masks)
        last = softmax_loss(decided, *common, None, target.per_triple) if loss == "ce" else (
            binary_loss_of_probabilities(decided, *common))
        parts.append(last)
        total = total + target.joint_weight * last
    return total, torch.stack(parts).detach()


def estimated(contexts: list[Tensor], tables: list[Tensor], target: JointTarget, loss: str, factors: Tensor) -> tuple:
    """The estimator for dot products, written out on (B, N): `factors` are how many entities each one stands for."""
    positives, smoothing = target.positives, target.smoothing

    def log_norm(scores: Tensor) -> Tensor:
        return torch.logsumexp(scores + factors.log(), dim=1)

    def softmax(scores: Tensor) -> Tensor:
        expected = (1 - smoothing) * positives.mean(scores) + smoothing * (factors * scores).sum(dim=1) / NUM
        return ((log_norm(scores) - expected) * target.row_weights()).sum()

    def binary(log_yes: Tensor, log_no: Tensor) -> Tensor:
        labels = torch.zeros_like(factors)
        labels[positives.rows, positives.tails] = 1 - smoothing
        labels = labels + (1 / NUM if smoothing else 0.0)
        return -(factors * (labels * log_yes + (1 - labels) * log_no)).mean()

    scores = [context @ table.T for context, table in zip(contexts, tables, strict=True)]
    if loss == "ce":
        parts = [softmax(each) for each in scores]
        parts.append(softmax(combine([each - log_norm(each)[:, None] for each in scores], target.weights, target.masks)))
    else:
        parts = [binary(torch.nn.functional.logsigmoid(each), torch.nn.functional.logsigmoid(-each)) for each in scores]
        decided = combine([each.sigmoid() for each in scores], target.weights, target.masks)
        parts.append(binary(decided.log(), (1 - decided).log()))
    return torch.stack(parts[:-1]).sum() + target.joint_weight * parts[-1], torch.stack(parts).detach()


def dense_factors(positives: Positives, chosen: Tensor) -> Tensor:
    """(B, N): 1 for the answers, (N - |A|) / |K minus A| for the rest of the sample, 0 elsewhere."""
    answers = torch.zeros(len(positives.counts), NUM, dtype=torch.bool)
    answers[positives.rows, positives.tails] = True
    others = torch.zeros_like(answers)
    others[:, chosen] = True
    others &= ~answers
    worth = (NUM - answers.double().sum(dim=1)) / others.sum(dim=1).clamp_min(1)
    return answers.double() + others * worth[:, None]


def check_same(got: tuple, expected: tuple, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(got[0], expected[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-10, atol=1e-12)
    assert not got[1].requires_grad
    gradients = torch.autograd.grad(got[0], inputs, retain_graph=True)
    for first, second in zip(gradients, torch.autograd.grad(expected[0], inputs), strict=True):
        assert first.isfinite().all()
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("branches", [1, 3])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("per_triple", [False, True])
@pytest.mark.parametrize("joint", [0.0, 0.7])
def test_equals_the_full_loss_when_all_entities_are_sampled(
    scorer: str, loss: str, branches: int, missing: bool, smoothing: float, per_triple: bool, joint: float
) -> None:
    contexts, tables, target = case(branches, missing, smoothing=smoothing, per_triple=per_triple, joint_weight=joint)
    everyone = torch.randperm(NUM, generator=torch.Generator().manual_seed(7))
    got = joint_sampled_loss(contexts, tables, target, loss, everyone, NUM, *SCORERS[scorer])
    assert len(got[1]) == branches + (joint > 0 and branches > 1)
    references = [full(contexts, tables, target, loss, SCORERS[scorer][0])]
    if scorer == "dot":
        references.append((joint_softmax_loss if loss == "ce" else joint_binary_loss)(contexts, tables, target))
    for reference in references:
        check_same(got, reference, [*contexts, *tables])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("per_triple", [False, True])
@pytest.mark.parametrize("chosen", [[8, 0, 6, 2], [2, 3, 4], [3]])  # the last two: only answers of the third query
def test_equals_the_estimator_written_out(
    loss: str, missing: bool, smoothing: float, per_triple: bool, chosen: list[int]
) -> None:
    """The tables hold the touched entities alone, in any order."""
    tails = ANSWERS[:4]
    contexts, tables, target = case(3, missing, tails, smoothing=smoothing, per_triple=per_triple)
    touched = torch.tensor([6, 8, 3, 0, 2, 1, 4, 5])  # 7 is neither an answer nor sampled
    row_of = torch.full((NUM,), -1)
    row_of[touched] = torch.arange(len(touched))
    positives = target.positives
    local = replace(
        target, positives=Positives(positives.rows, row_of[positives.tails], positives.counts),
        masks=[None if mask is None else mask[touched] for mask in target.masks],
    )
    got = joint_sampled_loss(
        contexts, [table[touched] for table in tables], local, loss, row_of[torch.tensor(chosen)], NUM, dot_block, dot_pairs
    )
    factors = dense_factors(positives, torch.tensor(chosen))
    check_same(got, estimated(contexts, tables, target, loss, factors), [*contexts, *tables])


def test_partition_function_and_binary_loss_are_unbiased() -> None:
    """The mean over all 126 samples of 5 of the 9 entities is exact, not only near."""
    contexts, tables, target = case(3, True, ANSWERS[:4])
    scores = contexts[0] @ tables[0].T
    picked = scores[target.positives.rows, target.positives.tails]
    norms, totals, parts = [], [], []
    for chosen in map(torch.tensor, combinations(range(NUM), 5)):
        sample = NegativeSample.of(chosen, target.positives, NUM, NUM)
        norms.append(sample.log_norm(picked, scores[:, chosen]).exp())
        total, part = joint_sampled_loss(contexts, tables, target, "bce", chosen, NUM, dot_block, dot_pairs)
        totals.append(total)
        parts.append(part)
    assert torch.stack(norms).std(dim=0).min() > 0.01
    torch.testing.assert_close(torch.stack(norms).mean(dim=0), scores.exp().sum(dim=1), rtol=1e-12, atol=0.0)
    mean = torch.stack(totals).mean(), torch.stack(parts).mean(dim=0)
    check_same(mean, full(contexts, tables, target, "bce", dot_block), [*contexts, *tables])


def test_partition_function_of_many_entities_lies_around_the_exact_one() -> None:
    generator = torch.Generator().manual_seed(5)
    scores = torch.randn(4, 500, generator=generator, dtype=torch.float64)
    positives = answers_of([[0], [1, 2], list(range(10, 60)), list(range(300))])
    picked = scores[positives.rows, positives.tails]
    found = []
    for _ in range(2000):
        chosen = torch.randperm(500, generator=generator)[:50]
        found.append(NegativeSample.of(chosen, positives, 500, 500).log_norm(picked, scores[:, chosen]).exp())
    mean, spread = torch.stack(found).mean(dim=0), torch.stack(found).std(dim=0)
    assert ((mean - scores.exp().sum(dim=1)).abs() < 4 * spread / 2000**0.5).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_an_answer_in_the_sample_counts_once(loss: str) -> None:
    """What its column of the block holds has no effect, on the value or on a gradient."""
    contexts, tables, target = case(3, True, ANSWERS[:4])
    chosen = torch.tensor([0, 6, 3, 8])
    hidden = NegativeSample.of(chosen, target.positives, NUM, NUM).hidden
    assert hidden.nonzero().tolist() == [[0, 0], [1, 1], [2, 2]]
    seen: list[Tensor] = []

    def disturbed(branch: int, context: Tensor, rows: Tensor) -> Tensor:
        block = dot_block(branch, context, rows)
        block = block + 40.0 * hidden
        block.retain_grad()
        seen.append(block)
        return block

    got = joint_sampled_loss(contexts, tables, target, loss, chosen, NUM, disturbed, dot_pairs)
    got[0].backward(retain_graph=True)
    assert len(seen) == 3
    for block in seen:
        assert block.grad is not None
        assert (block.grad[hidden] == 0).all() and (block.grad[~hidden] != 0).all()
    plain = joint_sampled_loss(contexts, tables, target, loss, chosen, NUM, dot_block, dot_pairs)
    check_same(got, plain, [*contexts, *tables])


@pytest.mark.parametrize("loss", LOSSES)
def test_sample_of_nothing_but_answers(loss: str) -> None:
    """It has nothing to tell about the others: only the answers are counted, and every gradient is finite."""
    contexts, tables, target = case(3, True, [[1, 2, 3], [3, 2]])
    chosen = torch.tensor([3, 2])
    sample = NegativeSample.of(chosen, target.positives, NUM, NUM)
    assert sample.factors.tolist() == [0.0, 0.0]
    assert not sample.hidden.any()  # some versions of PyTorch have no gradient for a row of nothing but -inf
    scores = contexts[0] @ tables[0].T
    norm = sample.log_norm(scores[target.positives.rows, target.positives.tails], scores[:, chosen])
    torch.testing.assert_close(norm, torch.stack([scores[0, 1:4].logsumexp(0), scores[1, 2:4].logsumexp(0)]))
    total, parts = joint_sampled_loss(contexts, tables, target, loss, chosen, NUM, dot_block, dot_pairs)
    assert parts.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(total, [*contexts, *tables]))


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_by_finite_differences(loss: str, scorer: str) -> None:
    contexts, tables, target = case(2, True, ANSWERS[:3])

    def total(*inputs: Tensor) -> Tensor:
        return joint_sampled_loss(inputs[:2], inputs[2:], target, loss, torch.tensor([7, 6, 3, 8]), NUM, *SCORERS[scorer])[0]

    assert torch.autograd.gradcheck(total, (*contexts, *tables))


@pytest.mark.parametrize("loss", LOSSES)
def test_large_scores_in_single_precision(loss: str) -> None:
    """Neither the sums of `exp` nor the factors leave the range of fp32."""
    contexts, tables, target = case(3, True, ANSWERS[:4])
    chosen = torch.tensor([0, 6, 3, 8])
    far = [context.detach() * 200 for context in contexts]
    arguments = loss, chosen, 10**9, dot_block, dot_pairs
    _, exact = joint_sampled_loss(far, tables, target, *arguments)
    positives = replace(target.positives, counts=target.positives.counts.float())
    single = replace(target, weights=target.weights.float(), positives=positives)
    inputs = [tensor.detach().float().requires_grad_() for tensor in (*far, *tables)]
    total, parts = joint_sampled_loss(inputs[:3], inputs[3:], single, *arguments)
    assert parts.dtype == total.dtype == torch.float32
    torch.testing.assert_close(parts[:3], exact[:3].float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts[3], exact[3].float(), rtol=0.02, atol=1e-5)  # 1 - 1e-7 is rounded in fp32
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(total, inputs))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_frozen_table_takes_part_without_a_gradient(loss: str) -> None:
    """The rows of features that are compared as they are."""
    contexts, tables, target = case(3, True)
    inputs = [*contexts, tables[0], tables[2]]
    chosen = torch.tensor([7, 6, 3, 8])
    expected, _ = joint_sampled_loss(contexts, tables, target, loss, chosen, NUM, dot_block, dot_pairs)
    asked: list[tuple[int, bool]] = []

    def watched(branch: int, context: Tensor, rows: Tensor) -> Tensor:
        asked.append((branch, rows.requires_grad))
        return dot_block(branch, context, rows)

    frozen = [tables[0], tables[1].detach(), tables[2]]
    found, _ = joint_sampled_loss(contexts, frozen, target, loss, chosen, NUM, watched, dot_pairs)
    assert set(asked) == {(0, True), (1, False), (2, True)}
    assert found.item() == expected.item()
    for ours, theirs in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=0.0)
    with torch.no_grad():
        again, _ = joint_sampled_loss(contexts, tables, target, loss, chosen, NUM, dot_block, dot_pairs)
    assert again.item() == expected.item()
