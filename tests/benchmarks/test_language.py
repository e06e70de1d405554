"""Language tables: rows are kept and found again, rules keep their budget, tables say ties and power."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

import metapeft as mp
from benchmarks import language_tables
from benchmarks.language import glue, glue_data, rows
from metapeft.backbones import sentence_encoder
from metapeft.datasets import tokens
from tests.datasets import tiny_texts

WHERE = {"environment": {"commit": "0123456789", "cpu": "a processor", "threads": 1}, "seconds": 60.0}
GLUE = {"sentences": 9, "epochs": 3, "batch_size": 4, "largest": 8, "total": 24, "precision": "bfloat16"}


def score_row(rule: str, seed: int, score: float) -> dict[str, Any]:
    scores = {"accuracy": score, "positive": 1.0 if rule == "AdaLoRA" else 0.6}
    return {
        "task": "mrpc",
        "row": rule,
        "seed": seed,
        "score": score,
        "scores": scores,
        "settings": GLUE,
        **WHERE,
    }


def test_a_tie_is_called_a_tie_and_a_difference_is_not() -> None:
    made = [score_row("uniform", seed, 0.7 + 0.01 * seed) for seed in range(3)]
    made += [score_row("Fisher", seed, 0.8 + 0.01 * seed + 0.001 * (seed == 1)) for seed in range(3)]
    made += [score_row("random", seed, 0.7 + 0.01 * (2 - seed)) for seed in range(3)]
    made += [score_row("AdaLoRA", 0, 0.68)]
    text = language_tables.glue(made)
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert "+10.03 ± 0.14 |" in lines["Fisher"]
    assert "+0.00 ± 4.97, a tie |" in lines["random"]
    assert lines["AdaLoRA"].endswith("| 68.00 (1) | - |")
    assert "shuffled" not in lines, "a rule without rows"
    assert "MRPC: 3 seeds show a difference of 0.2 to 6.2 points in four of five cases." in text
    assert "All rows called one class alone: AdaLoRA (mrpc, seed 0)." in text


def test_power_is_that_of_drawn_tests() -> None:
    """Of paired t-tests on draws at that very difference, four of five find it, as far as t quantiles say it."""
    import torch
    from scipy.stats import ttest_1samp

    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(4000, 5, generator=generator, dtype=torch.float64)
    at = language_tables.detectable(
        [float(value) for value in (-1.2649, -0.6325, 0.0, 0.6325, 1.2649)]
    )  # s = 1
    share = float((ttest_1samp((draws + at).numpy(), 0.0, axis=1).pvalue < 0.05).mean())
    assert 0.75 < share < 0.87


def test_a_row_is_kept_and_one_of_other_settings_refused(tmp_path: Path) -> None:
    path = tmp_path / "glue-mrpc-uniform-0.json"
    assert not rows.kept(path, {"epochs": 3})
    rows.write(path, {"epochs": 3}, {"score": 0.5})
    assert rows.kept(path, {"epochs": 3})
    assert json.loads(path.read_text())["score"] == 0.5
    with pytest.raises(ValueError, match="was measured with epochs=3, not 4"):
        rows.kept(path, {"epochs": 4})
    assert [row["score"] for row in rows.rows("glue", tmp_path)] == [0.5]


def test_every_table_has_a_command() -> None:
    for name in ("intents", "glue", "controls", "entities", "generation"):
        assert callable(importlib.import_module(f"benchmarks.language.{name}").run)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of PEFT's own
def test_glue_goes_on_and_rules_keep_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchmetrics", reason="pip install 'metapeft[metrics]'")
    pytest.importorskip("peft", reason="pip install 'metapeft[peft]'")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("METAPEFT_DATA", str(tmp_path))
    folder = tiny_texts.encoder(tmp_path / "encoder")
    for module in (sentence_encoder, tokens):
        monkeypatch.setattr(module, "encoder_folder", lambda: folder)
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "language")
    for name, value in {"LARGEST": 2, "LAYERS": 4, "TOTAL": 4, "BATCH": 4}.items():
        monkeypatch.setattr(glue, name, value)
    data = tmp_path / "text" / "MRPC"
    data.mkdir(parents=True)
    lines = [f"{number % 2}\t1\t2\tlost card\t{('my', 'the')[number % 2]} loan" for number in range(12)]
    for part in ("train", "dev"):
        (data / f"{part}.tsv").write_text("\n".join(["Quality\tid\tid\tone\ttwo", *lines]))
    glue.run(("mrpc",), seeds=1, rules=("Fisher",), sentences=10)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "language").iterdir()}
    glue.run(("mrpc",), seeds=1, sentences=10)
    found = {row["row"]: row for row in rows.rows("glue", tmp_path / "language")}
    assert set(found) == set(glue.RULES)
    for rule, row in found.items():
        if rule not in ("head only", "AutoLoRA, threshold", "rank 8", "AdaLoRA"):
            assert sum(row["ranks"].values()) == 4, rule
    assert all((tmp_path / "language" / name).stat().st_mtime_ns == when for name, when in before.items())
    assert "| Fisher |" in language_tables.of_language(tmp_path)


def test_parts_of_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(rows: Any, *given: Any, **more: Any) -> Any:
        return rows

    monkeypatch.setenv("METAPEFT_DATA", str(tmp_path))
    monkeypatch.setattr(mp, "TextData", read, raising=False)
    folder = tmp_path / "text" / "RTE"
    folder.mkdir(parents=True)
    lines = [f"{number}\tone {number}\ttwo\tentailment" for number in range(20)]
    for part in ("train", "dev"):
        (folder / f"{part}.tsv").write_text("\n".join(["index\ts1\ts2\tlabel", *lines]))
    parts = glue_data.parts("rte", 0, sentences=10)
    assert (len(parts.all), len(parts.fit), len(parts.choose), len(parts.dev)) == (10, 8, 2, 20)
    assert parts.fit + parts.choose == parts.all
    assert parts.all != glue_data.parts("rte", 1, sentences=10).all
    assert parts.dev[0] == {"text": "one 0", "text_pair": "two", "label": "entailment"}
