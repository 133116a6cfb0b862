"""Templates that reach for Python, for time or for memory, as lm-eval renders them."""

import signal
from typing import Any

import lm_eval.utils
import pytest
from jinja2.exceptions import SecurityError, UndefinedError
from PIL import Image

from lors_cli.evaluation import templates

DOC = {"question": "why", "choices": ["a", "b"], "answer": 1}


def render(template: str, **doc: Any) -> str:
    with templates.sandboxed():
        return str(lm_eval.utils.apply_template(template, {**DOC, **doc}))


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'] }}",
        "{{ ''|attr('__class__') }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ lipsum.__globals__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{% set f = '{0.__class__}'.format %}{{ f(1) }}",
        "{{ ('{0.__class__}'|attr('format'))(1) }}",
        "{{ [1]|sort(attribute='__class__.__name__') }}",
        "{{ [{'a': 1}]|sum(attribute='a.__class__') }}",
        "{{ dict.__base__ }}",
        "{{ choices.append(1) }}",
        "{{ question.__class__ }}",
    ],
)
def test_nothing_of_python_is_reached(template: str) -> None:
    with pytest.raises(SecurityError):
        render(template)


def test_objects_of_a_data_set_have_no_methods(tmp_path: Any) -> None:
    with pytest.raises(SecurityError, match="save"):
        render(f"{{{{ image.save('{tmp_path}/x.png') }}}}", image=Image.new("RGB", (1, 1)))
    assert not [*tmp_path.iterdir()]


def test_ranges_and_recursion_have_an_end() -> None:
    with pytest.raises(OverflowError):
        render("{{ range(10**9)|list }}")
    with pytest.raises(RecursionError):
        render("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}")


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ ('a' * 40 ~ 'b')|regex_replace('(a+)+$', '') }}",
    ],
)
def test_time_has_an_end(monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    monkeypatch.setattr(templates, "SECONDS", 0.2)
    with pytest.raises(SecurityError, match="takes longer"):
        render(template)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10**10 }}",
        "{{ question.ljust(10**10) }}",
        "{% set all = namespace(a='a') %}{% for i in range(60) %}{% set all.a = all.a ~ all.a %}{% endfor %}",
    ],
)
@pytest.mark.skipif(not hasattr(signal, "SIGPOLL"), reason="macOS does not bound memory")
def test_memory_has_an_end(template: str) -> None:
    with pytest.raises(SecurityError, match="of memory"):
        render(template)


@pytest.mark.parametrize(
    "template",
    [
        "Question: {{question}}\n",
        "{{choices.index('b')}}",
        "{% for c in choices %}{{loop.index}}: {{c.strip()}}{% endfor %}",
        "{{ question|regex_replace('w', 'W')|trim }}",
        "{% set all = namespace(n=0) %}{% for c in choices %}{% set all.n = all.n + 1 %}{% endfor %}{{ all.n }}",
        "{{ '{:>5}'.format(question) }}{{ choices[answer] }}",
    ],
)
def test_what_tasks_need_is_the_same(template: str) -> None:
    assert render(template) == lm_eval.utils.apply_template(template, DOC)


def test_absent_fields_are_errors_as_before() -> None:
    with pytest.raises(UndefinedError):
        render("{{ absent }}")
