"""The report in a real browser: sliders are moved, numbers read back and held against the ledger and the width curve."""

import json
import re

import pytest
from browser import opened

from bitsback.config import load_run
from bitsback.model import width_curve
from bitsback.report.widths import FACTORS


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with its report, as `bitsback train` leaves it."""
    from test_readme import ROOT

    from bitsback.config import Experiment, load_config
    from bitsback.report import write_report

    directory = tmp_path_factory.mktemp("runs") / "digits"
    config = load_config(ROOT / "configs" / "digits_conv.yaml", ["training.epochs=12", "ledger.samples=5"])
    experiment = Experiment.build(config)
    experiment.train(directory, progress=False)
    write_report(directory, experiment=experiment)
    return directory


def bits(page, name):
    """The number behind an output, and that it is shown as that number."""
    place = page.locator(f"output#{name}")
    exact, shown = float(place.get_attribute("data-bits")), place.inner_text()
    digits = re.sub(r"[^0-9.]", "", shown)
    if not shown.endswith(("→", "K", "M", "B")):
        assert float(digits) == pytest.approx(abs(exact), abs=0.5 if abs(exact) >= 100 else 0.05)
    return exact


def slide(page, name, place):
    page.locator(f"#{name}").fill(str(place))


def test_the_width_slider_shows_the_ledger_and_the_width_curve(run):
    book = json.loads((run / "ledger.json").read_text())
    experiment = load_run(run).experiment()
    curve = width_curve(experiment.model, experiment.likelihood, experiment.dataset.train, samples=5, factors=(0.25, 2.0, 8.0))
    with opened(run / "report.html") as page:
        assert page.locator("#width-factor").inner_text().endswith("1, as trained")
        for name, key in [("net", "net_bits"), ("data", "data_bits"), ("gross", "gross_weight_bits"), ("refund", "refund_bits"),
                          ("net-weights", "net_weight_bits")]:  # fmt: skip
            assert bits(page, f"width-{name}") == pytest.approx(book[key], rel=1e-9)
        markers = {}
        for factor, expected in curve.items():
            slide(page, "width-slider", FACTORS.index(factor))
            assert bits(page, "width-net") == pytest.approx(expected.net_bits, rel=1e-6)
            assert bits(page, "width-data") == pytest.approx(expected.data_bits, rel=1e-6)
            assert bits(page, "width-net-weights") == pytest.approx(expected.net_weight_bits, rel=1e-6)
            net = bits(page, "width-gross") - bits(page, "width-refund")
            assert net == pytest.approx(expected.net_weight_bits, rel=1e-6)
            marker = page.locator("#width-marker")
            markers[factor] = float(marker.get_attribute("cx")), float(marker.get_attribute("cy"))
        assert markers[0.25][0] < markers[2.0][0] < markers[8.0][0]
        assert markers[8.0][1] < markers[2.0][1]  # higher up: more bits
        page.locator("#width-reset").click()
        assert bits(page, "width-net") == pytest.approx(book["net_bits"], rel=1e-9)


def test_the_bells_follow_the_slider_and_the_chosen_weight(run):
    with opened(run / "report.html") as page:
        numbers = json.loads(page.locator("#numbers").text_content())
        bell = numbers["bells"][2]
        page.locator("#bell-picker").select_option("2")
        drawn = page.locator("#posterior-bell").get_attribute("d")
        slide(page, "width-slider", FACTORS.index(2.0))
        assert page.locator("#posterior-bell").get_attribute("d") != drawn
        said = page.locator("#bell-said").inner_text()
        net_bits = float(re.search(r"= net ([0-9.]+) bits", said).group(1))
        assert net_bits == pytest.approx(bell["bits"][FACTORS.index(2.0)]["net_weight_bits"], abs=0.051)
        stated = float(re.search(r"std ([0-9.,]+)\.", said).group(1).replace(",", ""))
        assert stated == pytest.approx(2 * bell["std"], rel=6e-3)


def test_a_finer_grid_costs_a_bit_a_weight_and_gives_it_back(run):
    book = json.loads((run / "ledger.json").read_text())
    with opened(run / "report.html") as page:
        before = None
        for place in (0, 1, 5, 16):
            slide(page, "grid-slider", place)
            gross, refund, net = (bits(page, f"grid-{name}") for name in ("gross", "refund", "net"))
            assert net == pytest.approx(book["net_weight_bits"], rel=1e-9)
            assert gross - refund == pytest.approx(net, rel=1e-9)
            assert gross == pytest.approx(book["gross_weight_bits"] + place * book["weights"], rel=1e-9)
            shown = page.locator("#grid-step").inner_text()
            assert shown != before
            before = shown


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, False), (390, True)])
def test_it_fits_a_phone_and_a_desk_and_can_be_photographed(run, width, dark, tmp_path):
    with opened(run / "report.html", width=width, dark=dark) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        picture = page.screenshot(full_page=True, path=tmp_path / "page.png")
        assert len(picture) > 20_000
        ink, paper = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
        lightness = [sum(int(part) for part in re.findall(r"\d+", colour)[:3]) for colour in (ink, paper)]
        assert (lightness[0] > lightness[1]) == dark


def test_the_page_answers_what_a_reader_asks(run):
    book = json.loads((run / "ledger.json").read_text())
    with opened(run / "report.html") as page:
        assert page.locator("#sentence").inner_text() == load_run(run).ledger().sentence()
        said = page.locator("#answers").inner_text()
        assert "What did the model cost?" in said
        assert f"{book['refund_bits']:,.0f} of the {book['gross_weight_bits']:,.0f} gross bits" in said
        assert "twice as wide" in said
        assert "Which prior was cheapest?" in said


def test_the_readmes_picture_is_made_by_its_script(run, tmp_path, monkeypatch, capsys):
    from test_scripts import run as run_script

    with opened(run / "report.html"):  # skips where there is no browser
        pass
    run_script(monkeypatch, capsys, "report_picture.py", run, "-o", tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
