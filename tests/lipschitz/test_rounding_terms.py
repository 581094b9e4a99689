"""Numbers made so that one term of one certificate decides: without it the bound would be below the truth.

Where arithmetic here happens to round well, a step is replaced by the worst that its contract allows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparring.lipschitz import (
    banded,
    certified_radius,
    chain_bound,
    cholesky,
    convolution,
    dense,
    frequencies,
    geometry,
    gram,
    kernels,
    lanczos,
    layer_bounds,
    local,
    local_bound,
    rounding,
    spectral_norm,
)
from sparring.lipschitz.chains import Blocks
from sparring.lipschitz.dense_chains import DenseChain
from sparring.lipschitz.frequencies import Spectrum, Symbol, polyphase
from sparring.lipschitz.gains import weighted
from sparring.lipschitz.gains.gain import Gain
from sparring.lipschitz.geometry import Geometry
from sparring.lipschitz.masked import MaskedChain

FLOAT = torch.float64
EYE = torch.eye(2, dtype=FLOAT)
LONG = 2**20
LOST = 2.0**-27  # its square is lost where it is added to 1


def long_row() -> tuple[Tensor, Fraction]:
    """A row whose sum of squares any order of additions loses much of; and that sum."""
    row = torch.full((1, LONG), LOST, dtype=FLOAT)
    row[0, 0] = 1
    return row, 1 + (LONG - 1) * Fraction(LOST) ** 2


def dense_network(*layers: tuple[Any, Any]) -> nn.Sequential:
    """Linear layers (weight, bias) in float64 with ReLU between them."""
    parts: list[nn.Module] = []
    for weight, bias in layers:
        weight = torch.as_tensor(weight, dtype=FLOAT)
        layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=FLOAT)
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(torch.as_tensor(bias, dtype=FLOAT))
        parts += [layer, nn.ReLU()]
    return nn.Sequential(*parts[:-1]).eval()


def as_late_as_allowed(matrices: Tensor, shift: Tensor) -> Tensor:
    """`kernels.positive_definite`, where rounding is as kind as its contract says: see its docstring."""
    size = matrices.shape[1]
    top = torch.linalg.eigvalsh(matrices)[:, -1]
    diagonal = (shift[:, None] - matrices.diagonal(dim1=1, dim2=2)).abs()
    gamma = (size + 3) * rounding.UNIT
    room = shift + 0.99 * (gamma * diagonal.sum(1) + rounding.UNIT * diagonal.amax(1))
    return top * (1 - 2.0**-51) <= room


# --- dense layers -----------------------------------------------------------------------------------------------------


def test_the_rounding_of_a_gram_matrix() -> None:
    row, square = long_row()
    found = spectral_norm(row)
    assert Fraction(found.lower) ** 2 <= square <= Fraction(found.upper) ** 2


def test_the_rounding_of_a_gram_matrix_in_either_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=FLOAT)
    lost = (weight.abs() @ weight.abs().mT) * 3 * rounding.UNIT
    for sign in (-1, 1):
        monkeypatch.setattr(gram, "gram", lambda w, sign=sign: w @ w.mT + sign * lost / 64)  # the weight is scaled by 8
        found = spectral_norm(weight)
        assert found.lower <= 5 <= found.upper


def test_the_lower_end_allows_for_its_own_products(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=FLOAT)
    monkeypatch.setattr(rounding, "gamma", lambda n: 1e-3 if n == 4 else 1e-16 * n)  # sums of two, and two more
    assert spectral_norm(weight).lower <= 5 - 0.9 * 5e-3


def test_what_is_unknown_of_a_matrix_counts() -> None:
    """Of a convolution's matrix the entries are sums."""
    weight = torch.eye(3, dtype=FLOAT)
    found = dense.enclose(weight, tol=1e-9, certified=True, entry_error=1e-3)
    assert found.lower <= 1 - 1e-3
    assert found.upper >= 1 + 1e-3


def test_sums_of_taps_that_read_one_entry() -> None:
    """Circular padding, wider than the image: the entry is a sum of many taps, each rounded."""
    count = 2**12
    weight = torch.full((1, 1, count), LOST**2, dtype=FLOAT)
    weight[0, 0, 0] = 1
    shape = Geometry((1,), (count,), (1,), (0,), (count - 1,), (1,), "circular", None)
    matrix, error = shape.matrix(weight)
    truth = 1 + (count - 1) * Fraction(LOST) ** 2
    assert abs(Fraction(float(matrix)) - truth) <= Fraction(error)


@pytest.mark.parametrize("term", ["residual", "products"])
def test_what_a_factorisation_leaves(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The factor of a matrix that is wrong by a known amount, and products that round as coarsely as they might."""
    matrix = torch.eye(300, dtype=FLOAT) * 2
    before = cholesky.dense_error(matrix)
    if term == "residual":
        solve = torch.linalg.solve_triangular
        monkeypatch.setattr(torch.linalg, "solve_triangular", lambda *a, **k: solve(*a, **k) + 1e-5)
        wrong = 1e-5 * math.sqrt(2) * math.sqrt(44 * 256)  # in the block below the first, times the diagonal of L
        assert cholesky.dense_error(matrix) >= wrong
    else:
        monkeypatch.setattr(rounding, "gamma", lambda n: 1e-6 * n)
        assert cholesky.dense_error(matrix) >= 1e-6 * 256 * (math.sqrt(600) + 2 * 600)
    assert before < 1e-9


def test_the_subtraction_on_the_diagonal_and_the_gram_matrix_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cholesky, "dense_error", lambda matrix: 0.0)
    product = torch.eye(2, dtype=FLOAT)
    assert gram.proven_upper(product.clone(), 1.0, 1e-3, 1e-6) >= 1 + 1e-6 + 1e-3
    monkeypatch.setattr(rounding, "UNIT", 1e-4)
    assert gram.proven_upper(product.clone(), 1.0, 0.0, 1e-6) >= (1 + 1e-6 + 2e-4) * (1 + 3.99e-4)
    monkeypatch.setattr(cholesky, "dense_error", lambda matrix: 1e-2)
    assert gram.proven_upper(product.clone(), 1.0, 0.0, 1e-6) >= 1 + 1e-2


def test_banded_certificates_count_the_sums_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, options = torch.tensor([[[1.0, 2.0]]]), {"padding": 1, "method": "banded"}
    assert spectral_norm(weight, "conv1d", 8, **options).upper < 3
    monkeypatch.setattr(rounding, "gamma", lambda n: 1e-5 * n)
    monkeypatch.setattr(cholesky, "banded_error", lambda *args: 0.0)
    found = spectral_norm(weight, "conv1d", 8, **options)
    assert found.upper**2 >= found.lower**2 + 8e-5 * 9  # others * taps + taps + 4 operations, of |W|^2 = 9


# --- frequencies ------------------------------------------------------------------------------------------------------


def symbol(*taps: float) -> Symbol:
    return Symbol(polyphase(torch.tensor([[taps]], dtype=FLOAT), (1,), (0,), (1,)))


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_matrices_at_frequencies_may_be_off(sign: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By as much as their error, downwards or upwards: taps of one sign have the norm of their sum."""
    made = Symbol.at

    def off(self: Symbol, *args: Any) -> Tensor:
        matrices = made(self, *args)
        return matrices + sign * 0.999 * self.error * torch.eye(matrices.shape[1], dtype=FLOAT)

    monkeypatch.setattr(Symbol, "at", off)
    found = symbol(1.0, 2.0, 4.0).largest((8,), (0.0,), tol=1e-15)
    assert found.lower <= 49 <= found.upper


def test_the_error_of_the_matrices_is_what_the_proof_says() -> None:
    """2 gamma(K c + K + L + 72) (sum |W|)^2 for K taps, c channels, L lags."""
    for taps, lags in (((1.0, 2.0), 2), ((1.0, -2.0, 4.0), 3)):
        operations = 2 * len(taps) + lags + 72
        assert symbol(*taps).error >= 2 * operations * rounding.UNIT * sum(map(abs, taps)) ** 2
    wide = Symbol(polyphase(torch.ones(2, 5, 2, dtype=FLOAT), (1,), (0,), (1,)))
    assert wide.error >= 2 * (2 * 5 + 2 + 2 + 72) * rounding.UNIT * 2 * 5 * 4


def test_the_factorisations_at_frequencies_may_end_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "positive_definite", as_late_as_allowed)
    blocks = Symbol(polyphase(torch.ones(40, 40, 1, dtype=FLOAT), (1,), (0,), (1,)))
    monkeypatch.setattr(blocks, "error", 0.0)
    monkeypatch.setattr(Symbol, "_raised", lambda self, matrices, lower: (0.0, 1600 * (1 - 80 * 43 * rounding.UNIT)))
    assert blocks.largest((1,), (0.0,), tol=0.0).upper >= 1600


def test_the_lower_end_at_frequencies_allows_for_its_own_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quotient of a vector is off by gamma times the size of the matrix."""
    made, large = symbol(1.0, 2.0), Symbol(polyphase(torch.eye(6, dtype=FLOAT)[:, :, None], (1,), (0,), (1,)))
    monkeypatch.setattr(rounding, "gamma", lambda n: 1e-4 * n)
    lower, _ = made._raised(torch.full((1, 1, 1), 9.0, dtype=FLOAT), 0.0)
    assert lower <= 9 - 2 * 1e-4 * 10 * 9
    lower, _ = large._raised(9 * torch.eye(12, dtype=FLOAT)[None], 0.0)
    assert lower <= 9 - 2 * 1e-4 * (2 * 12 + 8) * 9


def test_between_the_points_of_a_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The supremum over all sizes may lie between them: 1 / cos(pi / 32) a dimension more in the square."""
    square = frequencies.Spectrum(1.0, 1.0)
    monkeypatch.setattr(Symbol, "largest", lambda self, grid, shift, tol: square)
    for dims in (1, 2):
        upper = spectral_norm(torch.ones(1, 1, *[2] * dims), f"conv{dims}d").upper
        assert upper**2 >= math.cos(math.pi / 32) ** -dims


# --- chains -----------------------------------------------------------------------------------------------------------

WIDE = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]], dtype=FLOAT)  # the input is the longer side


@pytest.mark.parametrize("first", [EYE, WIDE])
@pytest.mark.parametrize("errors", [(1e-4, 0.0), (0.0, 1e-4), (1e-4, 1e-4)])
def test_declared_errors_of_weights_count(first: Tensor, errors: tuple[float, float]) -> None:
    """The identity, twice: entries that are larger by their error make a network with so large a constant."""
    truth = (1 + errors[0]) * (1 + errors[1])
    assert chain_bound([first, EYE]) < 1 + 1e-6
    assert chain_bound([first, EYE], error=errors) >= truth


def test_folded_normalisations_declare_their_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)).eval()
    before = layer_bounds(model, 3)
    seen = []
    bound = DenseChain.bound
    monkeypatch.setattr(DenseChain, "bound", lambda self: seen.append([g.error for g in self.gains]) or bound(self))
    monkeypatch.setattr(weighted, "FOLDING_ERROR", 1e-4)
    after = layer_bounds(model, 3)
    assert seen[0] == [1e-4, 0.0]
    assert after.product >= before.product * (1 + 0.99e-4)
    assert after.upper >= before.upper * (1 + 0.99e-4)


def test_a_proof_is_compared_with_its_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A factorisation that leaves ever more proves nothing."""
    blocks = Blocks([EYE, EYE], [torch.full((2,), 1.0, dtype=FLOAT)], [1.0], [0.0, 0.0])
    assert blocks.positive(1.1)
    left = itertools.count(1)
    monkeypatch.setattr(cholesky, "banded_error", lambda *args: 10.0 * next(left))
    assert not blocks.positive(1.1)
    monkeypatch.setattr(cholesky, "banded_error", lambda *args: math.inf)
    assert not blocks.positive(1.1)


def test_what_is_unknown_of_the_blocks_is_part_of_the_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = Blocks([EYE, EYE], [torch.full((2,), 1.0, dtype=FLOAT)], [1.0], [0.0, 0.0])
    blocks.error = 0.5
    assert not blocks.positive(1.0 + 1e-6)
    assert Blocks([EYE, EYE], [torch.full((2,), 1.0, dtype=FLOAT)], [1.0], [0.0, 0.0]).positive(1.0 + 1e-6)


def test_the_rounding_of_the_eliminated_input() -> None:
    """Long and lossy as above: no multiplier proves less than the length of the row, by however little."""
    row, square = long_row()
    one, best = torch.ones(1, 1, dtype=FLOAT), torch.tensor([1 - 2.0**-34], dtype=FLOAT)
    for bits in range(35, 44):
        below = math.sqrt(float(square * (1 - Fraction(1, 2**bits))))
        assert Fraction(below) ** 2 < square
        assert not Blocks([row, one], [best], [1.0], [0.0, 0.0]).positive(below)


def test_chains_without_units_allow_for_the_factorisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """As late as allowed, and with blocks that are off by their error."""
    chain = MaskedChain([EYE, EYE])
    ones = torch.ones(1, 2, dtype=FLOAT)
    monkeypatch.setattr(kernels, "positive_definite", as_late_as_allowed)
    assert float(chain.bounds([ones], ones)) >= 1
    chain._error = 1e-3
    assert float(chain.bounds([ones], ones)) >= 1 + 1e-3 / 4


def test_the_factorisation_without_units_is_allowed_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of thirty rows, of which two say that L is 1 at least: it is not proven to be less by what rounding allows."""
    monkeypatch.setattr(kernels, "positive_definite", as_late_as_allowed)
    chain = MaskedChain([EYE, EYE])
    chain._error = 0.0
    inner, output = torch.eye(29, dtype=FLOAT)[None], torch.zeros(1, 1, 29, dtype=FLOAT)
    output[0, 0, 0] = 1
    for short in (100, 200, 300):
        assert not chain._proven(inner, output, torch.tensor([1 - short * rounding.UNIT], dtype=FLOAT))
    assert chain._proven(inner, output, torch.tensor([1.0001], dtype=FLOAT))


# --- balls ------------------------------------------------------------------------------------------------------------

BIG = 2.0**60
ORDERS = [*itertools.permutations((BIG, 1.0, -BIG))]


def test_a_pre_activation_that_rounds_below_zero() -> None:
    """Sums of 2^60, 1 and -2^60 less 1/2 are 1/2, in whichever order they come to -1/2: all units are on."""
    model = dense_network((ORDERS, [-0.5] * 6), (torch.eye(6), [0.0] * 6))
    x = torch.ones(1, 3, dtype=FLOAT)
    assert bool((model[0](x) < 0).any())  # as they are computed
    norm = float(torch.linalg.matrix_norm(model[0].weight.detach(), 2))
    assert float(local_bound(model, x, 0.0)) >= norm * (1 - 1e-12)


def test_what_was_lost_before_is_lost_afterwards() -> None:
    """The first layer's 1/2 may be computed as 0; less 1/4 it is on in the second."""
    model = dense_network((ORDERS, [-0.5] * 6), (torch.eye(6), [-0.25] * 6), (torch.eye(6), [0.0] * 6))
    x = torch.ones(1, 3, dtype=FLOAT)
    norm = float(torch.linalg.matrix_norm(model[0].weight.detach(), 2))
    assert float(local_bound(model, x, 0.0)) >= norm * (1 - 1e-12)


def test_products_below_the_range_of_numbers() -> None:
    """Three products of 2^-1075 are each rounded to 0; their sum is above 2^-1074, which is taken from them."""
    model = dense_network(([[2.0**-538] * 3], [-(2.0**-1074)]), ([[1.0]], [0.0]))
    x = torch.full((1, 3), 2.0**-537, dtype=FLOAT)
    assert float(local_bound(model, x, 0.0)) >= 2.0**-538 * math.sqrt(3)


def test_rows_whose_squares_are_lost() -> None:
    """A unit of weight 1e-170 beside one of weight 1; and one whose sum of squares loses most of its terms."""
    row, square = long_row()
    for weight, exact in (
        (torch.tensor([[1.0, 0.0], [0.0, 1e-170]], dtype=FLOAT), Fraction(1e-170) ** 2),
        (row, square),
    ):
        layer = local._Layer(Gain(1.0, 1.0, "", matrix=weight), rectified=True)
        found = layer.row_norms(torch.ones(1, weight.shape[1], dtype=FLOAT))[0, -1]
        assert Fraction(float(found)) ** 2 >= exact


def test_numbers_beyond_the_range_are_not_off() -> None:
    """A pre-activation that overflows on the way, inf - inf, says nothing."""
    model = dense_network(([[1e300, -1e300, 1.0]], [1.0]), ([[1.0]], [0.0]))
    x = torch.tensor([[1e10, 1e10, 1.0]], dtype=FLOAT)
    assert float(local_bound(model, x, 0.0)) >= 1e300


@pytest.mark.parametrize("scale", [1e-170, 1e-310, 1e150])
def test_bounds_of_balls_at_any_scale(scale: float) -> None:
    model = dense_network((scale * EYE, [0.0, 0.0]), (1e-20 * EYE, [0.0, 0.0]))
    x = torch.ones(1, 2, dtype=FLOAT)
    assert float(local_bound(model, x, 0.1)) >= scale * 1e-20


def test_bounds_of_balls_below_the_range_are_not_zero() -> None:
    """One by the product of norms alone, and one by LipSDP too."""
    small, none = 1e-200 * EYE, [0.0, 0.0]
    for network in (
        dense_network((small, none), (small, none)),
        dense_network((small, none), (EYE, none), (small, none)),
    ):
        bound = local_bound(network, torch.ones(1, 2, dtype=FLOAT), 0.1)
        assert float(bound) > 0


def test_eigenvalues_in_balls_may_be_proven_late(monkeypatch: pytest.MonkeyPatch) -> None:
    grams = torch.full((1, 30, 30), 1.0, dtype=FLOAT)
    monkeypatch.setattr(kernels, "positive_definite", as_late_as_allowed)
    monkeypatch.setattr(local, "_ABOVE", 0.0)
    value = torch.tensor([30 * (1 - 900 * rounding.UNIT)], dtype=FLOAT)
    pair = kernels.TopEigenpair(value, value, value, value)
    monkeypatch.setattr(kernels, "top_eigenpair", lambda *args, **kwargs: pair)
    assert float(local._largest(grams)) >= 30


def test_gram_matrices_in_balls_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    row, square = long_row()
    model = dense_network((row, [0.0]))
    found = local_bound(model, torch.zeros(1, LONG, dtype=FLOAT), 0.0)
    assert Fraction(float(found)) ** 2 >= square


# --- radii ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [-1060, -600, -300, 300, 500])
def test_radii_at_any_scale(exponent: int) -> None:
    """Of the identity, scaled: from (1, 0) it is 1 / sqrt(2) to where the classes meet."""
    model = dense_network((2.0**exponent * EYE, [0.0, 0.0]))
    for in_ball in (False, True):
        radius = float(certified_radius(model, torch.tensor([[1.0, 0.0]], dtype=FLOAT), local=in_ball))
        assert radius <= math.sqrt(0.5)
        assert radius >= 0.7 or exponent < -1000  # where numbers have few digits left


def test_radii_where_bounds_leave_the_range() -> None:
    """Two layers of 1e-200: no product of norms is 0, and the radius no more than it is."""
    small = 1e-200 * EYE
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), nn.Tanh()).to(FLOAT).eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(small)
            layer.bias.zero_()
        model[2].bias.copy_(torch.tensor([1e-300, 0.0]))
    assert layer_bounds(model, 2).upper > 0
    assert float(certified_radius(model, torch.tensor([[1.0, 0.0]], dtype=FLOAT))) < math.inf


def test_margins_allow_for_the_network_s_own_rounding() -> None:
    """A margin that float32 gives and float64 does not, or of a unit in the last place, is none."""
    model = nn.Linear(1, 2).eval()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0], [1.0]]))
        model.bias.copy_(torch.tensor([1.0, 1.0 + 2.0**-23]))
    assert float(certified_radius(model, torch.ones(1, 1))) == 0


def test_rows_that_are_apart_by_little() -> None:
    from sparring.lipschitz.radius import _lengths

    row, square = long_row()
    found = _lengths(torch.cat([row, row * 2.0**-900, row * 0, row * 2.0**900]), 2)
    for length, scale in zip(found.tolist(), (1, Fraction(2) ** -900, 0, Fraction(2) ** 900), strict=True):
        assert Fraction(length) ** 2 >= square * scale**2


MAKES: dict[str, Callable[[], nn.Module]] = {
    "layer norm": lambda: nn.LayerNorm(2, eps=1e30, elementwise_affine=True, dtype=FLOAT),
    "batch norm": lambda: nn.BatchNorm1d(2, dtype=FLOAT).eval(),
}


@pytest.mark.parametrize("name", MAKES)
def test_constants_that_underflow_are_not_zero(name: str) -> None:
    model = MAKES[name]()
    with torch.no_grad():
        model.weight.fill_(5e-324)
    assert layer_bounds(model, 2).upper > 0


def test_branches_that_underflow() -> None:
    """The root of two squares of the smallest number is above it."""
    from sparring.lipschitz.gains.gain import length, product, total

    tiny = 5e-324
    assert length([tiny, tiny]) > tiny
    assert product(tiny, 0.1) > 0
    assert total([1.0, 2.0**-60]) > 1
    assert product(1 / 3, 3.0) > Fraction(1 / 3) * 3


@pytest.mark.parametrize("guess", [0.0, 1e-3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize(("kernel", "size", "channels"), [((3,), (9,), (2, 3)), ((2, 3), (4, 5), (3, 2))])
def test_a_banded_proof_does_not_believe_its_guess(
    guess: float, kernel: tuple[int, ...], size: tuple[int, ...], channels: tuple[int, int]
) -> None:
    """Begun below the norm, it fails until it is above."""
    weight = torch.randn(*channels, *kernel, generator=torch.Generator().manual_seed(3), dtype=FLOAT)
    ones = (1,) * len(kernel)
    shape = Geometry(size, kernel, ones, ones, ones, ones, "zeros", None)
    norm = float(torch.linalg.matrix_norm(shape.matrix(weight)[0], 2))
    found = banded.proven_upper(weight, shape, guess * norm, 1e-4)
    assert found >= norm
    if guess == 0.999:
        assert found <= 1.02 * norm


@pytest.mark.parametrize("copies", [2, 3, 5, 7])
def test_the_root_of_the_copies_is_rounded_up(copies: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the sums are: both factors, and their product, may have been rounded down."""
    shape = Geometry((4,), (1,), (1,), (0,), (0,), (1,), "zeros", None)
    monkeypatch.setattr(Geometry, "copies", lambda self: copies)
    for numerator in range(1, 200):
        sums = numerator / 64
        monkeypatch.setattr(geometry, "sums_norm", lambda weight, sums=sums: sums)
        found = Fraction(geometry.magnitude_norm(shape, EYE))
        assert found**2 >= Fraction(sums) ** 2 * copies


def test_the_product_with_the_copies_is_rounded_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the frequencies give: the bound's square is no less than what they stand for."""
    monkeypatch.setattr(convolution, "magnitude_norm", lambda shape, weight: math.inf)
    weight = torch.tensor([[[1.0, 2.0]]], dtype=FLOAT)
    for numerator in range(65, 160):
        square = numerator / 7
        monkeypatch.setattr(Symbol, "largest", lambda self, *args, square=square, **options: Spectrum(1.0, square))
        for copies in (1, 3):
            monkeypatch.setattr(Geometry, "copies", lambda self, copies=copies: copies)
            found = spectral_norm(weight, "conv1d", 8, padding=1, method="frequencies")
            assert Fraction(found.upper) ** 2 >= Fraction(square) * copies


@pytest.mark.parametrize("exponent", [-40, -3, 30])
def test_eigenvalues_at_any_scale(exponent: int) -> None:
    """By a power of two: the same bits, after as many steps."""
    matrix = torch.randn(90, 90, generator=torch.Generator().manual_seed(1), dtype=FLOAT)
    matrix = matrix @ matrix.t()
    asked: list[int] = []

    def scaled(vector: Tensor, scale: float) -> Tensor:
        asked.append(1)
        return (matrix @ vector) * scale

    start = lanczos.start_vector(90, matrix)
    found, counts = [], []
    for scale in (1.0, 2.0**exponent):
        asked.clear()
        found.append(lanczos.largest(lambda v, scale=scale: scaled(v, scale), start, tol=1e-3))
        counts.append(len(asked))
    assert found[1].value == found[0].value * 2.0**exponent
    assert counts[0] == counts[1] < 90
    assert found[0].value == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]), rel=1e-3)


def test_what_is_subtracted_from_the_diagonal_is_rounded_there() -> None:
    """By units in the last place of the diagonal, however little is subtracted."""
    wide = torch.full((2, 5), 1e-12, dtype=FLOAT)
    assert Blocks([wide, EYE], [torch.ones(2, dtype=FLOAT)], [1.0], [0.0, 0.0]).error >= 8 * rounding.UNIT
