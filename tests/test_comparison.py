"""The comparison: what is best, what is published, its pictures, and report.html in a browser."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from trees import SEEDS, accuracy, made, only, ours, train_and_new, write_transfer

from datasets.catalogue import BENCHMARKS
from orthcr.reports.comparison import compare, costs_of, headline
from orthcr.reports.page import Entry, figure, grid, page, section
from orthcr.reports.pictures import styles_of
from orthcr.reports.published import BASE_TO_NEW, main_data_sets

HOSTILE = '<script>document.title = "hacked"</script><b title="x">&amp; $x_{$'
NAMES = "chromium-headless-shell chromium chromium-browser google-chrome chrome headless_shell".split()
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)


# ------------------------------------------------------------------ tables


def test_the_best_is_bold(tmp_path):
    for method, base, new in (("A", 80.0, 50.0), ("B", 80.0, 70.0), ("C", 30.0, 20.0)):
        for dataset in ("EuroSAT", "OxfordPets"):
            for seed in (1, 2):
                train_and_new(tmp_path, method, dataset, seed, base + seed, new - seed)
    table = only(tmp_path)
    rows = {tuple(cell.strip() for cell in line.split("|")[1:3]): line for line in table.grid("github").splitlines()}
    assert rows["Pets", "A"].count("**") == 2 and "**81.50 ± 0.50**" in rows["Pets", "A"], "of equals all"
    assert rows["Pets", "B"].count("**") == rows["average", "B"].count("**") == 6 and "**" not in rows["Pets", "C"]
    assert "**" not in str(table) and len(table.best) == 3 * 4
    (tmp_path / "one").mkdir()
    train_and_new(tmp_path / "one", "A", "EuroSAT", 1, 80.0, 50.0)
    assert only(tmp_path / "one").best == [], "there is no other"


def test_an_average_over_fewer_data_sets_is_not_the_best(tmp_path):
    for dataset in ("EuroSAT", "OxfordPets"):
        train_and_new(tmp_path, "A", dataset, 1, 50.0, 50.0)
    train_and_new(tmp_path, "B", "EuroSAT", 1, 90.0, 90.0)
    table = only(tmp_path)
    assert {(cell.method, cell.target) for cell in table.best} == {("B", "EuroSAT")}
    assert "90.00*" in table.text()


def whole_benchmark(root, methods=("CoOp", "Mine"), **more):
    for row in main_data_sets():
        for seed in SEEDS:
            for method in methods:
                train_and_new(root, method, row.name, seed, accuracy(), accuracy(), **more)


def test_published_averages(tmp_path):
    """Beside ours where they are of the same: all 11 data sets, ViT-B/16, 16 shots."""
    whole_benchmark(tmp_path / "all")
    table = only(tmp_path / "all")
    lines = table.text().splitlines()
    (mine,) = [line for line in lines if "average" in line and " CoOp " in line]
    assert " / ".join(f"{x:.2f}" for x in BASE_TO_NEW["CoOp"]) == "82.69 / 63.22 / 71.66" in mine
    assert sum("82.69 / " in line for line in lines) == 1 and "not of these runs" in lines[-1]
    (other,) = [line for line in lines if "average" in line and " Mine " in line]
    assert other.rstrip(" │").endswith("│") or " / " not in other

    shutil.rmtree(tmp_path / "all" / "EuroSAT")
    assert not only(tmp_path / "all").published
    whole_benchmark(tmp_path / "other", backbone="RN50")
    assert not only(tmp_path / "other").published
    assert {cell.method for cell in table.cells} == {"CoOp", "Mine"}, "no published figure is among ours"


def test_published_harmonic_means_are_those_of_the_averages():
    """To the rounding of the three."""
    for trainer, (base, new, h) in BASE_TO_NEW.items():
        assert h == pytest.approx(2 * base * new / (base + new), abs=0.01), trainer
    assert BASE_TO_NEW["OrthSR"] == (83.82, 76.55, 80.02)


def test_published_averages_of_the_transfers(tmp_path):
    on = ("ImageNet", "all", 16, 1)
    for row in BENCHMARKS:
        if not row.embedded:
            of = row.name == "ImageNet"
            ours(tmp_path / ("m" if of else f"m/{row.name}"), "MaPLe", on, row.name, "all", 50.0, eval_only=not of)
    (xd, dg), _ = made(tmp_path)
    assert (xd.published["MaPLe"], dg.published["MaPLe"]) == ({"average": 66.30}, {"average": 60.27})
    shutil.rmtree(tmp_path / "m" / "ImageNetA")
    assert [bool(table.published) for table in made(tmp_path)[0]] == [True, False]


def test_costs_are_of_the_most_shots(tmp_path):
    for shots, seconds in ((1, 10.0), (4, 40.0)):
        for seed in SEEDS:
            on = ("EuroSAT", "all", shots, seed)
            folder = tmp_path / f"{shots}_{seed}"
            ours(folder, "CoOp", on, "EuroSAT", "all", 10.0 * shots, seconds=seconds + seed, trainable_params=shots)
    ours(tmp_path / "z", "ZeroshotCLIP", None, "EuroSAT", "all", 50.0, seconds=3.0)
    table = only(tmp_path)
    assert costs_of(table) == {"ZeroshotCLIP": (0, 0.0), "CoOp": (4, 42.0)}
    name, cells = headline(table)
    assert name == "accuracy at 4 shots on EuroSAT"
    assert {method: cell.mean for method, cell in cells.items()} == {"ZeroshotCLIP": 50.0, "CoOp": 40.0}


# ------------------------------------------------------------------ pictures


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """All four protocols, 11 methods, one of them hostile; and its comparison in `out`."""
    root = tmp_path_factory.mktemp("tree")
    write_transfer(root / "transfer")
    for k, method in enumerate(["CoOp", HOSTILE, *(f"Method{k}" for k in range(8))]):
        for dataset in ("EuroSAT", "OxfordPets"):
            for seed in SEEDS:
                more = {"trainable_params": 10**k, "seconds": 2.0**k}
                train_and_new(
                    root / "b" / str(k), "M" if "/" in method else method, dataset, seed, accuracy(), 50, **more
                )
                on = (dataset, "all", 4, seed)
                ours(root / "f" / str(k) / dataset / str(seed), method, on, dataset, "all", accuracy(), **more)
    for dataset in ("EuroSAT", "OxfordPets"):
        for classes in ("base", "new"):  # of all classes it is in the transfers
            folder = root / "z" / dataset / classes
            ours(folder, "ZeroshotCLIP", None, dataset, classes, accuracy(), seconds=1.0, trained=False)
    shutil.rmtree(root / "b" / "0" / "EuroSAT" / "CoOp" / "seed3")
    compare([root], root / "out")
    return root


def test_every_picture_is_there(tree):
    drawn = {path.stem for path in (tree / "out").glob("*.png")}
    kinds = {slug: {path.removeprefix(slug) for path in drawn if path.startswith(slug)} for slug in ("base2new", "few")}
    assert kinds["base2new"] == {"_16shots", "_16shots_plane", "_16shots_gain", "_16shots_costs"}
    assert kinds["few"] == {"shot", "shot_gain", "shot_costs"}
    assert {"xd_ImageNet_16shots_gain", "dg_ImageNet_16shots_gain"} <= drawn
    for path in (tree / "out").glob("*.png"):
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("L"), float)
        assert pixels.std() > 10 and min(pixels.shape) > 100, path
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (border > 250).all(), f"{path} is cut off"


def test_no_two_methods_are_drawn_alike(tree):
    styles = styles_of([cell for table in made(tree)[0] for cell in table.cells])
    assert len(styles) >= 12 and len({(style["color"], style["marker"]) for style in styles.values()}) == len(styles)
    assert len({(style["color"], style["hatch"]) for style in styles.values()}) == len(styles)


# ------------------------------------------------------------------ the page


def test_the_page_is_self_contained_and_escaped(tree):
    text = (tree / "out" / "report.html").read_text()
    assert HOSTILE not in text and "&lt;script&gt;document.title" in text
    assert text.count("<script") == 1 and not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert "CoOp on EuroSAT, base: seed 3 is missing" in text


def test_what_a_page_is_made_of(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    rows = [[Entry("x<y"), Entry("50.00 ± 1.00", 50.0, True), Entry("")]]
    parts = [grid(["m", "<p>", "q"], rows, "c", is_folded=True), figure(tmp_path / "a.png", '"')]
    body = section("a & b", parts, ["<i>"])
    text = page("T<", "t", [body])
    for piece in ("<title>T&lt;</title>", "a &amp; b", "x&lt;y", "<details><summary>c</summary>", "<li>&lt;i&gt;</li>"):
        assert piece in text
    assert '<td data-value="50"><b>50.00 <small>± 1.00</small></b></td><td></td>' in text and 'alt="&quot;"' in text


PROBE = """<script>
addEventListener("load", () => {
  const found = { inner: innerWidth, title: document.title, tables: [] };
  document.querySelectorAll("details").forEach(each => each.open = true);
  for (const table of document.querySelectorAll("table")) {
    const button = table.tHead.rows[0].cells[1].querySelector("button"), seen = [];
    const column = () => [...table.tBodies[0].rows].map(row => row.cells[1].dataset.value ?? null);
    button.focus();
    seen.push(document.activeElement === button);
    for (const turn of [1, 2]) { button.click(); seen.push(column(), button.parentNode.ariaSort); }
    table.tHead.rows[0].cells[0].querySelector("button").click();
    seen.push([...table.tBodies[0].rows].map(row => row.cells[0].textContent));
    found.tables.push(seen);
  }
  found.wide = document.documentElement.scrollWidth;
  found.images = [...document.images].every(image => image.naturalWidth > 0);
  const result = document.createElement("pre");
  result.id = "found";
  result.textContent = JSON.stringify(found);
  document.body.append(result);
});
</script>"""


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium here; Debian: apt install chromium-headless-shell")
@pytest.mark.parametrize("width", [400, 1400])
def test_in_a_browser(tree, tmp_path, width):
    """Nothing overflows, the console is silent, columns sort from the keyboard's focus, all pictures are there."""
    probed = tmp_path / "report.html"
    probed.write_text((tree / "out" / "report.html").read_text() + PROBE)
    words = (
        f"--headless --no-sandbox --disable-gpu --enable-logging=stderr --window-size={width},900 --dump-dom".split()
    )
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run([CHROMIUM, *words, profile, probed.as_uri()], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr
    found = json.loads(re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1].replace("&amp;", "&")
                       .replace("&lt;", "<").replace("&gt;", ">"))  # fmt: skip
    assert found["inner"] == width and found["wide"] <= width, "it overflows"
    assert found["title"] == "Comparison of methods" and found["images"] and len(found["tables"]) >= 6
    for focused, down, first, up, second, names in found["tables"]:
        assert focused and (first, second) == ("descending", "ascending")
        for values, sign in ((down, -1), (up, 1)):
            numbers = [float(value) for value in values if value is not None]
            assert numbers == sorted(numbers, key=lambda x, s=sign: s * x)
            assert None not in values[: len(numbers)], "empty ones come last"
        assert names == sorted(names, key=str.casefold)
