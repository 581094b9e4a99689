from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparring import report
from sparring.data import Dataset
from sparring.runs import Run, RunError
from sparring.training import RetrainConfig, retrain
from sparring.training.config import Labelling

CLASSES = 4


@dataclass(frozen=True)
class Made:
    images: Tensor
    stop_step: Tensor


def noise(model: nn.Module, targets: Tensor, shape: tuple[int, ...], *, generator: torch.Generator) -> Made:
    """Random points; with p_min below chance some of them qualify."""
    images = (torch.rand(len(targets), *shape, generator=generator) < 0.2).float()
    return Made(images, torch.ones(len(targets), dtype=torch.int64))


def make(
    folder: Path, *, p_min: float = 0.05, shape: tuple[int, ...] = (1, 6, 6), labelling: Labelling = "fake"
) -> Run:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % CLASSES
    real = Dataset("made", "train", torch.rand(40, *shape, generator=generator), labels, CLASSES)
    config = RetrainConfig(
        labelling=labelling, generations=3, pretrain_epochs=1, epochs=1, images=12, fresh=12, p_min=p_min, s_max=0.9
    )
    run = Run.create(
        folder,
        "made",
        {
            "command": "sparring retrain --data <made> & more",
            "data": {"name": "made", "classes": CLASSES},
            "retrain": asdict(config),
        },
    )
    report.keep_reference(run, real)
    with run:
        retrain(real, real, "mlp", config, generate=noise, run=run)
    return run


class Page(HTMLParser):
    """The parts of a page that are checked."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.sources: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.sources += [value or "" for key, value in attrs if key in ("src", "srcset", "href")]
        if tag == "img":
            self.images.append(values)
        if tag not in ("img", "meta", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def page(run: Run) -> Page:
    return Page(report.write(run).read_text(encoding="utf-8"))


def test_page_is_well_formed_and_self_contained(page: Page) -> None:
    assert page.open == []
    assert page.images
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)


def test_every_image_says_what_it_shows(page: Page) -> None:
    texts = [image["alt"] or "" for image in page.images]
    assert all(len(text) > 20 for text in texts)
    assert len(set(texts)) == len(texts)


def test_verdict_comes_first_and_every_metric_has_a_section(page: Page, run: Run) -> None:
    verdict = run.records()[-1]
    assert not verdict["robust"]
    assert page.text.index("Still fooled") < page.text.index("The images")
    for title in ("0Does the attack", "2Images it was just", "3Images of earlier", "4Fresh images", "5Fresh images",
                  "9, 10Real images"):  # fmt: skip
        assert title in page.text


def test_command_and_settings_are_given(page: Page) -> None:
    assert "sparring retrain --data <made> & more" in page.text  # escaped in the source
    for setting in ("labelling", "p_min", "generations"):
        assert setting in page.text


def test_figures_are_files_too(page: Page, run: Run) -> None:
    figures = list((run.path / "figures").glob("*.png"))
    assert len(figures) == len(page.images)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures)


def test_attack_that_never_succeeds_is_called_weak(tmp_path: Path) -> None:
    text = report.write(make(tmp_path, p_min=0.999)).read_text()
    assert "The attack never succeeded" in text
    assert "a weak attack, not of a robust network" in text
    assert "Robust to this process" not in text


def test_uniform_labelling_in_colour(tmp_path: Path) -> None:
    page = Page(report.write(make(tmp_path, shape=(3, 6, 6), labelling="uniform")).read_text())
    assert "exact fake class" not in page.text


def test_unfinished_run_has_a_report_too(tmp_path: Path) -> None:
    run = make(tmp_path)
    lines = (run.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run.path / "metrics.jsonl").write_text("".join(lines[:3]))
    assert "Unfinished" in report.write(run).read_text()


def test_run_without_an_epoch_has_none(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "empty", {"retrain": {}, "data": {"classes": 2}})
    with pytest.raises(RunError, match="no finished epoch"):
        report.write(run)


def test_pyplot_is_not_used() -> None:
    code = "import sys, sparring.report, matplotlib.figure; print('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_numbers_in_the_lead_are_those_of_the_log(page: Page, run: Run) -> None:
    verdict = run.records()[-1]
    share = re.search(r"([\d.]+) % of 24 attempts", page.text)
    assert share is not None
    assert float(share[1]) == pytest.approx(100 * verdict["8/yield"], abs=0.06)
