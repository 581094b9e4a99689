"""Audit a torch model of your own: as a library, with an attack of your own, and ready for the command.

    python examples/audit_your_model.py

Trains a small network on the digits of scikit-learn (a few seconds), evaluates it, and writes its weights for

    sparring audit digits_net.safetensors --arch examples/audit_your_model.py:DigitsNet --data digits
"""

from __future__ import annotations

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp


class DigitsNet(nn.Module):
    """Any module from images to logits will do. This one scales its input itself; else, pass `preprocessing`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.hidden = nn.Linear(16 * 4 * 4, 64)
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv((x - 0.3) / 0.38)), 2)
        return self.out(F.relu(self.hidden(x.flatten(1))))


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int = 15) -> None:
    """Train as one would anywhere."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            loss = F.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def brighter(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """An attack of your own: a function of model, images and labels. This one only makes the images brighter."""
    return (x + eps).clamp(0, 1)


def main() -> None:
    torch.manual_seed(0)
    training, test = sp.data.load("digits", split="train"), sp.data.load("digits", split="test")[:100]
    model = DigitsNet()
    train(model, training.images, training.labels)

    attacks = [
        brighter,
        "fgsm",
        ("pgd", {"steps": 20, "restarts": 2}),  # a name and its options
        "apgd-ce",
        "apgd-t",
    ]
    found = sp.evaluate(model, test.images, test.labels, attacks, norm="Linf", eps=0.1)
    print(found)

    hardest = found.robust.nonzero()[:, 0]  # which images withstood everything
    print(f"\n{len(hardest)} of {len(test)} images withstood, the first of them number {hardest[:5].tolist()}")

    save_file(model.state_dict(), "digits_net.safetensors")


if __name__ == "__main__":
    main()
