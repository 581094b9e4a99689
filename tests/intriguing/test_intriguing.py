"""The experiments on a small scale: recipes, tables on constructed cases, and a run that is stopped and goes on."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparring import data
from sparring.intriguing import RECIPES, STAGES, Plan, Recipe, conduct, experiment, paper, tables, train
from sparring.intriguing.autoencoder import train_encoder
from sparring.intriguing.experiment import FGS_ARMS, Findings
from sparring.intriguing.recipes import TrainingError, half, quadratic_decay, with_dropout
from sparring.networks import build
from sparring.training.loop import Checkpoint

TINY = Plan(images=12, train_images=300, epochs=2, units=6, draws=2)


class Memory:
    """A journal that forgets nothing, and may break down after so many checkpoints."""

    def __init__(self, lasts: int = 1000) -> None:
        self.lasts = lasts
        self.saved: Checkpoint | None = None
        self.records: list[dict[str, Any]] = []

    def log(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        self.saved = Checkpoint(copies, json.loads(json.dumps(state)), [*self.records])
        self.lasts -= 1
        if self.lasts == 0:
            raise KeyboardInterrupt

    def restore(self) -> Checkpoint | None:
        return self.saved


@pytest.fixture(scope="module")
def whole() -> tuple[Findings, Memory]:
    """All experiments, on digits."""
    journal = Memory()
    state = torch.random.get_rng_state()
    found = conduct(data.load("digits"), data.load("digits", split="test"), TINY, run=journal)
    assert torch.equal(torch.random.get_rng_state(), state)
    return found, journal


def test_every_stage_leaves_its_numbers(whole: tuple[Findings, Memory]) -> None:
    found, journal = whole
    assert [*found.numbers] == [*STAGES]
    assert [record["stage"] for record in journal.records] == [*STAGES]
    cross = found.numbers["cross-model"]
    assert cross["models"] == [*paper.MODELS]
    for i, name in enumerate(paper.MODELS):
        assert 0.5 < cross["success"][name] <= cross["errors"][name][i]  # some classes lie nowhere in the box
        moved = found.tensors[f"cross-model/{name}"] - found.tensors["originals"]
        expected = moved.double().flatten(1).square().mean(1).sqrt()
        assert torch.allclose(found.tensors[f"cross-model/{name}/distortion"][: len(expected)], expected)
        assert 0 <= cross["distortion"][name] < 0.5
    assert max(cross["distortion"].values()) > 0.01
    assert set(found.numbers["cross-training-set"]["amplified"]) == set(paper.HALVES)
    assert found.numbers["units"]["sigmoid1"]["random"]["count"] == 6
    assert found.numbers["RBF"]["RBF"]["clean"]["error"] <= 1
    assert all(0 <= share <= 1 for share in found.numbers["smoothness"]["optimised"])
    assert [*found.numbers["FGS training"]] == [*FGS_ARMS]


@pytest.mark.parametrize("lasts", [1, len(RECIPES) + len(FGS_ARMS) + 1, len(STAGES) - 1])
def test_a_stopped_run_goes_on_to_the_same_bits(whole: tuple[Findings, Memory], lasts: int) -> None:
    train_set, test = data.load("digits"), data.load("digits", split="test")
    journal = Memory(lasts)
    with pytest.raises(KeyboardInterrupt):
        conduct(train_set, test, TINY, run=journal)
    begun: list[float] = []
    found = conduct(train_set, test, TINY, run=journal, on_progress=lambda now: begun.append(now.done))
    assert begun == [*range(lasts, len(STAGES))]
    assert found.numbers == json.loads(json.dumps(whole[0].numbers))
    assert found.tensors.keys() == whole[0].tensors.keys()
    assert all(torch.equal(tensor, whole[0].tensors[name]) for name, tensor in found.tensors.items())


def test_another_versions_checkpoint_is_refused() -> None:
    journal = Memory()
    journal.saved = Checkpoint({}, {"format": "other", "numbers": {}, "done": 3}, [])
    digits = data.load("digits")
    with pytest.raises(ValueError, match="another version"):
        conduct(digits, digits, TINY, run=journal)
    with pytest.raises(ValueError, match=r"plan.images must be in 1 ... 1\d\d\d"):
        conduct(digits, digits, Plan(images=5000))


# --- recipes ----------------------------------------------------------------------------------------------------------


def test_decay_and_dropout() -> None:
    model = build("sigmoid-100-100", (1, 4, 4), 3)
    squares = sum(
        float(p.detach().double().square().sum()) for name, p in model.named_parameters() if name.endswith("weight")
    )
    assert float(quadratic_decay(model, 0.3).detach()) == pytest.approx(0.12 * squares, rel=1e-5)
    dropped = with_dropout(model, 0.25)
    kinds = [type(layer).__name__ for layer in dropped]
    assert kinds == ["Flatten", "Linear", "Sigmoid", "Dropout", "Linear", "Sigmoid", "Dropout", "Linear"]
    assert with_dropout(model, 0) is model


def test_more_decay_smaller_weights_and_the_same_seed_the_same_network() -> None:
    train_set, test = data.load("digits"), data.load("digits", split="test")
    norms = []
    for decay in (0.0, 1.0):
        model = train("softmax", Recipe("softmax", decay=decay, epochs=3), train_set, test)
        norms.append(float(model.linear1.weight.detach().norm()))
        assert not model.training
    assert norms[1] < 0.8 * norms[0]
    again = train("softmax", Recipe("softmax", decay=1.0, epochs=3), train_set, test)
    assert torch.equal(again.linear1.weight, model.linear1.weight)
    other = train("softmax", Recipe("softmax", decay=1.0, epochs=3), train_set, test, seed=1)
    assert not torch.equal(other.linear1.weight, model.linear1.weight)


def test_a_code_is_trained_without_labels_and_stays() -> None:
    train_set, test = data.load("digits"), data.load("digits", split="test")
    shuffled = data.Dataset("digits", "train", train_set.images, train_set.labels.flip(0), 10)
    recipe = Recipe("sigmoid-400", code=True, epochs=1)
    models = [train("code", recipe, images, test) for images in (train_set, shuffled)]
    assert torch.equal(models[0].linear1.weight, models[1].linear1.weight)
    assert not torch.equal(models[0].linear2.weight, models[1].linear2.weight)
    assert all(p.requires_grad and p.grad is None for p in models[0].parameters())


def test_an_encoder_describes_images_by_few_units() -> None:
    images = data.load("digits").images.flatten(1)
    encoder = build("sigmoid-400", (1, 8, 8), 10).linear1
    state = torch.random.get_rng_state()
    train_encoder(encoder, images, epochs=15, lr=3e-3, sparsity=0.1, pressure=1.0, decay=0.0, corruption=0.2)
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.no_grad():
        code = torch.sigmoid(encoder(images))
    assert float(code.mean()) == pytest.approx(0.1, abs=0.05)
    design = torch.cat([code, torch.ones(len(code), 1)], 1).double()
    left = images.double() - design @ torch.linalg.lstsq(design, images.double()).solution
    assert left.square().mean() < 0.05 * (images - images.mean(0)).double().square().mean()


def test_halves_share_no_image_and_recipes_train_on_theirs() -> None:
    digits = data.load("digits")
    numbered = data.Dataset(
        "digits", "train", torch.arange(len(digits)).float().reshape(-1, 1, 1, 1), digits.labels, 10
    )
    one, two = (half(numbered, part).images.flatten() for part in ("P1", "P2"))
    assert abs(len(one) - len(two)) <= 1
    assert torch.equal(torch.cat([one, two]).sort().values, numbered.images.flatten())
    on_half = train("same", Recipe("softmax", epochs=1, part="P1"), digits, digits[:10])
    alone = train("same", Recipe("softmax", epochs=1), half(digits, "P1"), digits[:10])
    assert torch.equal(on_half.linear1.weight, alone.linear1.weight)


# --- tables -----------------------------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """The logits that are given."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[: len(x)]


def test_mistakes_by_hand() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4]])
    x, labels = torch.zeros(3, 1), torch.tensor([0, 0, 0])
    found = tables.mistakes(Fixed(probabilities.log().tolist()), x, labels)
    assert found.error == pytest.approx(1 / 3)
    assert found.confidence_wrong == pytest.approx(0.7)
    assert found.confidence == pytest.approx((0.9 + 0.7 + 0.6) / 3)
    low = tables.mistakes(Fixed((probabilities / 10).log().tolist()), x, labels, independent=True)
    assert low.confidence_wrong == pytest.approx(0.07)
    assert math.isnan(tables.mistakes(Fixed([[1.0, 0.0]]), x[:1], labels[:1]).confidence_wrong)


def test_distortion_amplified_and_noise() -> None:
    images = torch.full((2, 1, 2, 2), 0.5)
    changed = images.clone()
    changed[0] += 0.2
    assert tables.distortion(changed, images).tolist() == pytest.approx([0.2, 0.0])
    larger = tables.amplified(changed, images, 0.6)
    assert torch.allclose(larger[0], torch.full((1, 2, 2), 1.1))
    assert torch.equal(larger[1], images[1])
    noise = tables.noisy(torch.zeros(100, 1, 10, 10), 0.3)
    assert float(noise.std()) == pytest.approx(0.3, rel=0.02)
    assert torch.equal(noise, tables.noisy(torch.zeros(100, 1, 10, 10), 0.3))


def test_the_sign_method_may_leave_the_box_if_it_is_not_clipped() -> None:
    images, labels = torch.tensor([[0.0, 1.0, 0.5]]), torch.tensor([0])
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -1.0, 1.0], [0.0, 0.0, 0.0]]))
    assert torch.equal(tables.under_fgs(model, images, labels, 0.25), torch.tensor([[0.0, 1.0, 0.25]]))
    beyond = tables.under_fgs(model, images, labels, 0.25, clipped=False)
    assert torch.equal(beyond, torch.tensor([[-0.25, 1.25, 0.25]]))


def test_the_papers_tables_are_whole() -> None:
    assert all(row[i] == 100 for i, row in enumerate(paper.CROSS_MODEL.values()))
    assert [*paper.CROSS_MODEL] == [*paper.MODELS] == [*paper.DISTORTION] == [*paper.TEST_ERROR]
    assert all(len(row) == 6 for row in (*paper.CROSS_MODEL.values(), *paper.NOISE.values()))
    assert all(row[i] == 100 for i, row in enumerate(paper.CROSS_SET.values()))
    assert set(paper.MODELS) <= set(RECIPES)


# --- stages that cannot be computed -----------------------------------------------------------------------------------


def test_a_stage_that_cannot_be_computed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With why, and without what it had begun; so is what needs a network that was not trained. The others are done."""

    def stage(name: str, error: Exception | None = None, needs: str = "") -> Any:
        def run(setting: experiment.Setting) -> None:
            setting.findings.tensors[name] = torch.zeros(1)
            if needs:
                setting.network(needs)
            if error is not None:
                raise error
            setting.findings.numbers[name] = {"done": 1.0}

        return run

    monkeypatch.setattr(experiment, "STAGES", {
        "first": stage("first"),
        "train RBF": stage("train RBF", TrainingError("the loss was not finite")),
        "second": stage("second", ValueError("none is right")),
        "third": stage("third", needs="RBF"),
        "last": stage("last"),
    })  # fmt: skip
    digits, journal, wanted = data.load("digits"), Memory(), {
        "train RBF": "the loss was not finite", "second": "none is right", "third": "there is no network RBF",
    }  # fmt: skip
    found = conduct(digits, digits, TINY, run=journal)
    assert found.left_out == wanted
    assert [*found.numbers] == [*found.tensors] == ["first", "last"]
    assert [record.get("left_out") for record in journal.records] == [None, *wanted.values(), None]
    assert conduct(digits, digits, TINY, run=journal).left_out == wanted  # of a finished run

    stopping = Memory(lasts=3)
    with pytest.raises(KeyboardInterrupt):
        conduct(digits, digits, TINY, run=stopping)
    assert conduct(digits, digits, TINY, run=stopping).left_out == wanted

    def mistake(setting: experiment.Setting) -> None:
        raise TypeError("a mistake in the program")

    monkeypatch.setattr(experiment, "STAGES", {"first": mistake})
    with pytest.raises(TypeError):
        conduct(digits, digits, TINY)


def test_a_network_whose_loss_is_not_finite_is_not_trained() -> None:
    digits = data.load("digits")
    with pytest.raises(TrainingError, match="training of hot: the loss was not finite"):
        train("hot", Recipe("softmax", lr=1e30, decay=1e30, epochs=2), digits, digits[:10])
