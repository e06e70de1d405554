"""The study on a made-up family in seconds: fairness, files, going on after an interruption, refusals."""

import csv
import json

import pytest
import torch

import metapeft as mp
from metapeft.datasets.images import ImageData
from metapeft.episodes import EpisodeSampler
from theory import cli
from theory.bridge import study as studies
from theory.bridge.command import bridge
from theory.bridge.results import COLUMNS, LINES, summary
from theory.bridge.study import METHODS, Study
from theory.bridge.tasks import Family, few_classes, fixed_tasks

TINY = Study(
    start_steps=3, steps=2, tasks=2, shots=2, training_queries=2, queries=3, ranks=(0, 2), tuning_rank=2,
    outer_rates=(1e-3,), test_rates=(0.01, 0.03), test_steps=(2,), validation_episodes=2, episodes=4,
)  # fmt: skip


def patterns(split, classes, seed):
    random = torch.Generator().manual_seed(seed)
    centre = torch.rand(classes, 1, 1, 16, 16, generator=random)
    noise = torch.rand(classes, 8, 1, 16, 16, generator=random)
    images = (127 * (centre + noise)).to(torch.uint8).flatten(0, 1)
    names = [f"{split}{index}" for index in range(classes)]
    return ImageData(images, torch.arange(classes).repeat_interleave(8), names, split, name="patterns")


def family(name, seed):
    sizes = {"train": 6, "val": 3, "test": 4}
    data = {split: patterns(split, count, index) for index, (split, count) in enumerate(sizes.items())}
    return Family(
        name,
        data,
        dict.fromkeys(sizes),
        lambda seed: mp.backbones.conv4(2, width=4, size=16, seed=seed),
        "made up",
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("bridge")
    return out, bridge("patterns", 2, out, make=family, study=TINY)


def test_files_hold_every_method_rank_and_run(done):
    out, files = done
    assert sorted(file.name for file in files) == [
        f"bridge-patterns.{kind}" for kind in ("csv", "json", "png", "svg")
    ]
    found = json.loads((out / "bridge-patterns.json").read_text())
    cells = {(row["method"], row["value"], row["run"]) for row in found["rows"]}
    assert cells == {(m, r, run) for m in LINES.values() for r in (0, 2) for run in (0, 1)}
    assert found["environment"]["torch"] == torch.__version__
    assert all(len(row["trials"]) == 2 for row in found["rows"])  # as many for each method
    rates = {method: set(one["trials"]) for method, one in found["outer_rates"].items()}
    assert rates == {method: {"0.001"} for method in METHODS} | {"start": {"0.0"}}
    with (out / "bridge-patterns.csv").open() as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames) == COLUMNS
        assert [float(row["accuracy"]) for row in reader] == [row["accuracy"] for row in found["rows"]]


def test_methods_are_tested_on_the_same_test_episodes(done):
    found = json.loads((done[0] / "bridge-patterns.json").read_text())
    for run in (0, 1):
        protocols = {json.dumps(row["protocol"]) for row in found["rows"] if row["run"] == run}
        assert len(protocols) == 1
        assert json.loads(protocols.pop())["split"] == "test"


def test_a_second_call_goes_on_from_what_is_there(done, monkeypatch):
    """With one run lost, only that run is made again, from its kept retrainings, and comes out the same."""
    out = done[0]
    file = out / "bridge-patterns.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps({**whole, "rows": [row for row in whole["rows"] if row["run"] == 0]}))
    made = []
    monkeypatch.setattr(
        "theory.bridge.command.run", lambda *given: made.append(given[3]) or studies.run(*given)
    )
    bridge("patterns", 2, out, make=family, study=TINY)
    assert made == [1]
    assert json.loads(file.read_text())["rows"] == whole["rows"]


def test_a_folder_with_another_study_is_refused(done):
    with pytest.raises(ValueError, match="holds another study"):
        bridge("patterns", 2, done[0], make=family, study=Study(start_steps=7))


@pytest.mark.parametrize("method", METHODS)
def test_retraining_sees_the_same_images_and_only_training_classes(method, tmp_path, monkeypatch):
    """Every method gathers `steps * images` training images, and none of another split."""
    tasks = family("patterns", 0)
    start, softmax = studies.start_of(tasks, TINY, 0, tmp_path)
    gathered = dict.fromkeys(tasks.data, 0)
    gather = ImageData.gather

    def counting(data, index):
        gathered[data.split] += index.numel()
        return gather(data, index)

    monkeypatch.setattr(ImageData, "gather", counting)
    studies.retrained(method, 1e-3, start, softmax, tasks, TINY, 0, tmp_path)
    seen = 0 if method == "start" else TINY.steps * TINY.images
    assert gathered == {"train": seen, "val": 0, "test": 0}


def test_rates_are_chosen_without_the_test_classes(tmp_path):
    """Choosing works where the test images cannot be read at all."""
    tasks = family("patterns", 0)
    del tasks.data["test"].images
    found = studies.choose_rates(tasks, TINY, tmp_path)
    assert set(found) == set(METHODS)
    for one in found.values():
        assert one["trials"][one["rate"]] == max(one["trials"].values())


def test_retraining_on_tasks_shares_two_labels_among_all_classes(tmp_path):
    """Each pair of classes has one of either label, other seeds pair otherwise, and the images are the same."""
    data = patterns("train", 6, 0)
    found = fixed_tasks(data, 2, seed=0)
    assert found.images is data.images
    assert len(found.classes) == 2
    labels = {int(label): set(found.labels[data.labels == label].tolist()) for label in range(6)}
    assert sorted(next(iter(one)) for one in labels.values()) == [0, 0, 0, 1, 1, 1]
    assert all(len(one) == 1 for one in labels.values())
    assert any(not fixed_tasks(data, 2, seed).labels.equal(found.labels) for seed in range(1, 4))
    assert data.labels.equal(patterns("train", 6, 0).labels)


@pytest.mark.parametrize("method", ["reptile", "lora-ml"])
def test_the_weights_that_are_tested_are_those_that_were_trained(method, tmp_path):
    tasks = family("patterns", 0)
    start, softmax = studies.start_of(tasks, TINY, 0, tmp_path)
    body = studies.retrained(method, 1e-2, start, softmax, tasks, TINY, 0, tmp_path)
    moved = {name for name, value in body.state_dict().items() if not value.equal(start.state_dict()[name])}
    # biases and normalisation too; the classifier, which a fresh head replaces, and the statistics are left
    assert moved == {name for name, _ in start.named_parameters() if not name.startswith("classifier")}


def test_reptile_goes_towards_the_adapted_weights(tmp_path):
    """One step of plain descent by its gradient brings W0 nearer to where the tasks' inner loops end."""
    tasks = family("patterns", 0)
    start, _ = studies.start_of(tasks, TINY, 0, tmp_path)
    batch = EpisodeSampler(tasks.data["train"], 2, 2, 2, seed=5).batch(0, 1)
    learner = mp.methods.reptile(start, inner=mp.inner.SGD(3, 5.0), head="zero", norm="running")
    found = learner.hypergradient(batch)
    for name, gradient in found.grads.items():
        delta = found.w[f"{name.removeprefix('weights.')}.delta"][0]
        assert torch.allclose(-gradient, delta, rtol=1e-5, atol=1e-7)
    assert max(float(gradient.abs().max()) for gradient in found.grads.values()) > 1e-4


def test_summary_pairs_by_run():
    rows = [
        {"value": 1, "method": method, "run": run, "accuracy": base + run * 0.1}
        for method, base in (("sr+lora", 0.5), ("reptile", 0.5), ("lora-ml", 0.52))
        for run in (2, 0, 1)
    ]
    last = summary(rows)[-1]
    assert last["difference"] == pytest.approx(0.02)
    assert last["difference_ci95"] == pytest.approx(0, abs=1e-12)  # the runs' own spread drops out
    assert last["ci95"] == pytest.approx(0.1 * 4.302653 / 3**0.5, rel=1e-6)  # t with 2 degrees of freedom


def test_training_classes_are_drawn_by_the_seed():
    data = patterns("train", 6, 0)
    drawn = [few_classes(data, 3, seed).classes for seed in range(6)]
    assert len(set(drawn)) > 1
    kept = few_classes(data, 3, 1)
    for index, name in enumerate(kept.classes):
        own = data.images[data.labels == data.classes.index(name)]
        assert kept.images[kept.labels == index].equal(own)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shots": 0}, "shots"),
        ({"ranks": (1, 1)}, "ranks"),
        ({"ranks": ()}, "ranks"),
        ({"ranks": (-1,)}, "ranks"),
    ],
)
def test_bad_settings_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        Study(**change)


def test_the_command_refuses_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--out"):
        cli.bridge(out=tmp_path / "file", quick=True)
    with pytest.raises(ValueError, match="--seeds"):
        cli.bridge(out=tmp_path, seeds=0)


@pytest.mark.slow
def test_the_command_runs_on_embedded_data(tmp_path):
    cli.bridge(out=tmp_path, data="glyphs", seeds=1, quick=True)
    assert (tmp_path / "bridge-glyphs.png").stat().st_size > 10_000
