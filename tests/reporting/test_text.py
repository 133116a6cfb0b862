import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lors_cli.reporting import export, terminal, text
from lors_cli.reporting.table import Table
from lors_cli.tools.report import collect


def test_markdown_is_one_table_with_bold_and_notes(runs: Path) -> None:
    shown = text.markdown(collect([runs]))
    lines = shown.splitlines()
    assert len({line.count("|") for line in lines[:7]}) == 1
    assert sum("**" in line for line in lines[:7]) >= 1
    assert "- bold: the best" in shown
    assert "Left out:" in shown


def test_names_cannot_break_out_of_a_row_or_act_on_a_terminal(evil: Table) -> None:
    for shown in (text.markdown(evil), text.plain(evil), export.as_csv(evil), text.latex(evil)):
        assert "\x1b" not in shown
    assert "\x1b[31m" not in terminal.render(evil, 120)
    table = [line for line in text.markdown(evil).splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert "<script" not in text.markdown(evil)
    rows = list(csv.reader(io.StringIO(export.as_csv(evil))))
    assert len({len(row) for row in rows}) == 1


def test_latex_braces_and_columns_add_up(runs: Path, evil: Table) -> None:
    for table in (collect([runs]), evil):
        shown = text.latex(table)
        plain = re.sub(r"\\[{}&%$#_]", "", shown)
        assert plain.count("{") == plain.count("}")
        for part in shown.split(r"\begin{tabular}")[1:]:
            columns = len(part[: part.index("\n")].strip("{}"))
            rows = [line for line in part.splitlines() if line.endswith(r" \\")]
            assert {re.sub(r"\\&", "", row).count("&") + 1 for row in rows} == {columns}
    assert r"\textbf{" in text.latex(collect([runs]))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(runs: Path, evil: Table, tmp_path: Path) -> None:
    body = text.latex(collect([runs])) + text.latex(evil)
    head = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs,graphicx}\begin{document}"
    (tmp_path / "paper.tex").write_text(f"{head}\n{body}\\end{{document}}\n", encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
