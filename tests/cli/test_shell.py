"""The shell: quick help, typed options, one sentence and exit code 2 for bad input."""

import json
import subprocess
import sys

import pytest

import metapeft as mp
from metapeft.base.errors import RunError
from metapeft.cli import run
from metapeft.cli.train import configured, plain_config
from metapeft.experiments.config import BenchConfig, TrainConfig


def test_help_lists_the_commands_without_loading_torch():
    code = (
        "import sys; from metapeft.cli import run; run(['--help']); "
        "sys.exit(3 if {'torch', 'numpy', 'matplotlib'} & set(sys.modules) else 0)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    for command in (
        "train",
        "evaluate",
        "bench",
        "predict",
        "sweep",
        "ranks",
        "data",
        "episodes",
        "export",
        "theory",
        "report",
    ):
        assert f" {command} " in found.stdout


@pytest.mark.parametrize(
    "command",
    ["train", "evaluate", "predict", "bench", "sweep", "ranks", "data", "episodes", "export", "report"],
)
def test_every_command_has_help_with_its_options(command, capsys):
    assert run([command, "--help"]) == 0
    assert "Usage: metapeft" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "--wayz", "5"], "Did you mean --ways"),
        (["trian"], "train"),
        (["train", "--ways", "five"], "five"),
        (["train", "--ways", "0"], "--ways 0"),
        (["train", "--lr", "-1"], "--lr -1"),
        (["train", "--methods", "lora-lm"], "did you mean 'lora-ml'"),
        (["train", "--methods", "other-task"], "builds on 'metapeft'"),
        (["train", "--data", "miniimagnet"], "did you mean 'miniimagenet'"),
        (["train", "--data", "sinusoid"], "has no classes"),
        (["train", "--data", "functions"], "the main job fits them by itself"),
        (
            ["train", "--data", "glyphs", "--methods", "metapeft", "--methods", "other-kind"],
            "are of one kind",
        ),
        (["train", "--backbone", "resnet12", "--neck", "8"], "neck has no effect on --backbone resnet12"),
        (["train", "--direct", "1"], "--direct 1.0: allowed is a finite number of at least 0 and below 1"),
        (["data", "sinusoid"], "no images"),
        (["data", "functions"], "no images"),
        (["data", "coloured-glyphs", "--data-options", "by=size"], "by='size': allowed are 'shape'"),
        (["train", "--resume"], "--out"),
        (["train", "--ways", "900", "--quiet"], "900"),
        (["evaluate", "nowhere"], "nowhere"),
        (["report", "nowhere"], "nowhere"),
        (["ranks", "nowhere"], "nowhere"),
        (["episodes", "verify", "nowhere.json"], "nowhere.json"),
        (["data", "omniglot", "--root", "nowhere"], "nowhere"),
        (["--config", "options.txt", "train"], "options.txt"),
        (["train", "--data-options", "size"], "--data-options has 'size': name=value"),
        (
            ["train", "--data-options", "size=20", "--data-options", "size=30"],
            "'size', which is given already",
        ),
        (["train", "--data-options", "sise=20"], "did you mean 'size'"),
        (
            ["train", "--data", "glyphs", "--data-options", "size=12"],
            "size=12: allowed is a whole number of at least 16",
        ),
        (
            ["data", "--data-options", "root=here"],
            "'root', which is given already or has an option of its own",
        ),
    ],
)
def test_bad_input_gives_one_sentence_and_exit_code_2(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert "Traceback" not in printed.err


def test_options_come_from_a_file_and_unknown_ones_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.toml").write_text("list = true\nways = 3\n")
    assert run(["--config", "good.toml", "train"]) == 0
    assert "metapeft" in capsys.readouterr().out
    (tmp_path / "bad.toml").write_text("wayz = 3\n")
    assert run(["--config", "bad.toml", "train", "--list"]) == 2
    assert "wayz" in capsys.readouterr().err


def test_options_of_a_reader_reach_it(tmp_path, capsys):
    """The classes do not depend on the size, the images do; a list is drawn from what they name."""
    assert run(["data", "--data-options", "size=20", "--data-options", "per_class=3"]) == 0
    assert "1x20x20" in capsys.readouterr().out
    path = str(tmp_path / "list.json")
    few = ["--data-options", "per_class=3"]
    assert run(["episodes", "dump", path, *few, "--queries", "2", "--episodes", "3"]) == 0
    assert run(["episodes", "verify", path, *few]) == 0
    assert run(["episodes", "verify", path]) == 2  # the same classes, with 20 images each
    assert "episode 0 lists an image under a class that it does not belong to" in capsys.readouterr().err


@pytest.mark.parametrize("rows", [{"x": {}}, {"x": {"columns": {"plain": 1}}}, {}])
def test_a_report_of_damaged_results_is_one_sentence(rows, tmp_path, capsys):
    contents_of = {
        "config": {"train": plain_config(TrainConfig())},
        "environment": {},
        "results": {"rows": rows},
    }
    for name, content in contents_of.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert run(["report", str(tmp_path)]) == 2
    assert "results.json holds something else than a run stores there" in capsys.readouterr().err


def test_stored_settings_come_back_and_others_are_refused():
    config = TrainConfig(ways=3, methods=("centroids",))
    stored = json.loads(json.dumps(plain_config(config)))
    assert configured(stored, TrainConfig()) == config
    with pytest.raises(ValueError, match="ways=7"):
        configured(stored, TrainConfig(ways=7))
    with pytest.raises(ValueError, match="ways=5, but the run was started with 3"):
        configured(stored, TrainConfig(ways=5), frozenset({"ways"}))


def test_a_run_does_not_go_on_with_another_setting_be_it_the_default(tmp_path, capsys):
    """What is named counts, on the command line and in a file; what is left out is as it was."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name, content in (("config", {"train": plain_config(TrainConfig(episodes=2))}), ("environment", {})):
        (folder / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "file.toml").write_text("episodes = 120\n")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    go_on = ["train", "--out", str(folder), "--resume", "--quiet"]
    for arguments in ([*go_on, "--episodes", "120"], ["--config", str(tmp_path / "file.toml"), *go_on]):
        assert run(arguments) == 2
        assert "--episodes 120, but the run was started with 2" in capsys.readouterr().err
    assert before.items() <= {path: path.stat().st_mtime_ns for path in folder.iterdir()}.items()


def test_evaluate_takes_the_steps_that_the_main_job_chose(tmp_path, monkeypatch, capsys):
    learner = mp.methods.sr_lora(mp.backbones.conv4(ways=5, width=4), inner=mp.inner.SGD(2, 0.01))
    mp.save(learner, tmp_path / "own", mp.EpisodeSampler(mp.load_dataset("glyphs"), 5, 1, 2))
    command = ["evaluate", str(tmp_path / "own"), "--episodes", "2", "--queries", "2"]
    assert run(command) == 0
    assert ", 2 steps," in capsys.readouterr().out
    chosen = {"plain": {"steps": 4}, "shifted": {"steps": 7}}
    (tmp_path / "results.json").write_text(json.dumps({"rows": {"own": {"chosen": chosen}}}))
    monkeypatch.chdir(tmp_path / "own")
    for more, steps in (([], 4), (["--shift"], 7), (["--steps", "1"], 1)):
        for folder in (str(tmp_path / "own"), "."):
            assert run(["evaluate", folder, *command[2:], *more]) == 0
            assert f", {steps} steps," in capsys.readouterr().out


def test_the_settings_of_bench_keep_its_own_defaults() -> None:
    own = BenchConfig(seed=3)
    assert "constant" in own.methods
    assert own.function_steps == 0
    stored = plain_config(BenchConfig(seed=3, methods=("metapeft", "inner-off")))
    assert configured(stored, own).methods == ("metapeft", "inner-off")  # the default says nothing
    with pytest.raises(ValueError, match="methods="):
        configured(stored, BenchConfig(methods=("centroids",)))
    with pytest.raises(RunError, match="no run folder"):
        configured(None)


def test_bench_takes_options_and_keeps_its_methods(monkeypatch):
    seen = []
    monkeypatch.setattr("metapeft.cli.bench.start", lambda config, *rest: seen.append(config) or 0)
    assert run(["bench", "--seed", "3", "--steps", "2"]) == 0
    assert seen == [BenchConfig(seed=3, steps=2)]
    assert "other-task" in seen[0].methods


@pytest.mark.parametrize("command", [["train"], ["episodes", "dump", "e.json"]])
def test_options_of_a_file_may_bear_the_name_of_a_command(command, tmp_path, monkeypatch, capsys):
    """`data`, `episodes` and `report` are commands too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METAPEFT_DATA", str(tmp_path / "nowhere"))
    (tmp_path / "own.json").write_text('{"data": "omniglot", "episodes": 3}')
    assert run(["--config", "own.json", *command]) == 2
    assert "omniglot" in capsys.readouterr().err
    (tmp_path / "own.json").write_text('{"data": "glyphs", "episodes": 3}')
    if command[0] == "episodes":
        assert run(["--config", "own.json", *command]) == 0
        assert "glyphs/test" in (printed := capsys.readouterr().out)
        assert "x3," in printed


def test_lists_of_varying_episodes_are_written_and_checked(tmp_path, capsys):
    path = str(tmp_path / "e.json")
    varying = ["--ways", "3", "--ways", "6", "--shots", "1", "--shots", "3", "--imbalanced"]
    assert run(["episodes", "dump", path, *varying, "--queries", "2", "--episodes", "9"]) == 0
    assert run(["episodes", "verify", path]) == 0
    sizes = {
        sum(i >= 0 for i in classes) for classes in json.loads((tmp_path / "e.json").read_text())["classes"]
    }
    assert len(sizes) > 1
    assert sizes <= {3, 4, 5, 6}
    assert run(["episodes", "dump", path, "--rotations", "--episodes", "9"]) == 0
    assert run(["episodes", "verify", path]) == 0
    capsys.readouterr()
    for wrong, count in ((["--ways", "3"] * 3, 3), (["--empty-shots"], 0)):
        assert run(["episodes", "dump", path, *wrong]) == 2
        assert f"given {count} times" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--methods", "mml"], ["--queries", "1000"], ["--data", "omniglot"]])
def test_what_is_refused_leaves_no_run_folder(wrong, tmp_path, monkeypatch):
    monkeypatch.setenv("METAPEFT_DATA", str(tmp_path / "nowhere"))
    assert run(["train", "--out", str(tmp_path / "run"), *wrong]) == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "bench"])
def test_ctrl_c_says_what_goes_on(command, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("metapeft.cli.train._run", interrupted)
    assert run([command, "--out", str(tmp_path / "x")]) == 130
    said = capsys.readouterr().err
    assert "stopped; the last checkpoint is kept" in said
    assert f"metapeft {command} --out {tmp_path / 'x'} --resume" in said.replace("\n", "")


def test_ctrl_c_in_another_command(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("metapeft.datasets.by_name.load_dataset", interrupted)
    assert run(["data", "glyphs"]) == 130
    assert "metapeft: stopped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["evaluate"], "RUN is missing: metapeft evaluate runs/x/metapeft"),
        (["export", "runs/x/m"], "FOLDER is missing: metapeft export runs/x/m adapter"),
        (["predict", "r", "a.jpg"], "--support is missing: metapeft predict r a.jpg --support examples"),
        (["train", "--ways"], "--ways"),
    ],
)
def test_a_missing_argument_says_what_to_give(arguments, sentence, capsys):
    assert run(arguments) == 2
    assert sentence in capsys.readouterr().err.replace("\n", " ")
