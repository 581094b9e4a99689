"""Networks: their layers, reproducible initialisation, and weights from files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import sparring as sp
from sparring import data
from sparring.networks import NETWORKS, RBF, MaxNorm, ResNet18, build, cnn, lenet5, load_weights, mlp, model1


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("input_shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 7, 11)])
@pytest.mark.parametrize("outputs", [10, 20])
def test_any_input_shape_and_number_of_outputs(name: str, input_shape: tuple[int, ...], outputs: int) -> None:
    smallest = 27 if name.startswith("model1") else 63 if name == "alexnet" else 1
    if min(input_shape[1:]) < smallest:
        with pytest.raises(ValueError, match=f"H and W at least {smallest} for this network"):
            build(name, input_shape, outputs)
        return
    network = build(name, input_shape, outputs)
    assert network(torch.rand(3, *input_shape)).shape == (3, outputs)


def test_layers_are_those_of_the_sources() -> None:
    sizes = lambda network: [tuple(p.shape) for name, p in network.named_parameters() if name.endswith("weight")]  # noqa: E731
    assert sizes(build("mlp", (1, 28, 28), 10)) == [(128, 784), (128, 128), (10, 128)]
    assert sizes(build("mlp-256-128-128", (1, 28, 28), 20)) == [(256, 784), (128, 256), (128, 128), (20, 128)]
    assert sizes(cnn((1, 28, 28), 10)) == [(32, 1, 3, 3), (64, 32, 3, 3), (128, 9216), (10, 128)]
    assert [layer.p for layer in cnn((1, 28, 28), 10) if isinstance(layer, nn.Dropout)] == [0.25, 0.5]
    assert parameters(cnn((1, 28, 28), 10)) == 1_199_882  # the figure Keras prints for this network
    assert sizes(lenet5((1, 28, 28), 10)) == [(32, 1, 3, 3), (64, 32, 3, 3), (200, 3136), (10, 200)]
    units = [layer for layer in build("maxnorm", (1, 28, 28), 20) if not isinstance(layer, nn.Flatten)]
    assert [type(layer) for layer in units] == [MaxNorm, nn.Linear, nn.ReLU, MaxNorm, nn.Linear]
    assert [tuple(layer.v.shape) for layer in units if isinstance(layer, MaxNorm)] == [(512, 784), (256, 512)]
    assert [layer.out_features for layer in units if isinstance(layer, nn.Linear)] == [512, 20]


def test_alexnet_has_the_shapes_of_its_source() -> None:
    with torch.device("meta"):
        network = NETWORKS["alexnet"]((3, 224, 224), 1000)
        assert network(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    sizes = [tuple(p.shape) for name, p in network.named_parameters() if name.endswith("weight")]
    assert sizes[:3] == [(96, 3, 11, 11), (256, 96, 5, 5), (384, 256, 3, 3)]
    assert sizes[3:] == [(384, 384, 3, 3), (256, 384, 3, 3), (4096, 9216), (4096, 4096), (1000, 4096)]
    assert NETWORKS["alexnet"]((1, 63, 64), 2)(torch.zeros(1, 1, 63, 64)).shape == (1, 2)


def test_maxnorm_units_begin_as_the_source_says() -> None:
    unit = build("maxnorm", (1, 28, 28), 10).maxnorm1
    assert 0 <= unit.d.min() < 0.2
    assert 9.8 < unit.d.max() <= 10
    std, mean = torch.std_mean(unit.v.detach())
    assert float(mean) == pytest.approx(0, abs=0.01)
    assert float(std) == pytest.approx(1, abs=0.01)
    assert (unit.s == 1).all()


def test_networks_of_the_mixtures_are_those_of_the_source() -> None:
    size = (1, 28, 28)
    network = build("model1", size, 10)
    assert parameters(network) == parameters(build("model1-dropout", size, 10)) == 710_218
    assert [layer.p for layer in build("model1-dropout", size, 10) if isinstance(layer, nn.Dropout)] == [0.2, 0.5]
    kinds = [type(layer) for layer in network]
    assert kinds == [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU, nn.Flatten, nn.Linear]
    sigmoid = [type(layer) for layer in build("model1-sigmoid", size, 10)]
    assert sigmoid == [nn.Sigmoid if kind is nn.ReLU else kind for kind in kinds]
    sizes = [tuple(layer.weight.shape) for layer in build("model2", size, 10) if hasattr(layer, "weight")]
    assert sizes == [(32, 1, 5, 5), (64, 32, 5, 5), (1024, 7 * 7 * 64), (10, 1024)]


@pytest.mark.parametrize(("height", "width"), [(28, 28), (27, 28), (28, 31), (29, 27)])
def test_padding_of_model1_is_that_of_tensorflow(height: int, width: int) -> None:
    """TensorFlow's rule: ceil(n / s) outputs; of the ``(ceil(n / s) - 1) s + k - n`` zeros the smaller half before."""
    network = model1((1, height, width), 10)
    x = torch.rand(2, 1, height, width, generator=torch.Generator().manual_seed(0))
    before, after = {}, {}
    for axis, n in (("rows", height), ("columns", width)):
        total = (-(-n // 2) - 1) * 2 + 8 - n
        before[axis], after[axis] = total // 2, total - total // 2
    padded = nn.functional.pad(x, (before["columns"], after["columns"], before["rows"], after["rows"]))
    wanted = nn.functional.conv2d(padded, network.conv1.weight, network.conv1.bias, stride=2)
    ours = network[: 1 + [*dict(network.named_children())].index("conv1")](x)
    assert ours.shape == (2, 64, -(-height // 2), -(-width // 2))
    torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("name", ["model1", "model1-dropout", "model1-sigmoid", "model2"])
def test_networks_of_the_mixtures_can_be_stacked(name: str) -> None:
    members = [build(name, (1, 27, 28), 3, generator=torch.Generator().manual_seed(i)).eval() for i in range(2)]
    stack = sp.StackedEnsemble(members)
    assert stack.reasons == []
    x = torch.rand(3, 1, 27, 28, generator=torch.Generator().manual_seed(0))
    logits = torch.stack([member(x) for member in members])
    torch.testing.assert_close(stack.member_logits(x), logits)
    at_once = stack.net(x).view(3, 2, 3).transpose(0, 1)  # as on a device; on a CPU members are computed in turn
    torch.testing.assert_close(at_once, logits)


def test_a_resnet18_is_the_one_for_small_images() -> None:
    network = build("resnet18", (3, 32, 32), 10)
    assert parameters(network) == 11_173_962  # with ten classes, as it is printed everywhere
    assert network.conv1.stride == (1, 1)
    sizes = []
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        stage.register_forward_hook(lambda _module, _inputs, output: sizes.append(tuple(output.shape[1:])))
    network.eval()(torch.rand(1, 3, 32, 32))
    assert sizes == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    assert (
        parameters(build("resnet18-16", (3, 32, 32), 10)) == parameters(ResNet18((3, 32, 32), 10, width=16)) < 800_000
    )


def test_a_block_whose_convolutions_are_zero_is_its_shortcut() -> None:
    network = ResNet18((3, 8, 8), 10, width=4).eval()
    x = torch.rand(2, 4, 8, 8)
    for block in (network.layer1[0], network.layer2[0]):
        for convolution in (block.conv1, block.conv2):
            nn.init.zeros_(convolution.weight)
    assert torch.equal(network.layer1[0](x), x)
    convolution, norm = network.layer2[0].shortcut
    assert torch.equal(network.layer2[0](x), torch.relu(norm(convolution(x))))


@pytest.mark.parametrize("name", ["resnet18-16", "maxnorm"])
def test_networks_of_unknown_layers_have_input_gradients(name: str) -> None:
    network = build(name, (3, 8, 8), 10).eval()
    x, y = torch.rand(5, 3, 8, 8, requires_grad=True), torch.arange(5)
    (wanted,) = torch.autograd.grad(nn.functional.cross_entropy(network(x), y, reduction="sum"), x)
    assert wanted.abs().sum() > 0
    assert torch.allclose(sp.input_grad(network, x.detach(), y).grad, wanted, atol=1e-6)


def plain_maxnorm(unit: MaxNorm, x: torch.Tensor) -> torch.Tensor:
    distances = (x[:, None] - unit.v).abs() / unit.s.abs()
    return torch.relu(unit.d - distances.amax(2))


def maxnorm_unit(inputs: int, units: int, budget: int = 2**18) -> MaxNorm:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(inputs + units)
        unit = MaxNorm(inputs, units, budget=budget).double()
        nn.init.normal_(unit.s, 0, 2)
        nn.init.uniform_(unit.d, 0, 30)  # some units on, some off
    return unit


@pytest.mark.parametrize("budget", [1, 11, 12, 50, 2**18])
def test_maxnorm_units_are_their_formula_whatever_the_budget(budget: int) -> None:
    unit = maxnorm_unit(11, 7, budget)
    x = torch.rand(5, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = plain_maxnorm(unit, x)
    assert 0 < (wanted > 0).sum() < wanted.numel()
    assert torch.allclose(unit(x), wanted, rtol=1e-12)
    assert torch.equal(unit(x[3:]), unit(x)[3:])
    assert unit(x[:0]).shape == (0, 7)


def test_a_maxnorm_unit_by_hand() -> None:
    unit = MaxNorm(2, 3)
    unit.load_state_dict(
        {
            "d": torch.tensor([3.0, 1.0, 2.0]),
            "v": torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 1.0]]),
            "s": torch.tensor([[1.0, -0.5], [1.0, 1.0], [0.0, 1.0]]),
        }
    )
    assert unit(torch.tensor([[0.5, 0.0]])).tolist() == [[1.0, 0.0, 0.0]]  # the scale 0 leaves only the point itself
    x = torch.tensor([[1.0, 0.0]], requires_grad=True)
    out = unit(x)
    assert out.tolist() == [[1.0, 0.0, 1.0]]
    out.sum().backward()
    assert x.grad.tolist() == [[0.0, 3.0]]  # 1 / .5 of the first unit, and 1 of the third
    assert unit.d.grad.tolist() == [1.0, 0.0, 1.0]
    assert unit.s.grad.tolist() == [[0.0, -4.0], [0.0, 0.0], [0.0, 1.0]]


def test_a_scale_of_zero_leaves_finite_gradients() -> None:
    unit = maxnorm_unit(4, 3)
    nn.init.zeros_(unit.s)
    x = torch.stack([torch.rand(4, dtype=torch.float64), unit.v[0].detach()]).requires_grad_()
    out = unit(x)
    assert out[1, 0] == unit.d[0]
    out.sum().backward()
    assert all(torch.isfinite(tensor.grad).all() for tensor in (x, *unit.parameters()))
    assert (unit.s.grad == 0).all()


def test_maxnorm_gradients_are_those_of_differences() -> None:
    unit = maxnorm_unit(6, 5, budget=20)
    x = torch.rand(3, 6, dtype=torch.float64, requires_grad=True)

    def output(x: torch.Tensor, d: torch.Tensor, v: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(unit, {"d": d, "v": v, "s": s}, (x,))

    assert torch.autograd.gradcheck(output, (x, unit.d, unit.v, unit.s))


def test_a_maxnorm_layer_never_holds_all_distances() -> None:
    unit = MaxNorm(500, 300, budget=20_000)  # all distances would be 15 million numbers
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        unit(torch.rand(100, 500))
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest <= 4 * 500 * 300  # the weights 1 / |s|


def test_an_mlp_has_no_relu_after_its_last_layer() -> None:
    assert [type(layer) for layer in mlp((6, 5, 4))] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]
    assert [type(layer) for layer in mlp((6, 4))] == [nn.Flatten, nn.Linear]


def test_initialisation_depends_on_the_generator_alone() -> None:
    before = torch.get_rng_state()
    weight = lambda seed: build("mlp", (1, 8, 8), 10, generator=torch.Generator().manual_seed(seed)).linear1.weight  # noqa: E731
    assert torch.equal(weight(1), weight(1))
    assert not torch.equal(weight(1), weight(2))
    assert torch.equal(build("cnn", (1, 8, 8), 10).conv1.weight, build("cnn", (1, 8, 8), 10).conv1.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_generator_gives_different_networks_in_turn() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (build("mlp", (1, 8, 8), 10, generator=generator) for _ in range(2))
    assert not torch.equal(first.linear1.weight, second.linear1.weight)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build("resnet", (1, 8, 8), 10), "name must be one of mlp, .*; got 'resnet'"),
        (lambda: build("mlp", (1, 8, 8), 0), "outputs must be positive, got 0"),
        (lambda: build("cnn", (1, 5, 8), 10), r"input_shape must be \(C, H, W\) with H and W at least 6"),
        (lambda: build("lenet5", (8, 8), 10), r"input_shape must be \(C, H, W\)"),
        (lambda: build("resnet18", (32, 32), 10), r"input_shape must be \(C, H, W\)"),
        (lambda: ResNet18((3, 8, 8), 10, width=0), "width must be positive, got 0"),
        (lambda: MaxNorm(0, 5), "inputs must be positive, got 0"),
        (lambda: MaxNorm(5, 5, budget=0), "budget must be positive, got 0"),
        (lambda: mlp((5,)), "sizes must be at least two positive numbers"),
        (lambda: mlp((5, 0, 2)), "sizes must be at least two positive numbers"),
    ],
)
def test_bad_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_weights_from_a_file(tmp_path: Path) -> None:
    saved = build("mlp", (1, 8, 8), 10, generator=torch.Generator().manual_seed(3))
    save_file(saved.state_dict(), tmp_path / "weights.safetensors")
    loaded = load_weights(build("mlp", (1, 8, 8), 10), tmp_path / "weights.safetensors")
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(loaded(images), saved(images))
    with pytest.raises(ValueError, match=r"weights\.safetensors: not the weights of this network"):
        load_weights(build("mlp", (1, 8, 8), 20), tmp_path / "weights.safetensors")


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "file", "accuracy"), [("mlp-300-100", "mnist_mlp", 0.9817), ("lenet5", "mnist_lenet5", 0.9889)]
)
def test_reference_networks_reach_their_accuracy(shared: Path, name: str, file: str, accuracy: float) -> None:
    test = data.load("mnist", shared / "data" / "mnist", "test")
    network = load_weights(build(name, test.input_shape, 10), shared / "models" / f"{file}.safetensors").eval()
    with torch.no_grad():
        correct = torch.cat([network(images).argmax(1) for images in test.images.split(1000)]) == test.labels
    assert float(correct.float().mean()) == pytest.approx(accuracy, abs=1e-4)


def test_radial_basis_functions_by_the_formula() -> None:
    model = build("rbf", (1, 3, 4), 5)
    x = torch.rand(7, 1, 3, 4, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        model.log_beta += torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
        log_p = model(x)
        off = x.flatten(1)[:, None].double() - model.mu[None].double()
        expected = -(model.log_beta.double().exp() * off.square()).sum(2)
        assert torch.allclose(log_p.double(), expected, rtol=1e-4)
        at_centres = model(model.mu.reshape(5, 1, 3, 4))
    assert torch.allclose(at_centres.diagonal(), torch.zeros(5), atol=1e-5)
    assert (at_centres <= 0).all()
    with pytest.raises(ValueError, match="outputs must be positive"):
        RBF(3, 0)


def test_perceptrons_of_other_units() -> None:
    model = build("sigmoid-123-456", (1, 4, 4), 3)
    kinds = [type(layer).__name__ for layer in model]
    assert kinds == ["Flatten", "Linear", "Sigmoid", "Linear", "Sigmoid", "Linear"]
    assert [layer.out_features for layer in model if isinstance(layer, nn.Linear)] == [123, 456, 3]
    assert [name for name, _ in model.named_children()][2] == "sigmoid1"
    assert [type(layer) for layer in build("softmax", (1, 4, 4), 3)] == [nn.Flatten, nn.Linear]
