"""predict asks the likelihood: the answers are in its words, one for each label, whatever the shape of a target."""

import json
import math

import numpy as np
import pytest
import torch

from bitsback.likelihoods import BernoulliLikelihood, CategoricalLikelihood, GaussianLikelihood, PoissonLikelihood
from bitsback.model import Prediction

torch.set_num_threads(1)


def logits(*probabilities):
    return torch.tensor(probabilities).log()


def test_a_class_and_its_probability_averaged_over_draws():
    draws = [logits([0.2, 0.8], [0.6, 0.4]), logits([0.6, 0.4], [0.8, 0.2])]
    found = Prediction.of(CategoricalLikelihood(2, ["no", "yes"]), draws)
    assert [answer["class"] for answer in found.answers] == ["yes", "no"]
    assert [answer["probability"] for answer in found.answers] == pytest.approx([0.6, 0.7], rel=1e-5)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((), 0.9), ((1,), 0.9), ((3,), [0.9, 0.9, 0.9]), ((2, 2), [[0.9, 0.9], [0.9, 0.9]])],
)
def test_yes_or_no_answers_come_in_the_shape_of_the_target(shape, expected):
    outputs = torch.full((2, *shape), 0.9).logit()
    answers = Prediction.of(BernoulliLikelihood(), [outputs]).answers
    assert np.allclose(answers[0]["probability"], expected)
    assert np.array_equal(answers[0]["answer"], np.ones_like(expected))
    assert len(answers) == 2


@pytest.mark.parametrize(("shape", "expected"), [((1,), 4.0), ((2,), [4.0, 4.0])])
def test_counts_have_a_rate(shape, expected):
    answers = Prediction.of(PoissonLikelihood(), [torch.full((1, *shape), 4.0).log()]).answers
    assert answers == [{"rate": pytest.approx(expected)}]


def test_a_mean_has_a_std_of_noise_and_of_draws():
    """Law of total variance: the noise's 3^2 and the variance of the means 0 and 8, which is 4^2, make 5^2."""
    likelihood = GaussianLikelihood(3.0, noise="fixed", target_step=0.01)
    (answer,) = Prediction.of(likelihood, [torch.zeros(1, 1), torch.full((1, 1), 8.0)]).answers
    assert answer == {"mean": pytest.approx(4.0), "std": pytest.approx(5.0)}


@pytest.mark.parametrize("shift", [0.0, 1992.0, 1_700_000_384.0, -1e12])
def test_a_mean_far_from_zero_keeps_its_digits_and_its_std(shift):
    """Squares of float32 means would drown a std of 200 in rounding, and six digits the mean itself."""
    targets = torch.linspace(-500, 500, 101).double() + shift
    likelihood = GaussianLikelihood(150.0, noise="fixed", target_step=1.0, standardise=True)
    likelihood.fit(targets)
    scale = float(likelihood.scale)
    draws = [torch.full((1, 1), sign * 100 / scale) for sign in (-1.0, 1.0)]
    (answer,) = Prediction.of(likelihood, draws).answers
    assert answer["mean"] == pytest.approx(float(likelihood.shift), abs=0.1)
    assert answer["std"] == pytest.approx(math.hypot(150, 100), rel=1e-3)


@pytest.mark.parametrize("noise", ["learned", "predicted"])
def test_three_targets_have_three_means_and_stds(noise):
    likelihood = GaussianLikelihood(noise=noise, target_step=0.1, standardise=True)
    likelihood.fit(torch.randn(50, 3) * torch.tensor([1.0, 10.0, 100.0]))
    (answer,) = Prediction.of(likelihood, [torch.zeros(1, 6 if noise == "predicted" else 3)]).answers
    assert np.shape(answer["mean"]) == np.shape(answer["std"]) == (3,)
    assert answer["std"][0] < answer["std"][1] < answer["std"][2]


@pytest.mark.parametrize(
    ("targets", "likelihood", "keys"),
    [
        (np.arange(40) % 2, "{kind: categorical}", {"class", "probability"}),
        (
            np.stack([np.arange(40) % 2, np.arange(40) % 3 == 0, np.arange(40) % 5 == 0], 1),
            "{kind: bernoulli}",
            {"answer", "probability"},
        ),
        (np.arange(120.0).reshape(40, 3), "{kind: gaussian}", {"mean", "std"}),
        (np.arange(40) % 7, "{kind: poisson}", {"rate"}),
    ],
)
def test_runs_and_files_answer_alike(tmp_path, run_command, targets, likelihood, keys):
    inputs = np.random.default_rng(0).normal(size=(40, 4))
    np.savez(tmp_path / "t.npz", inputs=inputs, targets=targets)
    (tmp_path / "c.yaml").write_text(
        f"data: {{kind: npz, path: {tmp_path / 't.npz'}}}\nlikelihood: {likelihood}\ntraining: {{epochs: 20}}\nlogging: {{report: false}}\n"
    )
    assert run_command("train", tmp_path / "c.yaml", "--out", tmp_path / "run").code == 0
    assert run_command("pack", tmp_path / "run", "-o", tmp_path / "m.bb", "--codec", "quantised").code == 0
    for source in (tmp_path / "run", tmp_path / "m.bb"):
        said = run_command("predict", source, "--data", tmp_path / "t.npz", "--json", "-o", tmp_path / "means.npy")
        answers = json.loads(said.out)
        assert len(answers) == 40
        more = {"entropy_bits", "mutual_information_bits", "bits"}
        more |= {"low", "high"} if keys in ({"mean", "std"}, {"rate"}) else set()
        assert all(set(answer) == keys | more for answer in answers)
        several = targets.shape[1:] and "kind: categorical" not in likelihood
        assert all(
            np.shape(value) == ((3,) if several and name != "bits" else ())
            for answer in answers
            for name, value in answer.items()
        )
        lines = run_command("predict", source, "--data", tmp_path / "t.npz").out.splitlines()
        assert len(lines) == 40
        assert all(len(line.split("\t")) == len(keys) for line in lines)
