"""The commands: bad input is a sentence, a violated bound an exit code."""

import json
import subprocess
import sys
from functools import partial

import pytest

from theory import cli
from theory.checks import command as verify
from theory.checks import residual


def theory(*arguments):
    command = [sys.executable, "-m", "theory", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--help",), 0, "figures"),
        (("figures", "--out", "/nowhere", "--only", "z"), 2, "unknown figure"),
        (("verify", "--seed", "-1", "--json", "/nowhere/x.json"), 2, "does not exist"),
        (("figures", "--out", "x", "--protocol", "published"), 2, "protocol"),
    ],
)
def test_commands_answer_bad_input_with_a_sentence(arguments, code, words):
    done = theory(*arguments)
    assert done.returncode == code
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_violated_bound_fails_the_command(tmp_path, monkeypatch, capsys):
    """With one wrong claim among the checks the command exits 1, and the JSON says which."""
    wrong = partial(residual.best_loss, instances=3, constant=1.0)
    wrong.__name__ = "best_loss"
    for check, code in ((wrong, 1), (partial(wrong, constant=0.5), None)):
        check.__name__ = "best_loss"
        monkeypatch.setattr(verify, "all_checks", lambda check=check: [check])
        if code:
            with pytest.raises(SystemExit) as stopped:
                cli.verify(json=tmp_path / "found.json")
            assert stopped.value.code == code
        else:
            cli.verify(json=tmp_path / "found.json")
        found = json.loads((tmp_path / "found.json").read_text())
        assert found["seconds"] > 0
        (row,) = found["checks"]
        assert row["passed"] == (code is None)
        assert {"theorem", "statement", "instances", "measured", "bound"} <= set(row)
        assert ("FAIL" in capsys.readouterr().out) == bool(code)
