"""A prior, a likelihood and data of one's own: named in YAML and in files, called only where the user says so."""

import re
import textwrap

import pytest
import torch

import bitsback
from bitsback.errors import BitsbackError, ConfigError, FileError, PriorError

torch.set_num_threads(1)

MINE = """
    import math
    import torch
    from torch.distributions import Normal
    from bitsback import Dataset, Examples
    from bitsback.likelihoods import CategoricalLikelihood
    from bitsback.priors.base import ScalePrior

    class Wide(ScalePrior):
        kind = "wide"
        factor = 2.0

        def forward(self):
            return Normal(self.mean, self.factor * self.typical_scale(), validate_args=False)

    class Smeared(CategoricalLikelihood):
        kind = "smeared"

    class Improper(Wide):
        kind = "improper"

        def forward(self):
            class Heavy(Normal):
                def log_prob(self, value):
                    return super().log_prob(value) + 1.0
            return Heavy(self.mean, self.typical_scale(), validate_args=False)

    def wide(weight, scale=0.3):
        return Wide(scale / math.sqrt(weight.fan_in), learn="none")

    def improper(weight):
        return Improper(0.3)

    def smeared(classes):
        return Smeared(classes or 3)

    def data(count=40):
        x = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))
        return Dataset("mine", Examples(x, (x.sum(1) > 0).long()), None, 3)

    def nothing(*arguments):
        return None
"""


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine_of_factories.py").write_text(textwrap.dedent(MINE))
    monkeypatch.chdir(tmp_path)
    return tmp_path


NAMES = {"data": "mine_of_factories:data", "prior": "mine_of_factories:wide", "likelihood": "mine_of_factories:smeared"}


def config(**change):
    sections = {name: {"kind": "factory", "factory": place} for name, place in NAMES.items()}
    network = {"kind": "sequential", "layers": [{"Linear": {"out_features": 3}}]}
    training = {"epochs": 2, "batch_size": 20}
    return bitsback.Config.model_validate(
        {**sections, "network": network, "training": training, "ledger": {"samples": 2}, **change}
    )


def test_all_three_train_and_are_packed(mine):
    found = bitsback.train(config(), out=mine / "run", report=False, progress=False)
    assert found.experiment.model.weights[0].prior.kind == "wide"
    assert found.experiment.likelihood.kind == "smeared"
    again = bitsback.load_run(mine / "run").take_ledger()
    assert again.net_bits == pytest.approx(found.ledger.net_bits, rel=1e-6)
    bitsback.pack(mine / "run", mine / "model.bb", codec="quantised", progress=False)
    locations = [f"{section}.factory={place}" for section, place in NAMES.items()]
    loaded = bitsback.load(mine / "model.bb", locations)
    assert loaded.predict(torch.zeros(2, 4)).shape == (2, 3)


@pytest.mark.parametrize("section", NAMES)
def test_no_code_of_a_file_runs_unasked(mine, section):
    bitsback.train(config(), out=mine / "run", report=False, progress=False)
    bitsback.pack(mine / "run", mine / "model.bb", codec="quantised", progress=False)
    others = [f"{name}.factory={place}" for name, place in NAMES.items() if name != section]
    sentence = f"the file's {section} is made by calling {NAMES[section]}, and no code that a file names is run unasked; if you"
    with pytest.raises(FileError, match=re.escape(sentence)):
        bitsback.load(mine / "model.bb", others)
    with pytest.raises(FileError, match=f"'{section}.factory' is fixed by the file"):
        bitsback.load(mine / "model.bb", [*others, f"{section}.factory=os:system"])


@pytest.mark.parametrize("section", NAMES)
def test_what_is_no_such_thing_is_refused(section):
    wrong = {section: {"kind": "factory", "factory": "mine_of_factories:nothing"}}
    with pytest.raises(ConfigError, match=f"{section}.factory: mine_of_factories:nothing returned NoneType, not a"):
        bitsback.train(config(**wrong), progress=False)
    gone = {section: {"kind": "factory", "factory": "no_such_module:thing"}}
    with pytest.raises(ConfigError, match=f"{section}.factory: cannot import 'no_such_module:thing'"):
        bitsback.train(config(**gone), progress=False)


def test_a_prior_whose_mass_is_not_one_is_no_code():
    wrong = {"prior": {"kind": "factory", "factory": "mine_of_factories:improper"}}
    with pytest.raises(PriorError, match=r"prior 'improper' has mass 2\.718"):
        bitsback.train(config(**wrong), progress=False)


def test_what_a_prior_of_ones_own_is_told(mine):
    prior = {"kind": "factory", "factory": NAMES["prior"], "arguments": {"scale": 0.8}}
    model = bitsback.Experiment.build(config(prior={**prior, "per": "tensor"})).model
    scales = [float(weight.prior.typical_scale()) for weight in model.weights]
    assert scales == pytest.approx([0.8 / 2, 0.8 / 2])  # both have a fan-in of four
    assert model.weights[0].prior is not model.weights[1].prior
    shared = bitsback.Experiment.build(config(prior={**prior, "per": "model"})).model
    assert shared.weights[0].prior is shared.weights[1].prior
    assert not model.charges()
    with pytest.raises(ValueError, match="learn"):
        config(prior={**prior, "learn": "gradient"})


def test_a_name_is_a_module_and_a_function(mine):
    (mine / "toy.yaml").write_text("prior: {kind: factory, factory: wide}\n")
    with pytest.raises(BitsbackError, match=r"toy.yaml:1: prior.factory: give package.module:function, got 'wide'"):
        bitsback.load_config(mine / "toy.yaml")
