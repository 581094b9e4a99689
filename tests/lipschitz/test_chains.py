"""Dense chains bounded together: against all patterns of a ReLU, closed forms, and multipliers from anywhere."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparring import networks
from sparring.lipschitz.chains import Blocks, chain_bound
from sparring.lipschitz.masked import MaskedChain
from sparring.lipschitz.network import layer_bounds


def norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix.double(), 2))


def over_all_patterns(weights: Sequence[Tensor]) -> float:
    """The largest |W_l D_{l-1} ... D_1 W_1| over diagonal D of zeros and ones: at least the network's constant."""
    first, *others = [weight.double() for weight in weights]
    products = first[None]
    for weight in others:
        patterns = torch.tensor([*itertools.product((0.0, 1.0), repeat=weight.shape[1])], dtype=torch.float64)
        products = (weight @ (patterns[:, None, :, None] * products[None])).flatten(0, 1)
    return float(torch.linalg.matrix_norm(products, 2).max())


def random_weights(seed: int, sizes: Sequence[int]) -> list[Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(n, m, generator=draws) for m, n in itertools.pairwise(sizes)]


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), sizes=st.lists(st.integers(1, 5), min_size=3, max_size=4))
def test_between_all_patterns_and_the_product(seed: int, sizes: list[int]) -> None:
    weights = random_weights(seed, sizes)
    found, closed = chain_bound(weights), chain_bound(weights, improve=False)
    product = math.prod(norm(weight) for weight in weights)
    assert over_all_patterns(weights) * (1 - 1e-12) <= found <= closed * (1 + 1e-6)
    assert closed <= product * (1 + 2e-6)


def test_how_close_it_comes() -> None:
    """What is left between the bound and all patterns, and what multipliers gain over the closed form."""
    ratios, gains = [], []
    for seed in range(9):
        weights = random_weights(seed, (4, 6, 6, 3))
        found = chain_bound(weights)
        ratios.append(found / over_all_patterns(weights))
        gains.append(chain_bound(weights, improve=False) / found)
    assert max(ratios) < 1.1
    assert sorted(ratios)[4] < 1.02
    assert sorted(gains)[4] > 1.2


def test_exact_where_the_truth_is_known() -> None:
    """Weights that are not negative: every unit may be active at once, and then the network is linear."""
    for sizes in ((7, 5, 4), (3, 8, 2), (4, 6, 5, 3)):
        weights = [weight.abs() for weight in random_weights(1, sizes)]
        product = weights[0].double()
        for weight in weights[1:]:
            product = weight.double() @ product
        assert norm(product) * (1 - 1e-13) <= chain_bound(weights) <= norm(product) * (1 + 1e-4)
    one = [torch.tensor([[3.0]]), torch.tensor([[-2.0]])]
    assert 6 <= chain_bound(one) <= 6 * (1 + 1e-6)


@given(
    seed=st.integers(0, 1000),
    sizes=st.lists(st.integers(1, 4), min_size=3, max_size=4),
    share=st.sampled_from([0.5, 0.999999, 1 - 1e-11, 1.0, 1.000001, 1.5]),
)
def test_no_multipliers_prove_less_than_the_truth(seed: int, sizes: list[int], share: float) -> None:
    """The proof does not rely on where multipliers are from: with any of them, what is proven is true."""
    weights = [weight.double() for weight in random_weights(seed, sizes)]
    truth = over_all_patterns(weights)
    draws = torch.Generator().manual_seed(seed)
    tried = [torch.randn(n, generator=draws, dtype=torch.float64).exp() / 4 for n in sizes[1:-1]]
    proven = Blocks(weights, tried, [1.0] * len(tried), [0.0] * len(weights)).positive(share * truth)
    assert not proven or share >= 1


def test_proof_succeeds_from_the_bound_on_and_fails_below_it() -> None:
    weights = [weight.double() for weight in random_weights(3, (2, 3, 2))]
    multipliers = [torch.full((3,), 1 / norm(weights[0]) ** 2, dtype=torch.float64)]
    blocks = Blocks(weights, multipliers, [1.0], [0.0, 0.0])
    product = norm(weights[0]) * norm(weights[1])
    assert blocks.positive(product * (1 + 1e-7))
    assert not blocks.positive(over_all_patterns(weights) * 0.999)


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), sizes=st.lists(st.integers(1, 5), min_size=3, max_size=4))
def test_without_some_units(seed: int, sizes: list[int]) -> None:
    """Of the chain without them, for several choices at once: at least all patterns, at most the whole chain's."""
    weights = [weight.double() for weight in random_weights(seed, sizes)]
    draws = torch.Generator().manual_seed(seed)
    masks = [torch.randint(2, (6, n), generator=draws).double() for n in sizes[1:]]
    found = MaskedChain(weights).bounds(masks[:-1], masks[-1])
    for i in range(6):
        left = [w * masks[k][i][:, None] for k, w in enumerate(weights)]
        assert over_all_patterns(left) * (1 - 1e-12) <= float(found[i])
    everything = MaskedChain(weights).bounds([mask * 0 + 1 for mask in masks[:-1]], masks[-1] * 0 + 1)
    assert bool((found <= everything * (1 + 1e-5)).all())
    assert float(everything[0]) == pytest.approx(chain_bound(weights), rel=1e-4)


def test_slopes_scale_the_bound() -> None:
    weights = random_weights(5, (5, 6, 4, 3))
    whole = chain_bound(weights)
    assert chain_bound(weights, [0.25, 1.0]) == pytest.approx(whole / 4, rel=1e-3)
    assert chain_bound(weights, [1.0, 1.758]) == pytest.approx(whole * 1.758, rel=1e-3)
    assert chain_bound(weights, [1.0, 0.0]) == 0


@pytest.mark.parametrize("exponent", [-140, -30, 30, 120])
def test_any_scale(exponent: int) -> None:
    weights = random_weights(6, (3, 4, 2))
    scaled = [weights[0].double() * 2.0**exponent, weights[1]]
    assert chain_bound(scaled) == pytest.approx(chain_bound(weights) * 2.0**exponent, rel=1e-12)
    assert chain_bound([weights[0] * 0, weights[1]]) == 0
    assert chain_bound([weights[0], weights[1] / 0]) == math.inf
    denormal = [torch.tensor([[1e-45, 0.0]]), torch.tensor([[1.0], [2.0]])]
    assert norm(denormal[1]) * float(denormal[0][0, 0]) <= chain_bound(denormal) <= 2.24 * 1.5e-45


@given(seed=st.integers(0, 300))
def test_entries_that_are_not_quite_known(seed: int) -> None:
    """A bound with an error is one for every matrix within it."""
    weights = [weight.double() for weight in random_weights(seed, (4, 3, 3))]
    signs = [torch.randn(w.shape, generator=torch.Generator().manual_seed(seed)).sign().double() for w in weights]
    moved = [weight * (1 + 1e-4 * sign) for weight, sign in zip(weights, signs, strict=True)]
    assert chain_bound(weights, error=[1e-4, 1e-4], improve=False) >= over_all_patterns(moved) * (1 - 1e-12)


def test_in_a_network_chains_are_found() -> None:
    """Between dense layers rising activations and reshapes may stand; what else reads a layer ends the chain."""
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(8, 6), torch.nn.Sigmoid(), torch.nn.Unflatten(1, (2, 3)),
        torch.nn.Flatten(),
        torch.nn.Linear(6, 5), torch.nn.LeakyReLU(0.1), torch.nn.Dropout(0.5), torch.nn.Linear(5, 4), torch.nn.GELU(),
        torch.nn.Linear(4, 3), torch.nn.Softmax(1),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    report = layer_bounds(model, (2, 4))
    weights = [model[i].weight.detach() for i in (1, 5, 8)]
    chain = chain_bound(weights, [0.25, 1.0])
    gelu = 1.1289041451851547
    assert report.upper == pytest.approx(chain * gelu * norm(model[10].weight.detach()) / 2, rel=1e-5)
    assert report.upper < 0.95 * report.product
    assert report.method == "LipSDP of 1 to 8"
    assert report.head is None  # a softmax follows
    assert layer_bounds(model, (2, 4), chains=False).upper == report.product


def test_features_are_bounded_with_their_own_chain() -> None:
    model = networks.mlp((6, 8, 8, 4))
    report = layer_bounds(model, (6,))
    weights = [model[i].weight.detach() for i in (1, 3, 5)]
    assert report.features == pytest.approx(chain_bound(weights[:2]), rel=1e-4)
    assert report.upper == pytest.approx(chain_bound(weights), rel=1e-4)
    assert report.features < norm(weights[0]) * norm(weights[1])


def test_batch_normalisation_within_a_chain() -> None:
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.ReLU(), torch.nn.Linear(5, 3)
    ).eval()
    with torch.no_grad():
        model[1].running_var.copy_(torch.tensor([0.1, 1.0, 2.0, 0.3, 4.0]))
    scale = (model[1].running_var.double() + 1e-5).rsqrt()
    weights = [scale[:, None] * model[0].weight.detach().double(), model[3].weight.detach()]
    assert layer_bounds(model, (6,)).upper == pytest.approx(chain_bound(weights), rel=1e-6)
    assert "LipSDP" in layer_bounds(model, (6,)).method


def test_bad_arguments_are_named() -> None:
    one, two = torch.ones(3, 2), torch.ones(2, 3)
    with pytest.raises(ValueError, match="at least two matrices"):
        chain_bound([one])
    with pytest.raises(ValueError, match="do not follow each other"):
        chain_bound([one, one])
    with pytest.raises(ValueError, match="slopes must be 1 numbers"):
        chain_bound([one, two], [1.0, 1.0])
    with pytest.raises(ValueError, match="slopes is -1"):
        chain_bound([one, two], [-1.0])
    with pytest.raises(ValueError, match="error must be 2 small numbers"):
        chain_bound([one, two], error=[0.5, 0.0])


@pytest.mark.parametrize("exponent", [-1000, -530, -60, 60, 530, 1000])
def test_slopes_at_any_scale(exponent: int) -> None:
    """A slope of [0, 2^e] is one of [0, 1] and a factor."""
    weights = random_weights(0, (4, 5, 5, 3))
    plain = chain_bound(weights)
    assert chain_bound(weights, [2.0**exponent, 1.0]) == math.ldexp(plain, exponent)
    assert chain_bound(weights, [2.0**exponent, 2.0**-exponent]) == plain


def test_steep_activations_between_dense_layers() -> None:
    for slope in (1e160, 1e300):
        model = nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(slope), nn.Linear(4, 3)).double()
        report = layer_bounds(model, 4)
        assert slope * 1e-3 < report.upper < math.inf
    model = nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(1e160), nn.LeakyReLU(1e160), nn.Linear(4, 3)).double()
    assert layer_bounds(model, 4).upper == math.inf
