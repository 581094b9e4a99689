"""Gradients of each example's own loss, and of its logits, towards the input."""

from __future__ import annotations

from sparring.gradients.batched import InputGrad, input_grad, jacobian

__all__ = ["InputGrad", "input_grad", "jacobian"]
