from collections.abc import Callable
from pathlib import Path

import pytest

from lors_cli.config.load import load
from lors_cli.errors import RequestError

YAML = """
model: some/model
output_dir: runs/x
prune:
  method: wanda
  sparsity: 2:4
  calibration: {dataset: python-topics}
train: {method: lors, dataset: python-topics, learning_rate: 1e-4, max_steps: 010}
"""


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "c.yaml"
        path.write_text(text)
        return path

    return write


def test_scalars_follow_yaml_1_2(file: Callable[[str], Path]) -> None:
    config = load(file(YAML), [])
    assert config.prune is not None
    assert config.train is not None
    assert str(config.prune.sparsity) == "2:4"
    assert config.train.learning_rate == 1e-4
    assert config.train.max_steps == 10  # 010 is octal in YAML 1.1 only


def test_overrides_have_yaml_values(file: Callable[[str], Path]) -> None:
    overrides = ["prune.sparsity=1:4", "train.learning_rate=3e-5", "train.dataset.limit=7", "eval.tasks=[a, b]"]
    config = load(file(YAML), overrides)
    assert config.prune is not None
    assert config.train is not None
    assert config.eval is not None
    assert str(config.prune.sparsity) == "1:4"
    assert config.train.learning_rate == 3e-5
    assert (config.train.sources["dataset"].path, config.train.sources["dataset"].limit) == ("python-topics", 7)
    assert config.eval.tasks == ["a", "b"]


def test_every_mistake_is_reported_at_once(file: Callable[[str], Path]) -> None:
    path = file(YAML.replace("method: wanda", "method: wand").replace("max_steps", "max_stps") + "sed: 3\n")
    with pytest.raises(RequestError) as caught:
        load(path, ["train.rank=-1"])
    problems = {problem.key: problem for problem in caught.value.problems}
    assert set(problems) == {"prune.method", "train.max_stps", "sed", "train.rank"}
    assert "wanda" in problems["prune.method"].expected
    assert problems["prune.method"].remedy == "did you mean 'wanda'?; `lors methods` describes each"
    assert problems["train.max_stps"].remedy == "did you mean 'max_steps'?"
    assert problems["sed"].remedy == "did you mean 'seed'?"
    assert (problems["train.rank"].file, problems["train.rank"].line) == ("command line", None)
    for key, line in (("prune.method", 5), ("train.max_stps", 8), ("sed", 9)):
        assert (problems[key].file, problems[key].line) == (str(path), line)
    assert f"{path}:9: sed\n" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "key", "line", "remedy"),
    [
        (("rank: 3", "rank: x"), "train.rank", 8, "write such a value for rank, or leave it out, which means 16"),
        (
            ("rank: 3", "dropout: 0.1"),
            "train.dropout",
            8,
            "(on the command line: train.dropout=null), or choose a method that has it: spp",
        ),
        (
            ("2:4", "2:4\n  damping: 1"),
            "prune.damping",
            7,
            "(on the command line: prune.damping=null), or choose a method that has it: sparsegpt",
        ),
        (("sparsity: 2:4", "states: disk"), "prune.sparsity", 4, 'add sparsity: 0.5, or sparsity: "2:4"'),
        (
            ("2:4", "2:4\n  overrides:\n  - {match: a, skip: true}\n  - {match: b}"),
            "prune.overrides[1]",
            9,
            "add skip: true",
        ),
        (("2:4", "2:4\n  overrides: [{mtch: a}]"), "prune.overrides[0].mtch", 7, "did you mean 'match'?"),
        (("output_dir: runs/x", ""), "output_dir", None, "add output_dir: to the file"),
        (("rank: 3", "distill: 1"), "train.distill", 8, "write train.distill: {}"),
        (
            ("{dataset: python-topics}", "&c {dataset: a}\n  input: *c"),
            "prune.input",
            8,
            "write such a value for input",
        ),
        (("rank: 3", "adapter_checkpointing: [1]"), "train.adapter_checkpointing", 8, "which means false"),
    ],
)
def test_each_problem_has_its_key_its_line_and_what_to_write(
    file: Callable[[str], Path], change: tuple[str, str], key: str, line: int | None, remedy: str
) -> None:
    with pytest.raises(RequestError) as caught:
        load(file(YAML.replace("max_steps: 010", "rank: 3").replace(*change)), [])
    problem = next(problem for problem in caught.value.problems if problem.key == key)
    assert problem.line == line
    assert remedy in problem.remedy


def test_a_section_that_was_overridden_is_to_blame_for_what_is_in_it(file: Callable[[str], Path]) -> None:
    with pytest.raises(RequestError, match=r"command line: train\.dataset\.pth"):
        load(file(YAML), ["train.dataset={pth: x}"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("2:4", "5:4"), "0 < N < M"),
        (("2:4", "1.5"), "between 0 and 1"),
        (("1e-4", "-1"), "a number above 0"),
        (("1e-4", ".nan"), "a number above 0"),
        (("method: lors", "method: lors, dropout: 0.1"), "dropout: 0"),
        (("method: lors", "method: spp, init: gradient"), "init: random"),
        (("method: lors", "method: lors, adapter_checkpointing: true"), "does not save"),
        (("max_steps: 010", "max_steps: 1, epochs: 2"), "only one of epochs"),
        (("max_steps: 010", "batch_size: 6, micro_batch_size: 4"), "divides the batch"),
        (("calibration: {dataset: python-topics}", ""), "because wanda looks at activations"),
        (("method: wanda", "method: wanda\n  damping: 0.1"), "no damping"),
        (("model: some/model", ""), "the key is required"),
        (("max_steps: 010", "target_modules: q_proj"), r"a list.*\n.*\n.*write train.target_modules: \[q_proj\]"),
    ],
)
def test_refuses(file: Callable[[str], Path], change: tuple[str, str], expected: str) -> None:
    text = YAML.replace(*change)
    assert text != YAML
    with pytest.raises(RequestError, match=expected):
        load(file(text), [])


@pytest.mark.parametrize("text", ["a: [1", "a: 1\na: 2", "- 1", "", "x: !!python/object:os.system {}", "\tb: 1"])
def test_refuses_what_is_not_a_plain_mapping(file: Callable[[str], Path], text: str) -> None:
    with pytest.raises(RequestError, match="expected"):
        load(file(text), [])


def test_a_mistake_of_yaml_has_its_line(file: Callable[[str], Path]) -> None:
    path = file("a: 1\nb: [1\nc: 2\n")
    with pytest.raises(RequestError, match=rf"{path}:3: CONFIG\n.*YAML 1\.2\n.*expected ',' or ']'"):
        load(path, [])


@pytest.mark.parametrize("override", ["rank", "=3", "train.rank.x=3", "train.rank=[1"])
def test_refuses_faulty_overrides(file: Callable[[str], Path], override: str) -> None:
    with pytest.raises(RequestError, match="command line"):
        load(file(YAML), ["train.rank=4", override])


@pytest.mark.parametrize("written", ["{path: [a.jsonl, b.jsonl]}", "5", "{path: {train: a}}", "true", "[[{path: a}]]"])
def test_a_data_set_is_one_source(file: Callable[[str], Path], written: str) -> None:
    text = YAML.replace("train: {method: lors, dataset: python-topics", f"train: {{method: lors, dataset: {written}")
    with pytest.raises(RequestError) as raised:
        load(file(text), [])
    (problem,) = raised.value.problems
    assert problem.key.startswith("train.dataset")
    assert problem.expected == "one data set: a path as text, or {path: ...}"
    assert "a pattern such as data/*.jsonl" in problem.remedy
    assert "Dataset" not in str(problem)


def test_an_override_changes_only_its_own_section_where_others_share_an_alias(file: Callable[[str], Path]) -> None:
    text = YAML.replace("train: {", "align: &t {").replace("max_steps: 010}", "max_steps: 010}\ntrain: *t")
    config = load(file(text), ["train.rank=4", "train.dataset.limit=3"])
    assert config.train is not None
    assert config.align is not None
    assert (config.train.rank, config.train.sources["dataset"].limit) == (4, 3)
    assert (config.align.rank, config.align.sources["dataset"].limit) == (16, None)


def test_null_leaves_a_key_out(file: Callable[[str], Path]) -> None:
    config = load(file(YAML.replace("max_steps: 010", "rank: 8, max_steps: 2")), ["train.rank=null", "prune=null"])
    assert config.train is not None
    assert (config.train.rank, config.prune) == (16, None)
    assert "rank" not in config.train.model_fields_set
    with pytest.raises(RequestError, match=r"model\n  expected: text: the key is required"):
        load(file(YAML), ["model=null"])
    with pytest.raises(RequestError, match="a known key"):
        load(file(YAML), ["train.rnk=null"])


def test_entries_of_lists_are_overridden_by_their_numbers(file: Callable[[str], Path]) -> None:
    path = file(YAML.replace("2:4", "2:4\n  overrides: [{match: a, skip: true}, {match: b, skip: true}]"))
    for key in ("prune.overrides[1]", "prune.overrides.1"):
        config = load(path, [f"{key}.match=c"])
        assert config.prune is not None
        assert [one.match for one in config.prune.overrides] == ["a", "c"]
    for key in ("prune.overrides[2].match", "prune.overrides.x"):
        with pytest.raises(RequestError, match="the number of an entry, 0 to 1"):
            load(path, [f"{key}=c"])


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["train.batch_size=x", "train.epochs=2"], {"train.batch_size", "train.max_steps"}),
        (["prune.method=structured_random", "prune.states=disk"], {"prune.ratio", "prune.sparsity", "prune.states"}),
        (["train.rank=true", "train.packing=7", "eval.tasks=a"], {"train.rank", "train.packing", "eval.tasks"}),
        (["train.rank=", "x"], {"train.rank", "x"}),
        (["eval={perplexity: {dataset: a, sequence_length: x}}"], {"eval.perplexity.sequence_length"}),
    ],
)
def test_faults_of_several_kinds_are_said_at_once(
    file: Callable[[str], Path], overrides: list[str], keys: set[str]
) -> None:
    with pytest.raises(RequestError) as caught:
        load(file(YAML), overrides)
    assert {problem.key for problem in caught.value.problems} == keys
    assert "unable to parse" not in str(caught.value), "pydantic's words"
    assert " valid " not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xef\xbb\xbfmodle: a\nmodel: b\noutput_dir: c", "did you mean 'model'"),
        ("model: \u00e9".encode("latin1"), "save it as UTF-8"),
        (b"model: a\n---\nmodel: b", "keep one document"),
        (b"model: a\nmodel: b", "remove one of the two"),
        (b"train:\n\trank: 3", "indent with spaces"),
        (b"model: a: b", "a space after each colon"),
        (b"model: @a", "into quotes"),
        (b"architectures: [A]\nhidden_size: 3\nvocab_size: 4", "give the path of a config"),
    ],
)
def test_files_that_are_no_config(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=said):
        load(path, [])
