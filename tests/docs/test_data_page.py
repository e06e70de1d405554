"""The blocks of docs/data.md run, and its table has every data set that is read from files."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from metapeft.datasets.table import registry

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
MADE_UP = {"glyphs", "glyph-pairs", "coloured-glyphs", "functions", "sinusoid"}
SAID = ["torch.Size([4, 25, 3, 28, 28])", "5-way 1-shot", "[5, 5, 5]", "('single',) torch.Size([4, 20, 16])"]


@pytest.mark.parametrize(("block", "said"), list(zip(BLOCKS, SAID, strict=True)))
def test_blocks_run(
    block: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "block.py").write_text(block, encoding="utf-8")
    runpy.run_path(str(tmp_path / "block.py"))
    assert said in capsys.readouterr().out


def test_the_table_has_every_data_set() -> None:
    rows = set(re.findall(r"^\| `([\w-]+)` \|", PAGE, flags=re.M))
    assert rows == set(registry.names) - MADE_UP - {"omniglot-pairs"}
