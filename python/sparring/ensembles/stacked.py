"""M networks of one architecture as one set of stacked tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from sparring.ensembles.layers import StackedBatchNorm, StackedConv2d, StackedLinear, stacked_network
from sparring.ensembles.mixture import Mixture
from sparring.gradients import layers
from sparring.gradients.lowering import lower
from sparring.gradients.members import StackedConv2d as LoweredConv2d
from sparring.gradients.members import StackedLinear as LoweredLinear
from sparring.gradients.members import side_by_side_steps
from sparring.gradients.mixture import Combine, loss_grad
from sparring.gradients.steps import Autograd, BatchNorm, Step
from sparring.losses import Loss


class StackedEnsemble(Mixture):
    """M networks of one architecture as one module: from inputs (B, ...) to logits (B, K).

    Every parameter is one tensor with the members along its first dimension, under the name that it has in a member
    behind ``net.``: (M, H, F) is the weight of all linear layers ``net.linear1.weight``. So one optimiser of any kind
    trains all members, and a step takes one matrix product, convolution and update where M modules take M.

    Stacked are linear layers, convolutions and batch normalisations, in any module that ``torch.fx`` can trace and that
    otherwise only does what works on every feature or channel by itself: activations, pooling, dropout, sums.
    Dropout before the first layer with weights drops the same inputs for all members, and later on others for each.

    Parameters
    ----------
    models
        The members; their weights are copied.
    combine, weights
        As in `sparring.Ensemble`.

    Raises
    ------
    ValueError
        If the architectures differ, or a layer cannot be stacked; it is named.
    """

    def __init__(
        self, models: Iterable[nn.Module], combine: str = "probs", weights: Sequence[float] | Tensor | None = None
    ) -> None:
        members = [*models]
        super().__init__(len(members), combine, weights)
        self.net = stacked_network(members)
        self._template = (copy.deepcopy(members[0]),)  # in a tuple, so that its parameters are not this module's
        self.train(members[0].training)

    def member_logits(self, x: Tensor) -> Tensor:
        """Logits of each member, (M, B, K)."""
        return self._apart(self.net(x))

    def member(self, index: int) -> nn.Module:
        """An ordinary module with a copy of the weights of member `index`."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index is {index}; there are {len(self)} members")
        state = {name: tensor[index] for name, tensor in self.net.state_dict().items()}
        member = copy.deepcopy(self._template[0]).to(next(iter(state.values())).device)
        member.load_state_dict(state)
        return member.train(self.training)

    def member_grads(self, x: Tensor, labels: Tensor, loss: Loss = "ce") -> Tensor:
        """Gradient of each member's own loss towards each example, (M, *x.shape); see `sparring.input_grad`.

        This array and one like it are all that it keeps besides the activations.
        """
        members = len(self)
        with torch.enable_grad():
            apart = x.detach().repeat(1, members, *[1] * (x.ndim - 2)).requires_grad_()
            logits = self._apart(self.net(apart))
            each = logits.detach().reshape(-1, logits.shape[-1])
            at_logits = loss_grad(loss, each, None, labels.repeat(members), None).grad.view(logits.shape)
            (grad,) = torch.autograd.grad(logits, apart, at_logits)
        return grad.view(x.shape[0], members, *x.shape[1:]).transpose(0, 1)

    def save(self, path: str | Path) -> None:
        """Write the weights of all members, and those of the mixture, to a new safetensors file."""
        from safetensors.torch import save_file

        path = Path(path)
        if path.exists():
            raise FileExistsError(f"{path} exists already: choose another path")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        draft = path.with_name(f".{path.name}.part")
        save_file(tensors, draft, {"format": _FORMAT, "combine": self.combine})
        draft.replace(path)

    @classmethod
    def load(cls, path: str | Path, network: nn.Module) -> StackedEnsemble:
        """Read what `save` wrote; `network` is a module of the members' architecture, whose weights do not count.

        Raises
        ------
        ValueError
            If the file is not one of an ensemble, or of networks of another architecture.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                if about.get("format") != _FORMAT:
                    raise ValueError(f"{path}: not an ensemble ({_FORMAT!r}), by its header")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a complete safetensors file with an ensemble: {error}") from error
        ensemble = cls([network] * len(tensors["weights"]), about["combine"])
        try:
            ensemble.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(f"{path}: not an ensemble of such networks: {error}") from error
        return ensemble

    def _apart(self, logits: Tensor) -> Tensor:
        members = len(self)
        if logits.ndim != 2 or logits.shape[1] % members:
            raise ValueError(f"a member must return logits (B, K); all {members} gave {tuple(logits.shape)}")
        return logits.view(logits.shape[0], members, logits.shape[1] // members).transpose(0, 1)


_FORMAT = "sparring stacked ensemble 1"


def _steps(ensemble: StackedEnsemble) -> list[Step]:
    network = lower(ensemble.net)
    reasons = network.reasons or _obstacles(network.steps)
    steps = [Autograd(ensemble.net, reasons)] if reasons else network.steps
    return [*side_by_side_steps(steps, len(ensemble)), Combine(ensemble)]


def _obstacles(steps: list[Step]) -> list[str]:
    """Why the first layer cannot be lowered, on an input that all members share."""
    first = next(step for step in steps if isinstance(step, (LoweredLinear, LoweredConv2d, BatchNorm)))
    if isinstance(first, BatchNorm):
        return ["batch normalisation of the input that stacked members share"]
    return ["groups in the first convolution of stacked members"] if getattr(first, "groups", 1) > 1 else []


def _linear(layer: StackedLinear) -> Step:
    return LoweredLinear(layers.live(layer, "weight"), layers.live(layer, "bias"))


def _conv2d(layer: StackedConv2d) -> Step:
    weight, bias = layers.live(layer, "weight"), layers.live(layer, "bias")
    return LoweredConv2d(weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


layers.MODULES[StackedEnsemble] = _steps
layers.MODULES[StackedLinear] = _linear
layers.MODULES[StackedConv2d] = _conv2d
layers.MODULES[StackedBatchNorm] = layers.batch_norm(2, 4)
