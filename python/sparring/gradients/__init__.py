"""Gradients of each example's own loss, and of its logits, towards the input."""

from __future__ import annotations

from sparring.gradients.batched import InputGrad, input_grad, jacobian
from sparring.gradients.lowered import Lowered
from sparring.gradients.lowering import lower

__all__ = ["InputGrad", "Lowered", "input_grad", "jacobian", "lower"]
