"""Bad input that gets one clear sentence, at the edge and before anything is written."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import metapeft as mp
from metapeft.base.errors import RunError


def learner(method: str = "maml") -> mp.Learner:
    made: mp.Learner = getattr(mp.methods, method)(mp.backbones.mlp(4, 3, hidden=(8,)), norm="running")
    return made


def test_a_checkpoint_of_another_method_is_not_taken_over_partly(tmp_path: Path) -> None:
    body = mp.backbones.mlp(1, 1, hidden=(4,))
    episodes = mp.EpisodeSampler(mp.load_dataset("sinusoid"), 1, 5, 5)
    for name, rates in (("fixed", None), ("learned", "step")):
        inner = mp.inner.SGD(2, 0.01, rates=rates)
        outer = ("weights",) if rates is None else ("weights", "rates")
        own = mp.methods.maml(body, inner=inner, outer=outer, loss=mse, norm="running")
        mp.BilevelTrainer(own, progress=False).fit(episodes, steps=1, run_dir=tmp_path / name)
    for there, here, said in (("fixed", "learned", "lacks"), ("learned", "fixed", "has 'rates")):
        folder = tmp_path / f"{here}-foreign"
        shutil.copytree(tmp_path / here, folder)
        shutil.copy(tmp_path / there / "checkpoints" / "latest.safetensors", folder / "checkpoints")
        with pytest.raises(ValueError, match=f"the checkpoint {said}.*another method"):
            mp.load(folder, loss=mse)


def mse(outputs: Any, targets: Any, reduction: str = "none") -> Any:
    return (outputs - targets).square()


@pytest.mark.parametrize("lr", ["a", -1.0, float("nan"), float("inf"), True])
def test_outer_rates_are_numbers(lr: Any) -> None:
    with pytest.raises(ValueError, match=r"lr=.*: allowed is a finite number of at least 0"):
        mp.BilevelTrainer(learner(), lr=lr, progress=False)


def test_a_data_set_is_no_sampler() -> None:
    data = mp.load_dataset("sinusoid")
    with pytest.raises(ValueError, match=r"without .batch.*EpisodeSampler"):
        mp.evaluate(learner(), data, 4)
    trainer = mp.BilevelTrainer(learner(), progress=False)
    with pytest.raises(ValueError, match=r"episodes is a .*EpisodeSampler"):
        trainer.fit(data, 1)


def images(*shape: int, **options: Any) -> Any:
    return torch.zeros(*shape, **options)


def attached() -> Any:
    return mp.attach(mp.backbones.conv4(5, channels=1, width=4, size=28), mp.LoRA(1))


@pytest.mark.parametrize("before", [False, True], ids=["first batch", "later"])
@pytest.mark.parametrize(
    "x",
    [
        images(2, 1, 28, 28),
        images(2, 3, 3, 28, 28),
        images(2, 3, 1, 28, 28, dtype=torch.int64),
        images(2, 3, 1, 32),
    ],
    ids=["no batch", "channels", "integers", "no rows"],
)
def test_inputs_that_a_backbone_cannot_take_are_described(x: Any, before: bool) -> None:
    model = attached()
    if before:
        model(images(2, 3, 1, 28, 28), model.factors())
    with pytest.raises(ValueError, match="the backbone does not run on inputs of shape") as caught:
        model(x, model.factors())
    assert ("(it ran on inputs of shape (1, 28, 28) and torch.float32)" in str(caught.value)) == before
    assert model(images(2, 3, 1, 28, 28), model.factors()).shape == (2, 3, 5)  # nothing was spoiled


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        ([[0.0]], [0], "support_y is of type list"),
        (images(5, 1, 28, 28), [0, 1, 2, 3, 4], "support_y is of type list"),
        (images(0, 1, 28, 28), torch.zeros(0, dtype=torch.int64), "at least one labelled input"),
        ([[0.0]], torch.arange(1), "support_x has leaves"),
        (images(5, 1, 28, 28), torch.arange(4), "support_y has shape"),
        (images(5, 28, 28), torch.arange(5), "does not run on inputs"),
    ],
)
def test_support_sets_that_are_none(x: Any, y: Any, said: str) -> None:
    own = mp.methods.maml(mp.backbones.conv4(5, channels=1, width=4, size=28), norm="running")
    with pytest.raises(ValueError, match=said):
        own.adapt(x, y)


def test_parts_of_the_wrong_kind_are_named() -> None:
    body, data = mp.backbones.conv4(5, channels=1, width=4, size=28), mp.load_dataset("glyphs", split="test")
    episodes = mp.EpisodeSampler(data, 5, 1, 1)
    makers: list[tuple[str, Any]] = [
        ("model is of type Sequential: mp.attach", lambda: mp.Learner(body)),
        ("task is of type Sequential", lambda: mp.BilevelTrainer(body)),
        ("optimizer='adam': a class", lambda: mp.BilevelTrainer(learner(), optimizer="adam")),
        ("preprocess=3", lambda: mp.attach(body, mp.LoRA(1), preprocess=3)),
        ("data is of type EpisodeSampler", lambda: mp.pretrain(body, episodes, steps=1)),
        ("learner is of type AttachedModel", lambda: mp.evaluate(attached(), episodes, 1)),
        ("episodes=2.5: allowed", lambda: mp.evaluate(learner(), episodes, 2.5)),
        ("a is of type int", lambda: mp.compare(1, 2)),
    ]
    for said, make in makers:
        with pytest.raises(ValueError, match=said):
            make()


def test_an_adapter_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = mp.methods.lora_ml(mp.backbones.conv4(5, channels=1, width=4, size=28)).adapt(
        torch.rand(5, 1, 28, 28), torch.arange(5)
    )
    (tmp_path / "file").write_text("kept")
    for there in (tmp_path, tmp_path / "file"):
        with pytest.raises(ValueError, match="is there and not empty"):
            adapted.export_peft(there)
    with pytest.raises(RunError, match=f"{tmp_path}/file/deeper.*nothing is left"):
        adapted.export_peft(tmp_path / "file" / "deeper")
    written: list[str] = []

    def full(descriptor: int) -> None:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(str(descriptor))

    monkeypatch.setattr("metapeft.updates.peft_export.os.fsync", full)
    with pytest.raises(RunError, match="No space left"):
        adapted.export_peft(tmp_path / "adapter")
    assert written
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "kept"


def test_a_list_of_episodes_goes_into_a_folder_that_is_there(tmp_path: Path) -> None:
    from metapeft.episodes.listing import dump

    episodes = mp.EpisodeSampler(mp.load_dataset("glyphs", split="test"), 5, 1, 1)
    with pytest.raises(RunError, match=r"list.json cannot be written: No such file"):
        dump(episodes, 2, tmp_path / "missing" / "list.json")
    assert not list(tmp_path.iterdir())


def mapping(**options: Any) -> Any:
    return mp.generators.MappingNet(**options)


def image_data(**options: Any) -> Any:
    return mp.datasets.ImageData(
        images(4, 1, 8, 8, dtype=torch.uint8), [0, 0, 1, 1], **{"classes": ["a", "b"], **options}
    )


def plain(format: Any = None, **options: Any) -> mp.AttachedModel:
    return mp.attach(mp.backbones.mlp(4, 3, hidden=(8,)), mp.CP(2) if format is None else format, **options)


def body() -> torch.nn.Module:
    return mp.backbones.mlp(4, 3, hidden=(8,))


ONE_STEP = mp.inner.SGD(1, 0.1)
SINUSOIDS = mp.EpisodeSampler(mp.load_dataset("sinusoid"), 1, 5, 5)
NO_GPU = pytest.mark.skipif(
    torch.accelerator.is_available(), reason="this machine has the device that it asks for"
)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(lambda: mp.Learner(plain(), device="cuda"), "device='cuda': allowed on", marks=NO_GPU),
        pytest.param(lambda: learner().to("cuda"), "device='cuda': allowed on", marks=NO_GPU),
        (lambda: mp.Learner(plain(), device="gpu"), "device='gpu': allowed on"),
        (lambda: mp.Learner(plain(), dtype=torch.int32), "dtype=torch.int32: allowed are"),
        (lambda: learner().to(dtype=torch.int32), "dtype=torch.int32: allowed are"),
        (lambda: mp.BilevelTrainer(learner(), dtype="float32"), "dtype='float32': allowed are"),
        (lambda: mp.Learner(plain(), generator=3), "generator is of type int"),
        (lambda: mp.Learner(plain(), selection=3), "selection is of type int"),
        (lambda: mp.Learner(plain(), ONE_STEP, adapt=3), "adapt=3: allowed are 'all', a glob"),
        (lambda: mp.Learner(plain(), ONE_STEP, adapt=[1]), "adapt=.1.: allowed are 'all', a glob"),
        (lambda: mp.Learner(plain(), outer=None), "outer=None: a tuple of groups"),
        (lambda: mp.Learner(plain(), ONE_STEP, test_steps=-1), "test_steps=-1: allowed is a whole number"),
        (lambda: mp.Learner(plain(), dropout=1), "dropout=1: allowed are True and False"),
        (lambda: mp.Learner(plain(), seed=1.5), "seed=1.5: allowed is a whole number from 0"),
        (lambda: mp.methods.maml(body(), steps=3, inner=ONE_STEP), "steps=3 has no effect beside inner="),
        (lambda: mp.methods.boil(body(), lr=0.2, inner=ONE_STEP), "lr=0.2 has no effect beside inner="),
        (lambda: mp.methods.meta_sgd(body(), steps=3, inner=ONE_STEP), "steps=3 has no effect beside inner="),
        (lambda: mp.methods.mamlpp(body(), steps=3, inner=ONE_STEP), "steps=3 has no effect beside inner="),
        (lambda: mp.methods.imaml(body(), proximal=3.0, inner=ONE_STEP), "proximal=3.0 has no effect beside"),
        (lambda: mp.methods.autolora(body(), lr=0.2, inner=ONE_STEP), "lr=0.2 has no effect beside inner="),
        (lambda: mp.methods.autolora(body(), format=mp.CP(2)), "autolora has no option 'format'"),
        (lambda: mp.methods.metapeft(body(), generator=None, hidden=7), "hidden=7 has no effect beside gen"),
        (lambda: mp.methods.metapeft(body(), generator=mapping(), hidden=7), "hidden=7 has no effect beside gen"),
        (lambda: mp.methods.metalora_tr(body(), generator=mapping(), per="input"), "per='input' has no effect"),
        (lambda: plain(targets=[]), "targets=.. names nothing"),
        (lambda: plain(seed=1.5), "seed=1.5"),
        (lambda: mp.calibrate(plain({}), image_data(), groups=0), "groups=0: allowed is a whole number"),
        (lambda: mp.calibrate(body(), image_data()), "model is of type Sequential: mp.attach"),
        (lambda: mp.calibrate(plain({}), 3), "data is of type int"),
        (lambda: mp.pretrain(body(), image_data(), 1, group="a"), "group='a': allowed is a whole number"),
        (lambda: mp.pretrain(3, image_data(), 1), "backbone is of type int"),
        (lambda: mp.pretrain(body(), image_data(), 1, group=2, resume=True), "give run_dir= too"),
        (lambda: mp.pretrain(body(), image_data(), 1, group=2, augment=3), "augment must be a callable"),
        (lambda: mp.BilevelTrainer(learner(), clip="1"), "clip='1': allowed is a finite number above 0"),
        (lambda: mp.BilevelTrainer(learner(), options={"x": 1}), "options=.*unexpected keyword argument 'x'"),
        (lambda: mp.BilevelTrainer(learner(), options=3), "options is of type int: a dict"),
        (lambda: mp.BilevelTrainer(learner(), optimizer=lambda groups: {}), "optimizer makes a dict"),
        (lambda: mp.BilevelTrainer(learner(), warm_start=1), "warm_start=1: allowed are True and False"),
        (lambda: mp.BilevelTrainer(learner()).fit(SINUSOIDS, 1, stop_at=-1), "stop_at=-1: allowed is"),
        (lambda: mp.episodes.Shift(3), "kinds must be a list of names"),
        (lambda: mp.episodes.Augment(flip="no"), "flip='no': allowed are True and False"),
        (lambda: mp.EpisodeSampler(image_data(), 2, 1, 1, rotations="no"), "rotations='no': allowed are"),
        (lambda: mp.load_dataset(3), "name=3: the name of a data set"),
        (lambda: image_data(classes="ab"), "classes='ab': a list of names"),
        (lambda: image_data(mean=0.5, deviation=0.5), "mean=0.5: a list is needed"),
        (lambda: image_data(mean=[0.5] * 3, deviation=[0.5] * 3), "a number a channel is needed, and images have 1"),
        (lambda: mp.save(3, "never"), "learner is of type int"),
        (lambda: learner().hypergradient(3), "batch is of type int: an mp.EpisodeBatch"),
        (lambda: learner().load_state(3), "state is of type int: a dict"),
        (lambda: plain()(torch.zeros(2, 3, 4), 3), "factors is of type int: a dict"),
        (lambda: mp.backbones.mlp(4, 3, hidden=8), "hidden=8: a tuple is needed"),
        (lambda: mp.inner.Adam(1, 0.1, betas=3), "betas=3 has to be a pair"),
        (lambda: mp.heads.Ridge(penalty="a"), "penalty='a': allowed is a finite number above 0"),
        (lambda: mp.hypergradient(3, None, {"a": torch.ones(1)}, {}), "outer=3 has to be a function"),
        (lambda: mp.hypergradient(lambda u, w: u["a"], None, {"a": torch.ones(1)}, 3), "w0=3 has to be a dict"),
    ],
)  # fmt: skip
def test_the_library_says_it_as_a_value_error(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
