"""The report of a mixture, and the snapshots that it is made from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from made_mixtures import CLASSES, NOTE, images, make, members
from pages import Page
from sparring import attacks, figures, report
from sparring._text import percent
from sparring.report.mixture import curves, pictures
from sparring.report.mixture.experiment import Experiment
from sparring.report.mixture.snapshots import shown_eps, snapshot
from sparring.runs import Run, RunError
from sparring.training import FitConfig


@pytest.fixture(scope="module")
def run(page_of_a_mixture: Path) -> Run:
    return Run.open(page_of_a_mixture.parent)


@pytest.fixture(scope="module")
def page(page_of_a_mixture: Path) -> Page:
    return Page(page_of_a_mixture.read_text(encoding="utf-8"))


def test_page_is_well_formed_and_self_contained(page: Page) -> None:
    assert page.open == []
    assert page.images
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    texts = [image["alt"] or "" for image in page.images]
    assert all(len(text) > 20 for text in texts)
    assert len(set(texts)) == len(texts)


def test_figures_are_files_too(page: Page, run: Run) -> None:
    names = {path.stem for path in (run.path / "figures").glob("*.png")}
    assert len(names) == len(page.images)
    assert names >= {
        "accuracy_0", "accuracy_by_eps", "members_clean", "members_fgs", "weights", "weights_effective", "images",
        "coverage_real", "coverage_attacked", "filters_first", "filters_last", "losses",
        "histogram_parameter_linear1", "histogram_gradient_linear1",
    }  # fmt: skip


def test_accuracies_come_first(page: Page, run: Run) -> None:
    last = run.records()[-1]
    said = page.text.replace("\xa0", " ")
    clean, attacked = (percent(last[f"{group}/accuracy"]) for group in ("test", "fgs/0.1"))
    assert said.index(f"{clean} clean, {attacked} under FGS at eps 0.1") < said.index("In numbers")
    assert "Before that each was trained by itself for 2 epochs" in said
    table = said[said.index("In numbers") : said.index("Accuracy over time")].split("\n")
    for group, name in (("test", "none, all test images"), ("fgs/0.1", "FGS 0.1"), ("fgs/0.2", "FGS 0.2")):
        first = run.records()[0][f"{group}/accuracy"]
        shares = [first, *(last[f"{group}/{key}"] for key in ("accuracy", "members", "vote"))]
        assert name + "".join(map(percent, shares)) in table


def test_command_settings_and_origin_are_given(page: Page) -> None:
    assert "sparring mixture --data <made> & more" in page.text  # escaped in the source
    assert f"The real images are {NOTE}." in page.text
    for setting in ("weights_lr", "label_smoothing", "pretrain_epochs"):
        assert setting in page.text


@pytest.mark.usefixtures("undrawn")
def test_unfinished_run_has_a_report_too(run: Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run.path, tmp_path / "copy"))
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(lines[:3]))
    assert "Unfinished: 2 of 3 epochs are done" in report.write(Run.open(copy)).read_text()
    (copy / "metrics.jsonl").write_text("")
    with pytest.raises(RunError, match="training has not begun"):
        report.write(Run.open(copy))


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("weaker", "learnt"), [(0.05, True), (0.75, False)])
def test_attack_that_does_less_with_more_is_said(run: Run, tmp_path: Path, weaker: float, learnt: bool) -> None:
    """The same run, trained with eps .2, which 80 % of 40 images withstand, and a share of .1 given."""
    copy = Path(shutil.copytree(run.path, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    config["fit"]["eps"] = 0.2
    (copy / "config.json").write_text(json.dumps(config))
    changed = {"test/accuracy": 0.9, "fgs/0.1/accuracy": weaker, "fgs/0.2/accuracy": 0.8}
    (copy / "metrics.jsonl").write_text("".join(json.dumps(one | changed) + "\n" for one in run.records()))
    summary = report.mixture.story(Run.open(copy))[0]
    assert summary.headline == "90.0 % clean, 80.0 % under FGS at eps\u00a00.2"
    assert summary.good == (not learnt)
    assert any("With the smaller eps 0.1 fewer are right (5.0 %)" in said for said in summary.warnings) == learnt


@pytest.mark.usefixtures("undrawn")
def test_training_that_stopped_is_said(tmp_path: Path) -> None:
    run, _ = make(tmp_path, lr=1e30, optimizer="sgd")
    assert run.records()[-1]["kind"] == "stopped"
    page = Page(report.write(run).read_text(encoding="utf-8"))
    assert "Training stopped: the loss was not finite in epoch 1" in page.text
    assert "Unfinished" not in page.text


@pytest.mark.usefixtures("undrawn")
def test_one_convolutional_network_in_colour_without_an_attack(tmp_path: Path) -> None:
    """No majority, no weights; filters are those of a convolution."""
    run, mixture = make(tmp_path, network="cnn", shape=(3, 6, 6), count=1, epochs=1, attack="none", test_eps=())
    page = Page(report.write(run).read_text(encoding="utf-8"))
    assert "One network (cnn), trained for 1 epoch on real images alone." in page.text
    for absent in ("majority", "Weights over time", "If it may abstain", "FGS 0"):
        assert absent not in page.text
    weight = dict(mixture.named_parameters())["net.conv1.weight"]
    assert torch.equal(Experiment(run).last["filters"], weight[:, :8])


@pytest.mark.usefixtures("undrawn")
def test_shares_answered_begin_and_end_where_they_must(run: Run) -> None:
    """All answered: the accuracies of the table. None but the surest: of those that were kept."""
    found = Experiment(run)
    for picture, group in zip(curves.coverage(found).pictures, ("fgs/0", "fgs/0.1"), strict=True):
        series = picture.draw.keywords["series"]
        for way, key in (("probability", "accuracy"), ("agreement", "vote"), ("votes", "vote")):
            covered, accurate = series[way]
            assert covered == sorted(covered)
            assert covered[-1] == 1
            assert accurate[-1] == pytest.approx(found.end[f"{group}/{key}"])


def test_weights_over_time_are_those_of_every_step(run: Run) -> None:
    found = Experiment(run)
    assert found.weights.shape == (3 * 4 + 1, 3)
    keywords = curves.weights(found).pictures[0].draw.keywords
    assert keywords["xs"].tolist() == pytest.approx(np.linspace(0, 3, 13).tolist())
    assert keywords["ys"] == pytest.approx(found.weights.numpy())
    assert keywords["level"] == ("equal", 1 / 3)


def test_more_budgets_than_colours_are_shown_in_several_figures(run: Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run.path, tmp_path / "copy"))
    eps = [0.1, 0.2, *(round(0.3 + 0.1 * i, 1) for i in range(8))]
    config = json.loads((copy / "config.json").read_text())
    config["fit"]["test_eps"] = eps
    (copy / "config.json").write_text(json.dumps(config))
    records = [
        record | {f"fgs/{e:g}/{k}": 0.5 for e in eps for k in ("accuracy", "members", "vote")}
        for record in run.records()
    ]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    shown = [
        p.draw.keywords["series"] for p in curves.accuracy(Experiment(Run.open(copy))).pictures if p.file[9:].isdigit()
    ]
    assert [name for series in shown for name in series] == ["clean", *(f"FGS {e:g}" for e in eps)]
    assert all(len(series) <= len(figures.LIGHT.series) for series in shown)


def test_snapshot_is_what_the_mixture_does() -> None:
    config = FitConfig(batch_size=16, eps=0.2, alpha=0.3, test_eps=(0.1, 0.2), label_smoothing=0.1)
    mixture, sample = members("mlp", (1, 6, 6), 3).train(), images(count=24)
    mixture.weights.copy_(torch.tensor([0.5, 0.3, 0.2]))
    state = torch.get_rng_state()
    found = snapshot(mixture, sample, config)
    assert mixture.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in mixture.parameters())

    moved = attacks.fgsm(mixture.eval(), sample.images, sample.labels, eps=0.2)
    first = [(sample.labels == c).nonzero()[0, 0] for c in range(CLASSES)]
    assert torch.equal(found["images/attacked"], moved[torch.stack(first)])
    assert found["images/labels"].tolist() == [*range(CLASSES)]
    assert torch.equal(found["logits/attacked"], mixture.member_logits(moved))
    assert torch.equal(found["answers/real"], mixture(found["images/real"]).softmax(1))
    assert torch.equal(found["filters"], mixture.net.linear1.weight[:, :8].view(3, 8, 1, 6, 6))

    def loss(x: torch.Tensor) -> torch.Tensor:
        probabilities = sum(w * mixture.member_logits(x)[i].softmax(1) for i, w in enumerate((0.5, 0.3, 0.2)))
        wanted = 0.9 * F.one_hot(sample.labels[:16], CLASSES) + 0.1 / CLASSES
        return -(wanted * probabilities.log()).sum(1).mean()

    total = 0.3 * loss(sample.images[:16]) + 0.7 * loss(moved[:16])
    (wanted,) = torch.autograd.grad(total, mixture.net.linear3.weight)
    torch.testing.assert_close(found["gradient/linear3"], wanted.flatten())
    assert torch.equal(found["parameter/linear3"], mixture.net.linear3.weight.flatten())


def test_the_budget_that_is_spoken_of() -> None:
    assert shown_eps(FitConfig(eps=0.25, test_eps=(0.1, 0.3, 1.0))) == 0.3
    assert shown_eps(FitConfig(eps=0.3, test_eps=(0.1, 0.3))) == 0.3
    assert shown_eps(FitConfig(test_eps=())) is None


def test_differences_are_drawn_by_their_sign() -> None:
    theme = figures.Theme("test", "#ffffff", "", "", "", ("#0000ff", "#ff0000"), ("", "", ""))
    values = np.array([[0.0, 2.0], [-2.0, 1.0]])
    shown = figures.signed(theme, values, 2.0)
    assert shown.tolist() == [[[1, 1, 1], [0, 0, 1]], [[1, 0, 0], [0.5, 0.5, 1]]]
    assert (figures.signed(theme, 0 * values, 0.0) == 1).all()


def test_wrong_answers_have_a_frame(run: Run) -> None:
    found = Experiment(run)
    answers = {name: found.last[f"answers/{name}"].argmax(1) for name in ("real", "attacked")}
    wrong = int((answers["attacked"] != found.last["images/labels"]).sum())
    section = pictures.attacked(found)
    assert section.pictures[0].text == f"{wrong} of {CLASSES} move the answer away from the class"
    assert section.pictures[0].draw(figures.LIGHT).get_size_inches()[0] > 3
