"""The members of an ensemble as one step, from the input to their logits, (M, B, K).

Dense members of one architecture are stacked: the first layers are one matrix, (B, D) x (D, M H), and so is the way
back, (B, M H) x (M H, D), which sums over the members as it goes; an (M, B, D) array never exists. What cannot be
stacked is gone through member by member.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparring.gradients import kernels
from sparring.gradients.image_steps import Conv2d
from sparring.gradients.lowered import Lowered, taken
from sparring.gradients.plan import Plan
from sparring.gradients.products import contents_of, linear, packed, side_by_side
from sparring.gradients.steps import IDENTITY, Flatten, Linear, Live, NotLowered, Reshape, Step, as_dtype


class Members:
    """One member after the other; each is lowered, or left to autograd, on its own."""

    takes_precision = True

    def __init__(self, members: Sequence[Lowered]) -> None:
        self.members = members
        self.plans = [member.plan for member in members]
        self.reasons = [f"member {i}: {reason}" for i, member in enumerate(members) for reason in member.reasons]

    def take(self, x: Tensor, precision: str) -> Members:
        """With the weights of now. The ensemble as a whole was compared with its plan."""
        result = copy.copy(self)
        result.members = [Lowered(one.model, one.plan, taken(one.steps, x, precision)) for one in self.members]
        return result

    def forward(self, x: Tensor, precision: str) -> tuple[Tensor, Any]:
        passes = [member.forward(x, precision) for member in self.members]
        shapes = {tuple(logits.shape) for logits, _ in passes}
        if len(shapes) > 1:
            raise ValueError(f"the members of an ensemble must return logits of one shape, but gave {sorted(shapes)}")
        dtype = torch.float32 if precision == "bf16" else passes[0][0].dtype
        return torch.stack([logits.to(dtype) for logits, _ in passes]), passes

    def backward(self, grad: Tensor, saved: Any) -> Tensor:
        result: Tensor | None = None
        for member, one, (logits, tape) in zip(self.members, grad, saved, strict=True):
            towards = member.backward(one.to(logits.dtype), tape)
            result = towards if result is None else result.add_(towards)
        assert result is not None
        return result


class OnDevice:
    """Members one by one on a CPU, all of them side by side elsewhere: what each is better at."""

    takes_precision = True

    def __init__(self, one_by_one: Members, side_by_side: Lowered, members: int) -> None:
        self.one_by_one, self.side_by_side, self.members = one_by_one, side_by_side, members
        self.reasons, self.plans = one_by_one.reasons, [*one_by_one.plans, side_by_side.plan]

    def take(self, x: Tensor, precision: str) -> OnDevice:
        """With the weights of now."""
        if x.is_cpu:
            return OnDevice(self.one_by_one.take(x, precision), self.side_by_side, self.members)
        steps = taken(self.side_by_side.steps, x, precision)
        return OnDevice(self.one_by_one, Lowered(self.side_by_side.model, self.side_by_side.plan, steps), self.members)

    def forward(self, x: Tensor, precision: str) -> tuple[Tensor, Any]:
        if x.is_cpu:
            logits, saved = self.one_by_one.forward(x, precision)
            return logits, (None, saved)
        flat, tape = self.side_by_side.forward(x, precision)
        logits = flat.view(x.shape[0], self.members, -1).transpose(0, 1)
        return logits.float() if precision == "bf16" else logits, (flat.dtype, tape)

    def backward(self, grad: Tensor, saved: Any) -> Tensor:
        dtype, tape = saved
        if dtype is None:
            return self.one_by_one.backward(grad, tape)
        return self.side_by_side.backward(grad.to(dtype).transpose(0, 1).flatten(1), tape)


class StackedLinear(Linear):
    """The linear layers of M members, `weight` (M, H, F), on features that all share or that lie side by side."""

    keeps_bfloat16 = False

    def __init__(self, weight: Live, bias: Live) -> None:
        super().__init__(weight, lambda: None if bias() is None else bias().flatten())

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.shape[1] == weight.shape[2]:
            return linear(x, weight.flatten(0, 1), bias)
        y = side_by_side(x, weight.transpose(1, 2))
        return y if bias is None else y.add_(bias)

    def product_back(self, grad: Tensor, weight: Tensor, features: int) -> Tensor:
        if features == weight.shape[2]:
            return linear(grad, weight.flatten(0, 1).t())
        return side_by_side(grad, weight)


class StackedConv2d(Conv2d):
    """The convolutions of M members, `weight` (M, O, C, h, w), on channels that all share or that lie side by side."""

    def __init__(self, weight: Live, bias: Live, *options: Any) -> None:
        super().__init__(lambda: weight().flatten(0, 1), lambda: None if bias() is None else bias().flatten(), *options)
        self.members: int = weight().shape[0]
        self.shared_channels: int = weight().shape[2] * self.groups

    def groups_of(self, channels: int) -> int:
        if channels != self.shared_channels:
            return self.members * self.groups
        if self.groups > 1:
            raise NotLowered("groups in the first convolution of stacked members")
        return 1


class StackedDense:
    """Linear layers and activations of all members at once.

    The first layer's units lie side by side, (B, M H); later layers are batched products, (M, B, H). `layers` are those
    of every member; or one in each place, whose weight is (M, H, F) and whose bias is (M, H), of so many `members`.
    """

    def __init__(
        self, reshapes: Sequence[Step], layers: Sequence[Sequence[Linear]], members: int | None = None
    ) -> None:
        self.reshapes, self.layers = reshapes, layers
        self.activations = [of_members[0].activation for of_members in layers]
        self.joined, self.members = members is not None, members or len(layers[0])
        self.plans: list[Plan] = []  # of the members
        self._kept: tuple[Any, Stack] | None = None
        self._taken: Stack | None = None
        self._idle: list[dict[Any, Tensor]] = []

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        shapes, outputs, buffers = [], [], Buffers(self._idle)
        for reshape in self.reshapes:
            x, shape = reshape.forward(x)
            shapes.append(shape)
        weights, (first, first_back) = self.weights(x)
        fused = kernels.supported(x)  # bias and activation in one pass
        last = len(weights) - 1
        for i, ((weight, bias), activation) in enumerate(zip(weights, self.activations, strict=True)):
            batch, units = x.shape[-2], weight.shape[-2]
            before, after = (None, bias) if fused else (bias, None)
            relu = i == 0 and not fused and activation is not None and activation.name == "relu"
            if i == 0:
                z = linear(x, first, before, relu=relu)
            else:
                shape = (self.members, batch, units)
                z = x.new_empty(shape) if i == last else buffers.get(x, shape, i)  # logits leave this step
                if before is None:
                    torch.bmm(x, weight.transpose(1, 2), out=z)
                else:
                    torch.baddbmm(before.unsqueeze(1), x, weight.transpose(1, 2), out=z)
            if (activation is not None and not relu) or after is not None:
                z = (activation or IDENTITY).over(z, after)
            outputs.append(z)
            x = z if i else z.view(batch, self.members, units // self.members).transpose(0, 1)
        return x, (shapes, outputs, weights, first_back, buffers)

    def backward(self, grad: Tensor, saved: Any) -> Tensor:
        shapes, outputs, weights, first, buffers = saved
        members, rows = grad.shape[:2]
        for i in range(len(weights) - 1, -1, -1):
            weight, activation, output = weights[i][0], self.activations[i], outputs[i]
            if i == 0:
                grad = grad.transpose(0, 1).reshape(rows, weight.shape[0])
            if activation is not None:
                batch = output.shape[-2]
                blocks = (*grad.shape[:-2], batch, rows // max(1, batch), grad.shape[-1])
                activation.towards(grad.view(blocks), output)
            if i == 0:
                grad = linear(grad, first)
            elif i == 1:  # written side by side, as the first layer's units are
                side_by_side = buffers.get(grad, (rows, members, weight.shape[2]), "back", i)
                grad = torch.bmm(grad, weight, out=side_by_side.transpose(0, 1))
            else:
                grad = torch.bmm(grad, weight, out=buffers.get(grad, (members, rows, weight.shape[2]), "back", i))
        for reshape, shape in zip(reversed(self.reshapes), reversed(shapes), strict=True):
            grad = reshape.backward(grad, shape)
        return grad

    def take(self, x: Tensor, precision: str) -> StackedDense:
        """With the weights of now."""
        result = copy.copy(self)
        like = x.new_empty(0, dtype=torch.bfloat16) if precision == "bf16" else x
        result._taken = self.weights(like)
        return result

    def weights(self, x: Tensor) -> Stack:
        """Copies of the weights side by side, in the dtype of `x`; renewed whenever one changed."""
        if self._taken is not None:
            return self._taken
        tensors = [live() for members in self.layers for layer in members for live in (layer.weight, layer.bias)]
        contents, kept = contents_of([t for t in tensors if t is not None]), self._kept
        contents = contents and (x.dtype, contents)
        if kept is None or contents is None or kept[0] != contents:
            self._kept = kept = contents, self._stacked(tensors, x)
        return kept[1]

    def _stacked(self, tensors: list[Tensor | None], x: Tensor) -> Stack:
        pairs = iter(tensors)
        stacked = []
        for i, members in enumerate(self.layers):
            weights, biases = zip(*((next(pairs), next(pairs)) for _ in members), strict=True)
            weight = weights[0] if self.joined else torch.stack(weights)
            bias = biases[0] if self.joined or biases[0] is None else torch.stack(biases)
            if i == 0:
                weight, bias = weight.flatten(0, 1), None if bias is None else bias.flatten()
            stacked.append((as_dtype(weight.detach(), x), as_dtype(None if bias is None else bias.detach(), x)))
        return Stack(stacked, (packed(stacked[0][0]), packed(stacked[0][0].t())))


class Stack(NamedTuple):
    """Weight and bias of each layer, of all members; the first weight also laid out for the ways forward and back."""

    layers: list[tuple[Tensor, Tensor | None]]
    first: tuple[Tensor, Tensor]


class Buffers:
    """Memory for one pass, taken over from an earlier one: fresh memory costs a page fault every 4 KiB.

    Handed back to `idle` when this object dies, which is when nothing refers to the pass any more; so passes that
    overlap, in one thread or several, never share any.
    """

    def __init__(self, idle: list[dict[Any, Tensor]]) -> None:
        self._idle = idle
        try:
            self._tensors = idle.pop()
        except IndexError:
            self._tensors = {}

    def get(self, like: Tensor, shape: tuple[int, ...], *name: Any) -> Tensor:
        """A tensor of `shape` with undefined entries, with the dtype and device of `like`; one for each name."""
        tensor = self._tensors.get(name)
        if tensor is None or (tensor.shape, tensor.dtype, tensor.device) != (shape, like.dtype, like.device):
            with torch.inference_mode(False):  # to be written in any mode
                tensor = self._tensors[name] = torch.empty(shape, dtype=like.dtype, device=like.device)
        return tensor

    def __del__(self) -> None:
        if len(self._idle) < 2:
            self._idle.append(self._tensors)


def stacked(members: Sequence[Lowered]) -> StackedDense | None:
    """All members as one stack, if they are linear layers of one shape throughout, behind the same reshapes."""
    if not all(member.is_lowered for member in members):
        return None
    chains = [member.steps for member in members]
    reshapes = [step for step in chains[0] if isinstance(step, (Flatten, Reshape))]
    count = len(reshapes)
    layers: list[list[Linear]] = []
    for level in zip(*chains, strict=False):
        if len(layers) == 0 and len(level) and all(_same_reshape(step, level[0]) for step in level):
            continue
        dense = [step for step in level if isinstance(step, Linear)]
        if len(dense) < len(level) or any(_layout(step) != _layout(dense[0]) for step in dense):
            return None
        layers.append(dense)
    if not layers or any(len(chain) != count + len(layers) for chain in chains):
        return None
    stack = StackedDense(reshapes, layers)
    stack.plans = [member.plan for member in members]
    return stack


def dense_stack(steps: list[Step], members: int) -> StackedDense | None:
    """All members as one stack, if these steps, whose tensors are theirs stacked, are linear layers behind reshapes."""
    reshapes = [step for step in steps if isinstance(step, (Flatten, Reshape))]
    dense = [step for step in steps if isinstance(step, Linear)]
    return StackedDense(reshapes, [[step] for step in dense], members) if [*reshapes, *dense] == steps else None


def _same_reshape(step: Step, other: Step) -> bool:
    return isinstance(step, (Flatten, Reshape)) and type(step) is type(other) and vars(step) == vars(other)


def _layout(step: Linear) -> Any:
    weight, bias, activation = step.weight(), step.bias(), step.activation
    kind = None if activation is None else (activation.name, activation.slope)
    return weight.shape, weight.dtype, weight.device, None if bias is None else bias.shape, kind
