from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from made_runs import CLASSES, NOTE, make
from pages import Page
from sparring import report
from sparring.data import Dataset
from sparring.runs import Run, RunError
from sparring.training import FoolingSet
from sparring.training.metrics import METRICS


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make(tmp_path_factory.mktemp("runs"))[0]


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
    assert page.text.index("Still fooled") < page.text.index("In numbers")
    titles = [metric + METRICS[metric].title for metric in ("0", "1", "2", "3", "4", "5", "8", "9", "10")]
    places = [page.text.index(title) for title in titles]
    assert places == sorted(places)
    for metric in METRICS:  # 6 and 7 were not asked for
        assert (METRICS[metric].meaning in page.text) == (metric not in ("6", "7"))


def test_command_and_settings_are_given(page: Page) -> None:
    assert "sparring retrain --data <made> & more" in page.text  # escaped in the source
    for setting in ("labelling", "p_min", "generations"):
        assert setting in page.text


def test_figures_are_files_too(page: Page, run: Run) -> None:
    figures = list((run.path / "figures").glob("*.png"))
    assert len(figures) == len(page.images)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures)


@pytest.mark.usefixtures("undrawn")
def test_attack_that_never_succeeds_is_called_weak(tmp_path: Path) -> None:
    text = report.write(make(tmp_path, p_min=0.999)[0]).read_text()
    assert "The attack never succeeded" in text
    assert "a weak attack, not of a robust network" in text
    assert "Robust to this process" not in text


def test_uniform_labelling_in_colour(tmp_path: Path) -> None:
    page = Page(report.write(make(tmp_path, shape=(3, 6, 6), labelling="uniform")[0]).read_text())
    assert "exact fake class" not in page.text


@pytest.mark.usefixtures("undrawn")
def test_unfinished_run_has_a_report_too(tmp_path: Path) -> None:
    run, _ = make(tmp_path)
    lines = (run.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run.path / "metrics.jsonl").write_text("".join(lines[:3]))
    assert "Unfinished" in report.write(run).read_text()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("own", "stronger", "headline"),
    [
        (0.5, 0.5, "Still fooled"),
        (0.0, 0.25, "Robust only to the budget it was trained with"),
        (0.0, 0.0, "Robust to this process"),
    ],
)
def test_verdict_says_what_each_budget_found(
    own: float, stronger: float, headline: str, run: Run, tmp_path: Path
) -> None:
    """The same run, with other yields written into the last attack and the verdict."""
    copy = Path(shutil.copytree(run.path, tmp_path / "copy"))
    *records, attack, verdict = run.records()
    attack["0/yield"] = own
    verdict |= {"8/yield": stronger, "fooled": stronger, "robust": stronger == 0}
    (copy / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [*records, attack, verdict]))
    text = Page(report.write(Run.open(copy)).read_text(encoding="utf-8")).text
    assert headline in text
    assert ("Nor did a stronger attack find any, in 48 attempts of 1000 steps" in text) == (stronger == 0)
    assert (f"succeeds in {stronger:.1%}".replace("%", "\xa0%") in text) == (stronger > 0)


@pytest.mark.usefixtures("undrawn")
def test_origin_of_the_images_is_said_where_it_is_not_the_official_one(page: Page, run: Run) -> None:
    assert f"The real images are {NOTE}." in page.text


@pytest.mark.usefixtures("undrawn")
def test_perturbed_images_are_those_of_the_analysis(run: Run, tmp_path: Path) -> None:
    """A network that sees the brightest of four corners: what is laid over a clean image wins once it outshines it."""
    copy = Run.open(shutil.copytree(run.path, tmp_path / "copy"))
    (copy.path / "perturbation.safetensors").unlink()
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, CLASSES, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(100 * torch.eye(CLASSES))
    corners = torch.eye(CLASSES).reshape(CLASSES, 1, 2, 2)
    clean = Dataset("corners", "test", 0.5 * corners, torch.arange(CLASSES), CLASSES)
    made = FoolingSet.judge(model, 0.25 * corners, torch.arange(CLASSES), torch.zeros(CLASSES), p_min=0.9, s_max=1)
    report.keep_perturbation(copy, model, clean, made)
    kept = load_file(copy.path / "perturbation.safetensors")
    same = kept["attack"] == kept["truth"]
    assert same.sum() == CLASSES
    assert bool((kept["alpha"] == torch.where(same, 0.0, 3.0)).all())  # .25 alpha > .5, and 2 makes them equal
    assert len(kept["shown/alpha"]) == 2 * CLASSES
    torch.testing.assert_close(kept["shown/p"], kept["shown/q"] + 3 * kept["shown/r"])
    text = Page(report.write(copy).read_text(encoding="utf-8")).text
    assert "Real images perturbed by fooling images" in text
    report.keep_perturbation(copy, model, clean, made[:0])  # what is there stays
    assert load_file(copy.path / "perturbation.safetensors").keys() == kept.keys()


def test_small_report_is_small(run: Run, page: Page) -> None:
    whole = (run.path / "report.html").stat().st_size
    assert report.write(run, small=True).stat().st_size < whole / 3


def test_run_without_an_epoch_has_none(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "empty", {"retrain": {}, "data": {"classes": 2}})
    with pytest.raises(RunError, match="no finished epoch"):
        report.write(run)


@pytest.mark.timeout(20)
def test_a_pipe_among_a_runs_files_is_not_waited_for(run: Run, tmp_path: Path) -> None:
    path = Path(shutil.copytree(run.path, tmp_path / "run"))
    (path / "real.safetensors").unlink()
    os.mkfifo(path / "real.safetensors")
    with pytest.raises(RunError, match=r"real\.safetensors: expected a file, but it is a named pipe"):
        report.write(Run.open(path))


@pytest.mark.parametrize("found", ["[" * 100_000, "{", "\xff"])
def test_results_of_an_audit_that_are_no_json_are_named(tmp_path: Path, found: str) -> None:
    run = Run.create(tmp_path, "a", {"audit": {}})
    (run.path / "results.json").write_bytes(found.encode("latin1"))
    with pytest.raises(RunError, match=r"results\.json is not valid JSON"):
        report.write(run)


def test_pyplot_is_not_used() -> None:
    code = "import sys, sparring.report, matplotlib.figure; print('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_numbers_in_the_lead_are_those_of_the_log(page: Page, run: Run) -> None:
    attack, verdict = run.records()[-2:]
    for share, count in ((attack["0/yield"], 24), (verdict["8/yield"], 48)):
        said = re.search(rf"([\d.]+)\xa0% of {count} attempts", page.text)
        assert said is not None
        assert float(said[1]) == pytest.approx(100 * share, abs=0.06)
