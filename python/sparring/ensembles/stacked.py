"""M networks of one architecture as one set of stacked tensors."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from sparring import _files
from sparring._loading import layout, read_like, safetensors_file
from sparring.ensembles.doubles import Doubles, adopt_modes
from sparring.ensembles.layers import (
    NotStacked,
    StackedBatchNorm,
    StackedConv2d,
    StackedLinear,
    check_architecture,
    stacked_network,
)
from sparring.ensembles.mixture import COMBINES, Mixture
from sparring.ensembles.quick import quick
from sparring.ensembles.slices import Slice, container, tensors_of
from sparring.gradients import input_grad, layers
from sparring.gradients.image_steps import channels_last
from sparring.gradients.lowered import Lowered
from sparring.gradients.lowering import lower, lowered_with
from sparring.gradients.members import Members, OnDevice, dense_stack
from sparring.gradients.members import StackedConv2d as LoweredConv2d
from sparring.gradients.members import StackedLinear as LoweredLinear
from sparring.gradients.mixture import Combine, loss_grad
from sparring.gradients.steps import AutogradMembers, Step
from sparring.losses import Loss


class StackedEnsemble(Mixture):
    """M networks of one architecture as one module: from inputs (B, ...) to logits (B, K).

    Every parameter is one tensor with the members along its first dimension, under the name that it has in a member
    behind ``net.``: (M, H, F) is the weight of all linear layers ``net.linear1.weight``. So one optimiser of any kind
    trains all members, with one update where M modules take M.

    Linear layers, convolutions and batch normalisations are also computed for all members at once, the first of them as
    one product with the input that all share, in any module that ``torch.fx`` can trace and that otherwise only does
    what works on every feature or channel by itself: activations, pooling, dropout, sums. Dropout before the first
    layer with weights then drops the same inputs for all members. Other networks (``.reasons`` says why), and on a CPU
    those with convolutions, are computed member by member.

    In training all members' activations are held until the backward pass: of 28 x 28 entries, 1 KB an image and
    member for a perceptron 784-100-100-10, 170 KB for the network "cnn"; besides the weights, as many gradients and
    what the optimiser keeps.

    Parameters
    ----------
    models
        The members; their weights are copied.
    combine, weights, abstain
        As in `sparring.Ensemble`.

    Attributes
    ----------
    reasons
        Why the members are not computed at once; empty where they can be.

    Raises
    ------
    ValueError
        If the architectures differ.
    """

    def __init__(
        self,
        models: Iterable[nn.Module],
        combine: str = "probs",
        weights: Sequence[float] | Tensor | None = None,
        abstain: Mapping[str, float] | None = None,
    ) -> None:
        members = [*models]
        super().__init__(len(members), combine, weights, abstain)
        check_architecture(members)
        self.reasons: list[str] = []
        try:
            self.net = stacked_network(members)
        except NotStacked as why:
            self.reasons.append(str(why))
            self.net = container(members)
        made = quick(members[0])
        self._one, self._quick = Doubles(copy.deepcopy(members[0])), Doubles(made.network)
        self._channels_last = made.channels_last
        self._images = any(isinstance(module, nn.Conv2d) for module in members[0].modules())
        self.train(members[0].training)

    def member_logits(self, x: Tensor) -> Tensor:
        """Logits of each member, (M, B, K)."""
        if not self._one_by_one(x):
            return self._apart(self.net(x))
        parts = {name: tensor.unbind() for name, tensor in tensors_of(self.net)}
        x = channels_last(x) if x.is_cpu and x.ndim == 4 and self._channels_last else x
        own = [{name: part[index] for name, part in parts.items()} for index in range(len(self))]
        with self._quick.lent(self.net) as network:
            return torch.stack([network(tensors, x) for tensors in own])

    def member(self, index: int) -> nn.Module:
        """An ordinary module with a copy of the weights of member `index`."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index is {index}; there are {len(self)} members")
        stacked = dict(tensors_of(self.net))
        member = self._template()
        for name, tensor in tensors_of(member):
            tensor.data = (
                stacked[name][index].detach().clone()
            )  # of the stack's dtype and device, whatever it began with
        return member

    def member_grads(self, x: Tensor, labels: Tensor, loss: Loss = "ce") -> Tensor:
        """Gradient of each member's own loss towards each example, (M, *x.shape); see `sparring.input_grad`."""
        members = len(self)
        if self._one_by_one(x):
            return torch.stack([input_grad(_lowered(self, index), x, labels, loss).grad for index in range(members)])
        with torch.enable_grad():
            apart = x.detach().repeat(1, members, *[1] * (x.ndim - 2)).requires_grad_()
            logits = self._apart(self.net(apart))
            each = logits.detach().reshape(-1, logits.shape[-1])
            at_logits = loss_grad(loss, each, None, labels.repeat(members), None).grad.view(logits.shape)
            (grad,) = torch.autograd.grad(logits, apart, at_logits)
        return grad.view(x.shape[0], members, *x.shape[1:]).transpose(0, 1)

    def save(self, path: str | Path) -> None:
        """Write the weights of all members, and those of the mixture, to a new safetensors file."""
        path = Path(path)
        if path.exists():
            raise FileExistsError(f"{path} exists already: choose another path")
        _files.write(path, _files.packed(self.state_dict(), {"format": _FORMAT, "combine": self.combine}))

    @classmethod
    def load(cls, path: str | Path, network: nn.Module) -> StackedEnsemble:
        """Read what `save` wrote; `network` is a module of the members' architecture, whose weights do not count.

        Raises
        ------
        OSError
            If the file cannot be opened.
        ValueError
            If the file is not one of an ensemble, or of networks of another architecture or of numbers that `network`
            has not; names it.
        """
        with safetensors_file(path, "an ensemble") as file:
            about = file.metadata() or {}
            if about.get("format") != _FORMAT:
                raise ValueError(f"{path}: not an ensemble ({_FORMAT!r}), by its header")
            if about.get("combine") not in COMBINES:
                raise ValueError(f"{path}: combine is {about.get('combine')!r}, expected one of {', '.join(COMBINES)}")
            _, shape = layout(file).get("weights", (None, ()))
            if len(shape) != 1 or shape == (0,):
                raise ValueError(f"{path}: weights has shape {shape}, expected one for each member")
            one = cls([network], about["combine"]).state_dict()  # which tells what many are like
            wanted = {name: (tensor.dtype, (*shape, *tensor.shape[1:])) for name, tensor in one.items()}
            tensors = read_like(file, path, "an ensemble of such networks", wanted)
        weights = tensors["weights"]
        if not bool((weights >= 0).all()) or abs(float(weights.sum()) - 1) > 1e-6:
            raise ValueError(f"{path}: weights must be at least 0 and sum to 1; got {weights.tolist()}")
        ensemble = cls([network] * len(weights), about["combine"])
        ensemble.load_state_dict(tensors)
        return ensemble

    def members_by_autograd(self) -> list[Step]:
        """The members, left to autograd, and their mixture."""
        return [AutogradMembers(self), Combine(self)]

    def _template(self) -> nn.Module:
        """A module of the members' architecture, in the modes of the stack, with weights that do not count."""
        network = copy.deepcopy(self._one.network)
        adopt_modes(network, self.net)
        return network

    def _one_by_one(self, x: Tensor) -> bool:
        return bool(self.reasons) or (self._images and x.is_cpu)

    def _apart(self, logits: Tensor) -> Tensor:
        members = len(self)
        if logits.ndim != 2 or logits.shape[1] % members:
            raise ValueError(f"a member must return logits (B, K); all {members} gave {tuple(logits.shape)}")
        return logits.view(logits.shape[0], members, logits.shape[1] // members).transpose(0, 1)


_FORMAT = "sparring stacked ensemble 1"


def _lowered(ensemble: StackedEnsemble, index: int | None) -> Lowered:
    """Member `index`; or, with None, a network with the tensors of all."""
    net, template = ensemble.net, ensemble._template()
    call = functools.partial(_call, net, ensemble._one, index)
    return lowered_with(template, lambda name, module: Slice(module, net.get_submodule(name), index), call, net)


def _call(net: nn.Module, doubles: Doubles, index: int | None, x: Tensor) -> Tensor:
    tensors = {name: tensor if index is None else tensor[index] for name, tensor in tensors_of(net)}
    if torch.is_grad_enabled():  # autograd cannot keep what was made in inference mode
        tensors = {name: tensor.clone() if tensor.is_inference() else tensor for name, tensor in tensors.items()}
    with doubles.lent(net) as network:
        return cast(Tensor, network(tensors, x))


def _steps(ensemble: StackedEnsemble) -> list[Step]:
    members = len(ensemble)
    together = _lowered(ensemble, None)
    dense = None if ensemble.reasons else dense_stack(together.steps, members)
    if dense is not None:
        dense.plans = [together.plan]
        return [dense, Combine(ensemble)]
    one_by_one = Members([_lowered(ensemble, index) for index in range(members)])
    if ensemble.reasons:
        return [one_by_one, Combine(ensemble)]
    return [OnDevice(one_by_one, lower(ensemble.net), members), Combine(ensemble)]


def _linear(layer: StackedLinear) -> Step:
    return LoweredLinear(layers.live(layer, "weight"), layers.live(layer, "bias"))


def _conv2d(layer: StackedConv2d) -> Step:
    weight, bias = layers.live(layer, "weight"), layers.live(layer, "bias")
    return LoweredConv2d(weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


layers.MODULES[StackedEnsemble] = _steps
layers.MODULES[StackedLinear] = _linear
layers.MODULES[StackedConv2d] = _conv2d
layers.MODULES[StackedBatchNorm] = layers.batch_norm(2, 4)
