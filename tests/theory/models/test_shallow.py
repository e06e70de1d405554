"""The shallow net: the written-out training step against autograd, the draw, the schedule."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from theory.figures import shallow_sweeps
from theory.models import shallow
from theory.models.problems import LinearSetting

SMALL = replace(shallow_sweeps.BASE, d=4, N=40, n=30)
FIELDS = ("first", "second", "bias", "left", "right")


@pytest.mark.parametrize(("T", "k", "all_layers"), [(1, 1, True), (3, 1, True), (3, 2, True), (1, 2, False)])
def test_training_is_adamw_on_autograd_gradients(T, k, all_layers):
    setting = replace(SMALL, T=T)
    drawn = shallow._draw(setting, np.random.default_rng(0))
    parts = {name: part[None].double() for name, part in drawn.items()}
    generator = np.random.default_rng(1)
    for side in ("left", "right"):
        parts[side] = torch.from_numpy(generator.standard_normal((1, T, setting.d, k)))
    net = shallow.Net(*(parts[name].clone() for name in FIELDS))
    reference = shallow.Net(*(parts[name].clone().requires_grad_() for name in FIELDS))
    trained = FIELDS if all_layers else FIELDS[3:]
    optimizer = torch.optim.AdamW([getattr(reference, name) for name in trained], lr=1e-3)
    for _ in shallow.train(net, parts["x"], parts["y"], 100, 1e-3, all_layers):
        pass
    for _ in range(100):
        optimizer.zero_grad()
        ((reference(parts["x"]) - parts["y"]) ** 2).mean().backward()
        optimizer.step()
    for name in FIELDS:
        expected = getattr(reference, name).detach()
        torch.testing.assert_close(getattr(net, name), expected, rtol=1e-9, atol=1e-12)
        assert torch.equal(getattr(net, name), parts[name]) == (name not in trained)


def test_sr_carries_no_adapter_and_a_trial_does_not_depend_on_its_neighbours():
    schedule = shallow.Schedule(trials=2, retraining=30, tuning=20, points=3)
    both = shallow.run(SMALL, schedule, seed=0)
    first = shallow.run(SMALL, replace(schedule, trials=1), seed=0)
    pairs = {(method, epoch): loss for method, trial, epoch, loss, _ in both if trial == 0}
    assert {key[0] for key in pairs} == {"sr+lora", "lora-ml"}
    for method, _, epoch, loss, _ in first:
        assert pairs[method, epoch] == pytest.approx(loss, rel=1e-5)  # float32, other batch sizes


def test_targets_follow_the_model():
    drawn = shallow._draw(replace(SMALL, sigma=0.0), np.random.default_rng(1))
    assert drawn["x"].shape == (3, 5, 40)
    assert bool((drawn["x"][:, -1] == 1).all())
    torch.testing.assert_close(drawn["test_y"], drawn["test_clean"])
    noisy = shallow._draw(SMALL, np.random.default_rng(1))
    # 30 draws of deviation 0.1: the sample deviation lies within 40 % with certainty for practical purposes.
    assert float((noisy["test_y"] - noisy["test_clean"]).std()) == pytest.approx(0.1, rel=0.4)


def test_a_plateau_ends_retraining(monkeypatch):
    monkeypatch.setattr(shallow, "CHECK", 5)
    seen = []
    real = shallow.train

    def counted(*arguments, **options):
        for epoch in real(*arguments, **options):
            seen.append(epoch)
            yield epoch

    monkeypatch.setattr(shallow, "train", counted)
    schedule = shallow.Schedule(trials=1, retraining=500, tuning=1, points=2, plateau=0.9)
    shallow.run(SMALL, schedule, seed=0)
    assert max(seen) == 10  # nothing falls by 90 % between epochs 5 and 10


def test_the_two_sweeps_share_a_setting():
    assert len(shallow_sweeps.all_settings()) == 6
    points = [("lora-ml", 0, 0, 1.0, 2.0)]
    made = shallow_sweeps.rows(dict.fromkeys(shallow_sweeps.all_settings(), points))
    assert [row.value for row in made["shallow-T"]] == [2, 3, 5, 10]
    assert made["shallow-d"][0].loss == 1.0


@pytest.mark.parametrize("change", [{"trials": 0}, {"tuning": -1}, {"plateau": 1.0}])
def test_bad_schedules_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        shallow.Schedule(**change)


def test_settings_beyond_the_draw_are_refused():
    with pytest.raises(ValueError, match="the draw covers d up to 20"):
        shallow.run(LinearSetting(d=21), shallow.Schedule(), 0)


@pytest.mark.slow
def test_lora_ml_ends_below_sr_at_the_same_rank():
    schedule = shallow.Schedule(trials=3, retraining=8000, tuning=4000, points=3)
    found = shallow.run(replace(shallow_sweeps.BASE, d=5), schedule, seed=0)
    ends = {
        method: np.median([loss for name, _, epoch, loss, _ in found if name == method and epoch == 4000])
        for method in shallow.METHODS
    }
    assert ends["lora-ml"] < 0.5 * ends["sr+lora"]
