"""The README's table is what the result files say."""

from benchmarks import tables


def test_the_readme_shows_the_result_files():
    readme = (tables.ROOT / "README.md").read_text(encoding="utf-8")
    assert tables.filled(readme) == readme, "run python -m benchmarks.tables"
    assert tables.filled(readme.replace(tables.generated(), "")) == readme
