from __future__ import annotations

import pytest
import torch

from sparring.training.labelling import FakeClasses, Uniform, labels_for


def test_fake_classes() -> None:
    labels = FakeClasses(3)
    classes = torch.tensor([0, 2])
    assert labels.outputs == 6
    assert labels.real(classes).argmax(1).tolist() == [0, 2]
    assert labels.fooling(classes).argmax(1).tolist() == [3, 5]

    logits = torch.full((3, 6), -20.0)
    logits[0, 3] = logits[1, 5] = logits[2, 1] = 20.0  # exact fake class, another fake class, a real one
    values = labels.detection(logits, torch.tensor([0, 0, 0]))
    assert values["caught"].tolist() == [True, True, False]
    assert values["caught_exact"].tolist() == [True, False, False]
    torch.testing.assert_close(values["prob_fake"], torch.tensor([1.0, 0.0, 0.0]))


def test_uniform() -> None:
    labels = Uniform(4)
    classes = torch.tensor([0, 3])
    assert labels.outputs == 4
    torch.testing.assert_close(labels.fooling(classes), torch.full((2, 4), 0.25))

    probabilities = torch.tensor([[0.28, 0.24, 0.24, 0.24], [0.31, 0.23, 0.23, 0.23]])
    values = labels.detection(probabilities.log(), classes)
    assert values["caught"].tolist() == [True, False]
    torch.testing.assert_close(values["max_prob"], torch.tensor([0.28, 0.31]))


@pytest.mark.parametrize("labelling", ["fake", "uniform"])
def test_wanted_probabilities_sum_to_one(labelling: str) -> None:
    labels = labels_for(labelling, 10)
    classes = torch.arange(10)
    for wanted in (labels.real(classes), labels.fooling(classes)):
        assert wanted.shape == (10, labels.outputs)
        torch.testing.assert_close(wanted.sum(1), torch.ones(10))
