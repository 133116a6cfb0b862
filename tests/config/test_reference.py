from pathlib import Path

from lors_cli.config.reference import page


def test_the_page_in_docs_is_what_the_schema_says() -> None:
    shipped = Path(__file__).parents[2] / "docs/config.md"
    assert shipped.read_text() == page(), "run: python -m lors_cli.config.reference > docs/config.md"
