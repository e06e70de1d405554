"""The tables of README.md and docs/ are what the result files say."""

import pytest

from benchmarks import tables


@pytest.mark.parametrize("path", tables.PAGES, ids=lambda path: path.name)
def test_the_page_shows_the_result_files(path):
    page, text = path.read_text(encoding="utf-8"), tables.PAGES[path]()
    assert tables.filled(page, text) == page, "run python -m benchmarks.tables"
    assert tables.filled(page.replace(text, ""), text) == page
