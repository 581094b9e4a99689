"""Products with weights: the same numbers whichever library computes them, NaN and all."""

from __future__ import annotations

import pytest
import torch

from sparring.gradients import products

LIBRARIES = [False] + [True] * products._ONEDNN  # whether oneDNN multiplies in float32


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the libraries that a processor may be given."""
    monkeypatch.setattr(products, "_FASTER_THAN_MKL", request.param)


SHAPES = [(0, 784, 300), (1, 784, 300), (128, 784, 100), (128, 784, 300), (128, 300, 784), (1500, 784, 100)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.usefixtures("library")
def test_linear_is_the_product(shape: tuple[int, int, int], turned: bool, biased: bool) -> None:
    batch, inputs, outputs = shape
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)
    weight = weight.t().contiguous().t() if turned else weight
    bias = torch.randn(outputs, generator=generator) if biased else None
    right = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    torch.testing.assert_close(products.linear(x, weight, bias).double(), right, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("library")
def test_packed_weights_give_the_same_product(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    batch, inputs, outputs = shape
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, inputs, generator=generator).to(dtype)
    weight = torch.randn(inputs, outputs, generator=generator).to(dtype).t()
    right = (x.double() @ weight.double().t()).float()
    ours = products.linear(x, products.packed(weight))
    assert ours.dtype is dtype
    close = {"rtol": 1e-5, "atol": 2e-4} if dtype is torch.float32 else {"rtol": 1e-2, "atol": 0.5}
    torch.testing.assert_close(ours.float(), right, **close)


@pytest.mark.usefixtures("library")
def test_large_products_keep_nan() -> None:
    x, weight = torch.ones(128, 784), torch.ones(300, 784)
    x[5, 7] = torch.nan
    answer = products.linear(x, weight)
    assert bool(answer[5].isnan().all())
    assert bool((answer[:5] == 784).all())
    assert bool((answer[6:] == 784).all())


@pytest.mark.usefixtures("library")
def test_every_batch_of_an_example_gives_the_same_to_rounding() -> None:
    x, weight = torch.randn(512, 784, generator=torch.Generator().manual_seed(0)), torch.randn(300, 784)
    whole = products.linear(x, weight)
    for count in (1, 16, 64, 256):
        part = products.linear(x[:count], weight)
        assert (part - whole[:count]).abs().max() <= 1e-6 * 784**0.5 * whole.abs().max()


def test_bfloat16_copies_follow_their_weights() -> None:
    kept = products.Bfloat16()
    weight, bias = torch.randn(30, 784, generator=torch.Generator().manual_seed(0)), torch.ones(30)
    x = torch.rand(16, 784, generator=torch.Generator().manual_seed(1)).bfloat16()
    first = kept.of(weight, bias)
    assert kept.of(weight, bias) is first
    for change in (lambda: weight.mul_(2), lambda: bias.sub_(3)):
        change()
        there, back, small_bias = kept.of(weight, bias)
        y = products.linear(x, there, small_bias, relu=True)
        right = (x.float() @ weight.bfloat16().float().t() + bias).relu()
        torch.testing.assert_close(y.float(), right, rtol=1e-2, atol=0.1)
        towards = products.linear(y, back)
        torch.testing.assert_close(towards.float(), y.float() @ weight.bfloat16().float(), rtol=1e-2, atol=2.0)
    with torch.inference_mode():
        uncounted = torch.ones(3, 4)
        assert kept.of(uncounted, None)[2] is None
        uncounted.zero_()
        assert not products.linear(torch.ones(1, 4).bfloat16(), kept.of(uncounted, None)[0]).any()
