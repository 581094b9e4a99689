"""The report in a real browser, on a screen and on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import made_intriguing
from browser import Browser
from made_runs import make
from sparring import report

pytestmark = pytest.mark.browser

PHONE = 390
OF_A_MIXTURE = {
    *("accuracy_0", "accuracy_by_eps", "members_clean", "members_fgs", "weights", "weights_effective", "losses"),
    *("coverage_real", "coverage_attacked", "images", "filters_first", "filters_last"),
    *(f"histogram_{kind}_linear{i}" for kind in ("parameter", "gradient") for i in (1, 2, 3)),
}
OF_INTRIGUING = {
    *("distorted", "cross-model", "cross-training-set", "smoothness"),
    *(f"units-sigmoid{i}-{kind}" for kind in ("units", "random") for i in (1, 2)),
}
SOME = {
    *(
        "images_before",
        "images_during",
        "images_after",
        "bins_before",
        "bins_during",
        "bins_after",
        "0_yield",
        "0_bins",
    ),
    *("1_distance", "1_max_prob", "histogram_prob", "histogram_sparsity", "losses_0", "losses_1", "8_classes"),
    *(
        f"{metric}_{what}"
        for metric in ("2", "3", "4", "5", "6", "7-de", "7-prox", "9", "10")
        for what in ("curves", "classes")
    ),
    *("6_images", "7-de_images", "7-prox_images", "selection", "perturbation_shares"),
}
FIGURES = "[...document.images].map(i => [i.alt, i.naturalWidth, i.clientWidth])"
ALL_LOADED = "Promise.all([...document.images].map(i => { i.loading = 'eager'; return i.decode(); })).then(() => true)"
# Boxes that reach beyond a phone's window, unless they are inside of one that scrolls by itself.
SPILLS = (
    "[...document.querySelectorAll('main *')].filter(e => !e.parentElement.closest('.scroll') && "
    f"e.getBoundingClientRect().right > {PHONE} + .5).map(e => e.outerHTML.slice(0, 99))"
)


@pytest.fixture(scope="module", params=["retrain", "mixture", "intriguing"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every metric in it."""
    if request.param == "mixture":
        made: Path = request.getfixturevalue("page_of_a_mixture")
        return made
    if request.param == "intriguing":
        return report.write(made_intriguing.make(tmp_path_factory.mktemp("runs")), small=True)
    others = {"other_images": 4, "other_steps": 2, "other_p_min": 0.05}
    run, _ = make(tmp_path_factory.mktemp("runs"), independent=True, independent_epochs=1, **others)
    return report.write(run, small=True)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("width", [PHONE, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_every_figure_is_there_and_said_in_words(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.show(page, width, dark=dark)
    assert browser.evaluate(ALL_LOADED)
    figures = browser.evaluate(FIGURES)
    names = {path.stem for path in (page.parent / "figures").glob("*.png")}
    assert len(figures) == len(names)
    assert names >= SOME or names in (OF_A_MIXTURE, OF_INTRIGUING)
    assert all(len(alt) > 20 and natural > 100 and 0 < shown <= width for alt, natural, shown in figures)
    assert browser.complaints == []


def test_phone_scrolls_down_only(browser: Browser, page: Path) -> None:
    browser.show(page, PHONE)
    assert browser.evaluate("innerWidth") == PHONE
    assert browser.evaluate("document.documentElement.scrollWidth") == PHONE
    assert browser.evaluate(SPILLS) == []


def test_a_page_that_is_wrong_is_found_out(browser: Browser, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.html"
    wrong.write_text(
        "<!doctype html><meta name=viewport content='width=device-width'><main><p style='width:999px'>wide</p></main>"
        "<img src='data:image/png;base64,AAAA'><script>console.error('wrong')</script>"
    )
    browser.show(wrong, PHONE)
    assert len(browser.evaluate(SPILLS)) == 1
    assert browser.evaluate(FIGURES)[0][:2] == ["", 0]
    assert any("wrong" in complaint for complaint in browser.complaints)
    browser.complaints.clear()
