"""What `recover` lowers: a loss of each image's own, and L1 penalties on what chosen modules give."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from sparring import losses
from sparring.attacks._model import answered
from sparring.gradients import Lowered, lower
from sparring.gradients.batched import asked, spans_of

Penalty = Literal["none", "input", "all", "hidden"]
Loss = Literal["ce", "margin"]


class Value(NamedTuple):
    """Gradient of each image's objective, like the images; the objective, and the log-probability of the target, (B,).

    The gradient leaves out the penalty on the image itself, which the descent adds.
    """

    grad: Tensor
    loss: Tensor
    log_prob: Tensor


class Objective:
    """``loss + lam sum_l weight_l |activation_l|_1 / numel_l`` of each image, numel_l being that of one activation.

    Parameters
    ----------
    model
        Held still meanwhile.
    hidden
        Weight of each penalised module, by its name in ``dict(model.named_modules())``. Without any, gradients come
        from the lowered model, else from autograd.
    targets
        All that it will be asked for, int64 (N,).
    """

    def __init__(self, model: nn.Module, hidden: Mapping[str, float], targets: Tensor) -> None:
        self.model, self.hidden = model, hidden
        self._spans = spans_of(targets, None)
        self._taken: Lowered | None = None  # with the weights of the first call

    def __call__(self, image: Tensor, targets: Tensor, by_margin: Tensor, lam: float) -> Value:
        """Value at the images, whose loss is minus the margin where `by_margin` (bool (B,)), and else ``-log p``."""
        ask = self._penalised if self.hidden else self._plain
        if bool(by_margin.all()) or not bool(by_margin.any()):
            return ask(image, targets, "margin" if bool(by_margin.any()) else "ce", lam)
        whole = Value(torch.empty_like(image), *(image.new_empty(len(image)) for _ in range(2)))
        for rows, loss in ((by_margin, "margin"), (~by_margin, "ce")):
            for field, part in zip(whole, ask(image[rows], targets[rows], loss, lam), strict=True):
                field[rows] = part
        return whole

    def log_prob(self, image: Tensor, targets: Tensor) -> Tensor:
        """Log-probability of each image's target, (B,)."""
        return -losses.evaluate("ce", answered(self.model, image), targets)

    def _plain(self, image: Tensor, targets: Tensor, loss: str, lam: float) -> Value:
        # With the target in the label's place, what an attack raises is what is lowered here.
        if self._taken is None:
            self._taken = lower(self.model).take(image)
        found = asked(self._taken, image, targets, loss, None, self._spans)
        return Value(found.grad, found.loss, _log_prob(found.logits, targets))

    def _penalised(self, image: Tensor, targets: Tensor, loss: str, lam: float) -> Value:
        with torch.enable_grad(), _l1_norms(self.model, self.hidden, len(image)) as norms:
            leaf = image.detach().requires_grad_()
            logits = self.model(leaf.clone())
            value = losses.evaluate(loss, logits, targets)
            for name, weight in self.hidden.items():
                value = value + lam * weight * norms[name]
            (grad,) = torch.autograd.grad(value.sum(), leaf)
        return Value(grad, value.detach(), _log_prob(logits.detach(), targets))


def weights(penalty: Penalty | Mapping[str, float], model: nn.Module, image: Tensor) -> tuple[float, dict[str, float]]:
    """Weight of the image's own penalty, and of each penalised module's; `image` (B, ...) is for a trial."""
    if isinstance(penalty, str):
        if penalty not in get_args(Penalty):
            accepted = ", ".join(repr(mode) for mode in get_args(Penalty))
            raise ValueError(f"penalty must be {accepted} or a mapping from names to weights; got {penalty!r}")
        hidden = hidden_modules(model, image) if penalty in ("all", "hidden") else []
        if penalty == "hidden" and not hidden:
            raise ValueError("penalty 'hidden' finds no hidden layer in the model; name modules instead")
        return float(penalty in ("input", "all")), dict.fromkeys(hidden, 1.0)
    names = [name for name, _ in model.named_modules() if name]
    for name, weight in penalty.items():
        if name != "input" and name not in names:
            raise ValueError(f"penalty names {name!r}; accepted: {', '.join(repr(n) for n in ('input', *names))}")
        if not 0 <= weight < math.inf:
            raise ValueError(f"penalty must have weights of at least 0, and finite; got {weight!r} for {name!r}")
    chosen = {name: float(weight) for name, weight in penalty.items() if weight > 0}
    own = chosen.pop("input", 0.0)
    with torch.no_grad(), _l1_norms(model, chosen, len(image)) as norms:
        model(image.clone())
    for name in chosen:
        if name not in norms:
            raise ValueError(f"penalty names {name!r}, which the model does not call")
    return own, chosen


def hidden_modules(model: nn.Module, image: Tensor) -> list[str]:
    """Names of the hidden layers, in the order in which they are called.

    They are the modules that are activation functions; in a model that has none, which applies functions instead, all
    modules with parameters of their own and no submodules, but the last that is called. What gives the model's output
    is not hidden.
    """
    called: dict[str, Any] = {}
    leaves = [(name, module) for name, module in model.named_modules() if name and not [*module.children()]]

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, args, output: called.update({name: output})

    with torch.no_grad(), _hooks([(module, note(name)) for name, module in leaves]):
        output = model(image.clone())
    modules = dict(leaves)
    activations = [name for name in called if type(modules[name]).__module__ == nn.ReLU.__module__]
    if activations:
        return [name for name in activations if called[name] is not output]
    return [name for name in called if [*modules[name].parameters()]][:-1]


@contextmanager
def _l1_norms(model: nn.Module, names: Mapping[str, float], batch: int) -> Iterator[dict[str, Tensor]]:
    """Fill a dict, while the model runs, with ``|activation|_1 / numel`` of each image, (B,), by the module's name.

    A module that is called more than once counts each time.
    """
    norms: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or output.shape[:1] != (batch,):
                what = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(f"penalty names {name!r}, which must give a tensor ({batch}, ...), but gave {what}")
            # A product with the signs rather than abs, which would keep what the next layer may overwrite in place.
            norm = (output * output.detach().sign()).flatten(1).sum(1) / output[0].numel()
            norms[name] = norms[name] + norm if name in norms else norm

        return hook

    modules = dict(model.named_modules())
    with _hooks([(modules[name], note(name)) for name in names]):
        yield norms


@contextmanager
def _hooks(hooks: list[tuple[nn.Module, Callable[[nn.Module, Any, Any], None]]]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _log_prob(logits: Tensor, targets: Tensor) -> Tensor:
    log_prob = -losses.value("ce", logits, targets)
    if not bool(log_prob.isfinite().all()):
        raise ValueError("model must return finite logits; it gave a target a log-probability that is not finite")
    return log_prob
