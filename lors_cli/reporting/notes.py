"""What a reader must know to read the table: how each column was measured, what marks mean, what was not tested."""

from collections import defaultdict

from lors_cli.evaluation import paired
from lors_cli.reporting import columns, compare, runs
from lors_cli.reporting.columns import ACCURACY, AVERAGE, OTHER, PERPLEXITY, Column
from lors_cli.reporting.lines import NEGLIGIBLE, RECOVERY
from lors_cli.reporting.rows import Row, clean
from lors_cli.reporting.table import Heading, Table, line_notes

BEST, TIED = "*", "≈"
MOST = 5  # names in a note
TESTS = {
    compare.MCNEMAR: "McNemar's exact test on the same items for accuracies",
    compare.BOOTSTRAP: "a paired bootstrap over the windows of text for perplexity",
    compare.Z_TEST: "a paired z-test for averages and metrics that are not binary",
    compare.WELCH: "Welch's t-test over seeds",
}


def of(table: Table, best: str = BEST) -> list[tuple[str, str]]:
    """The notes, each with the mark that it explains, which is empty for those about the whole.

    Args:
        table: the table.
        best: how the best of a group is marked where the notes will stand.

    """
    marked = [(h.mark, h.key.column) for h in table.headings if h.mark and h.key.column and h.key.kind != RECOVERY]
    notes = [(mark, _difference(column, table)) for mark, column in marked]
    notes += sorted(line_notes(table).items(), key=lambda pair: int(pair[0]))
    notes += [("", text) for text in (*_marks(table, best), *_errors(table), *_conditions(table), *_costs(table))]
    notes += [("", text) for text in table.seed_notes]
    return notes + [("", text) for text in _untested(table)]


def left_out(table: Table) -> list[str]:
    """What the report leaves out, and why."""
    return [
        clean(f"{', '.join(map(str, paths))}: {reason} ({remedy})")
        for reason, remedy, paths in runs.by_reason(table.left_out)
    ]


def _difference(column: Column, table: Table) -> str:
    """What tells a column from others of its name."""
    if column.kind == AVERAGE:
        letters = {h.key.column: h.mark for h in table.headings if h.key.kind == ACCURACY}
        over = [f"{clean(part.name)}{f' [{letters[part]}]' if letters.get(part) else ''}" for part in column.over]
        return f"average over {', '.join(over)}; only for models that have all of them"
    return f"{clean(column.name)} with {distinction(column, table)}"


def distinction(column: Column, table: Table) -> str:
    """The settings of a column that differ from those of others of its name; empty if there is not another one."""
    alike = [h.key.column for h in table.headings if h.key.column and h.key.kind == column.kind]
    alike = [other for other in alike if other.name == column.name]
    if len(alike) < 2 or column.kind == AVERAGE:
        return ""
    settings = dict(column.settings)
    words = [f"{key} {settings.get(key, 'unknown')}" for key in columns.differing(alike)]
    if column.text and len({other.text for other in alike}) > 1:
        words.insert(0, f"text {column.text}")
    return clean(", ".join(words))


def _marks(table: Table, best: str) -> list[str]:
    cells = [cell for entry in table.entries for cell in entry.cells]
    notes = []
    if any(cell.best for cell in cells):
        notes.append(f"{best}: the best of the tuned models of its group, where there are several.")
    tests = dict.fromkeys(test.comparison.test for test in table.tests if test.comparison.test)
    if tests:
        names = "; ".join(TESTS[test] for test in tests)
        notes.append(
            f"{TIED}: not told from that best one at the level {paired.LEVEL:g} by {names}. Tuned models without the"
            " mark that were tested differ from it. Nothing is corrected for the number of tests."
        )
    return notes


def _errors(table: Table) -> list[str]:
    if not any(cell.value and cell.value.error is not None for entry in table.entries for cell in entry.cells):
        return []
    several = any(len(entry.line.rows) > 1 for entry in table.entries)
    over = ", and the standard deviation over runs in lines that say how many seeds they are over" if several else ""
    return [f"± is the standard error of the measurement on its items{over}."]


def _conditions(table: Table) -> list[str]:
    """How the columns were measured."""
    notes = []
    tasks = [h for h in table.headings if h.key.kind in (ACCURACY, OTHER) and h.key.column]
    if tasks:
        notes.append(f"Accuracies in percent. Tasks: {'; '.join(_task(heading, table) for heading in tasks)}.")
        recorded = {str((row.runs[0].results.get("versions") or {}).get("lm_eval", "?")) for row in _rows(table)}
        notes.append(f"lm-eval {' and '.join(sorted(recorded))}{', mixed' if len(recorded) > 1 else ''}.")
    for heading in table.headings:
        if heading.key.kind == PERPLEXITY and heading.key.column:
            settings = dict(heading.key.column.settings)
            mark = f" [{heading.mark}]" if heading.mark else ""
            notes.append(
                f"P{heading.name[1:]}{mark}: {clean(heading.key.column.text)}, {heading.key.column.samples},"
                f" {settings['predicted tokens']} predicted, {settings['dtype']}."
            )
    if any(heading.key.kind == RECOVERY for heading in table.headings):
        little = f"{NEGLIGIBLE:.1%} of the dense model's number"
        notes.append(f"Recovery: (tuned - pruned) / (dense - pruned), where pruning lost more than {little}.")
    return notes


def _task(heading: Heading, table: Table) -> str:
    measures = [row.measures[column] for row in _rows(table) if (column := heading.key.column) in row.measures]
    totals = {measure.entry.get("total") for measure in measures} - {None}
    settings = dict(heading.key.column.settings) if heading.key.column else {}
    mark = f" [{heading.mark}]" if heading.mark else ""
    of = "".join(f" of {total}" for total in totals if str(total) != settings["items"])
    return clean(
        f"{heading.name}{mark} {settings['metric']}, {settings['shots']} shots, {settings['items']}{of} items,"
        f" version {settings['version']}, {settings['dtype']}"
    )


def _costs(table: Table) -> list[str]:
    costs = [(row.cost, row) for row in _rows(table)]
    notes = []
    if any(cost.reduction for cost, _ in costs):
        notes.append("Reduction: parameters of the original for each one of the model that was trained.")
    if any(cost.model_parameters for cost, _ in costs):
        notes.append("Parameters: of models that structured pruning made smaller.")
    counted = {cost.embeddings for cost, _ in costs if cost.trainable and cost.parameters}
    if counted:
        both = "all parameters of the trained model, embeddings included"
        linears = "the parameters of the blocks' linears"
        of = both if counted == {True} else linears if counted == {False} else f"{both}, where it is gone of {linears}"
        notes.append(f"Trainable parameters, and ‰ of {of}.")
    places = {cost.on_gpu for cost, _ in costs if cost.peak_bytes is not None}
    if places == {True, False}:
        gpu = _some([row.runs[0].directory.name for cost, row in costs if cost.peak_bytes is not None and cost.on_gpu])
        notes.append(f"Peak memory in training: of the GPU for {gpu}, else of the process on the host; not comparable.")
    elif places:
        notes.append(f"Peak memory in training: of the {'GPU' if True in places else 'process on the host'}.")
    return notes


def _untested(table: Table) -> list[str]:
    """Why some lines were not compared with the best one."""
    reasons: dict[str, dict[str, None]] = defaultdict(dict)
    for test in table.tests:
        if test.comparison.reason:
            reasons[test.comparison.reason][f"{test.this} and {test.best} ({clean(test.column.name)})"] = None
    return [f"Not tested, because {reason}: {_some(list(pairs))}." for reason, pairs in reasons.items()]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return "; ".join(names[:MOST]) + more


def _rows(table: Table) -> list[Row]:
    return [row for entry in table.entries for row in entry.line.rows]
