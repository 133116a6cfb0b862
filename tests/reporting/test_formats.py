"""The same table in every format: what is read back is what was measured, and no name can break out of its cell."""

import csv
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lors_cli.reporting import data, latex, notes, page, text
from lors_cli.reporting.table import Table
from lors_cli.tools.report import collect
from tests.reporting.synthetic import LOSSES, edit_json, make_run

EVIL = "</title><script>alert('x')</script>|$x_1^2$\\%&#~{\"[*\x1b[31m"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three runs of one group, and one that was edited by hand."""
    for number, (method, rank) in enumerate((("lors", 16), ("spp", 16), ("lora", 8))):
        losses = {**LOSSES, "merged": [loss + 100 * number for loss in LOSSES["merged"]]}
        make_run(tmp_path / f"run{number}", train={"method": method, "rank": rank}, losses=losses)
    edited = make_run(tmp_path / "edited", train={"rank": 2})
    edit_json(edited / "eval/results.json", models__merged__perplexity__value=1.0)
    return tmp_path


@pytest.fixture
def evil(tmp_path: Path) -> Table:
    answers = {name: {EVIL: [1, 0, 1, 1], "other": [1, 1, 0, 1]} for name in ("dense", "pruned", "merged")}
    for rank in (2, 4):
        run = make_run(
            tmp_path / f"r{rank}",
            model=f"/models/{EVIL.replace('/', ' ')}",
            train={"method": EVIL, "rank": rank},
            answers=answers,
            losses=LOSSES,
            keep_items=False,
        )
        edit_json(run / "eval/lors.json", command=f"lors eval {EVIL}", hardware={"gpu": EVIL})
    return collect([tmp_path])


class Page(HTMLParser):
    """Collects the tags of a page, their attributes, and the text of its table's cells."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.rows: list[list[str]] = []
        self._cell = False
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data


def test_csv_has_plain_numbers_and_where_they_come_from(runs: Path) -> None:
    table = collect([runs])
    rows = list(csv.DictReader(io.StringIO(data.as_csv(table))))
    assert [row["kind"] for row in rows] == ["dense", "pruned", "tuned", "tuned", "tuned"]
    spp = next(row for row in rows if row["method"] == "wanda + spp r=16")
    measured = json.loads((runs / "run1/eval/results.json").read_text())["models"]["merged"]
    assert float(spp["arc_easy"]) == measured["tasks"]["arc_easy"]["acc"]
    assert float(spp["arc_easy error"]) == measured["tasks"]["arc_easy"]["acc_stderr"]
    assert float(spp["perplexity"]) == measured["perplexity"]["value"]
    assert float(spp["tokens"]) == 1_000_000
    assert spp["run"] == str(runs / "run1")
    assert spp["digest"] == measured["digest"]
    assert spp["eval_digest"] == json.loads((runs / "run1/eval/lors.json").read_text())["digest"]
    assert spp["hardware"] == "machine x86_64, cpu_threads 2"


def test_json_has_tests_provenance_and_what_was_left_out(runs: Path) -> None:
    found = json.loads(data.as_json(collect([runs])))
    assert [one["path"] for one in found["left_out"]] == [str(runs / "edited")]
    tests = {(test["column"], test["this"]): test for test in found["tests"]}
    perplexity = tests["perplexity", "wanda + spp r=16"]
    assert (perplexity["tested"], perplexity["test"], perplexity["different"]) == (True, "bootstrap", True)
    assert 0 < perplexity["low"] <= perplexity["difference"] <= perplexity["high"]
    accuracy = tests["arc_easy", "wanda + spp r=16"]
    assert (accuracy["p"], accuracy["only_this"], accuracy["only_best"], accuracy["items"]) == (1.0, 0, 0, 8)
    row = found["groups"][1]["rows"][1]
    assert set(row["provenance"][0]["stages"]) == {"prune", "train", "merge", "eval"}
    assert row["provenance"][0]["stages"]["train"]["versions"]["torch"] == "2.13.0"
    assert row["provenance"][0]["settings"]["train"]["learning_rate"] == 2e-5


def test_infinities_are_strict_json(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", losses={"dense": [4000.0], "pruned": [4000.0], "merged": [1e6]})
    shown = data.as_json(collect([run]))
    json.loads(shown, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_markdown_is_one_table_with_bold_and_notes(runs: Path) -> None:
    shown = text.markdown(collect([runs]))
    lines = shown.splitlines()
    assert len({line.count("|") for line in lines[:7]}) == 1
    assert sum("**" in line for line in lines[:7]) >= 1
    assert "- bold: the best" in shown
    assert "Left out:" in shown


def test_csv_of_mixed_settings_says_them_in_the_names(runs: Path) -> None:
    other = make_run(runs / "run3", train={"rank": 64}, settings={"dtype": "bfloat16"})
    header = data.as_csv(collect([runs])).splitlines()[0]
    assert other.is_dir()
    for dtype in ("float32", "bfloat16"):
        assert f"arc_easy (dtype {dtype})" in header


def test_the_page_is_complete_asks_for_nothing_and_is_the_same_each_time(runs: Path) -> None:
    content = page.render(collect([runs]))
    assert content == page.render(collect([runs]))
    assert "http" not in re.sub("http-equiv", "", content)
    found = Page(content)
    assert not {"script", "link", "img", "iframe", "image", "object", "base"} & set(found.tags)
    assert not {"src", "srcset", "onload", "onclick", "action"} & {name for name, _ in found.attributes}
    references = [value for name, value in found.attributes if name in ("href", "xlink:href")]
    assert references
    assert all((value or "").startswith("#") for value in references)
    assert "url(" not in content.replace("url(#", "")
    titles = re.findall("<h3>(.*?)</h3><svg", content)
    assert titles == [
        *("Loss", "Held-out perplexity over training steps", "Accuracy, llama-7b", "Sparsity per module"),
        "Perplexity against memory",
    ]
    assert found.tags.count("details") == 5
    assert 'method: "wanda"' in content.replace("&quot;", '"')
    assert "lors train config.yaml" in content
    assert str(runs / "edited") in content


def test_names_cannot_break_out_of_the_page(evil: Table) -> None:
    content = page.render(evil)
    found = Page(content)
    assert "script" not in found.tags
    assert found.tags.count("title") == 1
    assert any("<script>alert('x')</script>" in cell for row in found.rows for cell in row)
    assert len({len(row) for row in found.rows}) == 1
    assert "\x1b" not in content


def test_names_cannot_break_out_of_a_row_or_act_on_a_terminal(evil: Table) -> None:
    for shown in (text.markdown(evil), text.plain(evil), data.as_csv(evil), latex.render(evil)):
        assert "\x1b" not in shown
    assert "\x1b[31m" not in text.terminal(evil, 120)
    table = [line for line in text.markdown(evil).splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert "<script" not in text.markdown(evil)
    rows = list(csv.reader(io.StringIO(data.as_csv(evil))))
    assert len({len(row) for row in rows}) == 1


def test_a_wide_terminal_table_is_cut_into_several_with_the_names_in_each(runs: Path) -> None:
    table = collect([runs])
    plain = re.sub("\x1b\\[[0-9;]*m", "", text.terminal(table, 80))
    drawn = plain[: plain.index("*:")].splitlines()
    assert all(len(line) <= 80 for line in drawn)
    assert sum("wanda + spp r=16" in line for line in drawn) >= 3
    for heading in table.headings:
        assert heading.name in plain


def test_latex_braces_and_columns_add_up(runs: Path, evil: Table) -> None:
    for table in (collect([runs]), evil):
        shown = latex.render(table)
        plain = re.sub(r"\\[{}&%$#_]", "", shown)
        assert plain.count("{") == plain.count("}")
        for part in shown.split(r"\begin{tabular}")[1:]:
            columns = len(part[: part.index("\n")].strip("{}"))
            rows = [line for line in part.splitlines() if line.endswith(r" \\")]
            assert {re.sub(r"\\&", "", row).count("&") + 1 for row in rows} == {columns}
    assert r"\textbf{" in latex.render(collect([runs]))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(runs: Path, evil: Table, tmp_path: Path) -> None:
    body = latex.render(collect([runs])) + latex.render(evil)
    head = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs,graphicx}\begin{document}"
    (tmp_path / "paper.tex").write_text(f"{head}\n{body}\\end{{document}}\n", encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]


def test_every_mark_is_explained(runs: Path) -> None:
    table = collect([runs])
    explained: dict[str, Any] = dict(notes.of(table))
    for heading in table.headings:
        assert not heading.mark or heading.mark in explained
    for entry in table.entries:
        assert all(mark in explained for mark in entry.marks)
    assert any(text.startswith("≈") for _, text in notes.of(table))
