"""YAML to settings and networks: numbers, keys, kinds, extends, overrides, the way back to YAML, layers by name."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitsback.atomic_io import write_tensors
from bitsback.config import Config, load_config, to_yaml
from bitsback.config.load import parse_value
from bitsback.errors import ConfigError
from bitsback.priors import registry as priors

NEEDED = {"checkpoint": {"run": "runs/first"}, "pyro": {"distribution": "Laplace", "arguments": {"loc": 0.0, "scale": 2.0}}}


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def config(tmp_path):
    """Writes a configuration; returns its path."""
    return lambda text, name="run.yaml": write(tmp_path / name, text)


def errors(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", "+1e-3", "0.001"])
def test_scientific_notation_is_a_number_in_a_file_and_in_an_override(config, text):
    in_file = load_config(config(f"training: {{optimizer: {{arguments: {{eps: {text}}}}}}}"))
    in_override = load_config(config(""), [f"training.optimizer.arguments.eps={text}"])
    assert in_file == in_override
    assert in_file.training.optimizer.arguments == {"eps": 0.001}
    assert isinstance(in_file.training.optimizer.arguments["eps"], float)


def test_a_quoted_number_is_text_in_a_file_and_in_an_override(config):
    in_file = load_config(config('training: {optimizer: {arguments: {a: "1e-3"}}}'))
    in_override = load_config(config(""), ['training.optimizer.arguments.a="1e-3"'])
    assert in_file.training.optimizer.arguments == in_override.training.optimizer.arguments == {"a": "1e-3"}


@settings(deadline=None, max_examples=50)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_is_read_as_python_writes_it(number):
    assert parse_value(repr(number)) == number


def test_an_empty_file_is_refused_unless_overrides_say_something(config):
    with pytest.raises(ConfigError, match="is empty; begin with"):
        load_config(config(""))
    assert load_config(config(""), ["seed=0"]) == Config()


def test_a_duplicate_key_names_file_and_line(config):
    path = config("seed: 1\nprior:\n  kind: laplace\n  scale: 1\n  scale: 2\n")
    with pytest.raises(ConfigError, match=re.escape(f'{path}:5: found duplicate key "scale"')):
        load_config(path)


def test_an_unknown_key_names_file_line_near_miss_and_the_allowed_keys(config):
    path = config("seed: 1\nprior:\n  kind: laplace\n  scal: 2\n")
    expected = f"{path}:4: prior.scal: unknown key (did you mean 'scale'?); allowed: kind, learn, mean, per, relative_to, scale"
    assert errors(path) == [expected]


def test_an_unknown_section_names_the_near_miss(config):
    path = config("\nprioor: {kind: laplace}\n")
    with pytest.raises(ConfigError, match=re.escape(f"{path}:2: prioor: unknown key (did you mean 'prior'?); allowed: bayes")):
        load_config(path)


def test_an_unknown_key_in_a_prior_override_names_the_near_miss(config):
    path = config("prior_overrides: {'*.bias': {kind: laplace, scal: 1}}")
    with pytest.raises(ConfigError, match=r"prior_overrides.*scal: unknown key \(did you mean 'scale'\?\); allowed: kind, "):
        load_config(path)


@pytest.mark.parametrize(("text", "place"), [("prior: {kind: laplas}", "prior"), ("prior_overrides: {b: {kind: laplas}}", "b")])
def test_an_unknown_kind_names_the_near_miss_and_the_kinds(config, text, place):
    with pytest.raises(ConfigError, match=rf":1: .*{place}: unknown kind 'laplas' \(did you mean 'laplace'\?\); allowed: adap"):
        load_config(config(text))


def test_an_unknown_kind_is_reported_at_the_line_of_the_kind(config):
    (error,) = errors(config("prior:\n  scale: 1\n  kind: laplas\n"))
    assert re.search(r"run\.yaml:3: prior", error)


def test_a_section_without_its_kind_says_so(config):
    with pytest.raises(ConfigError, match=r":1: prior: a section needs its kind; set it with kind: NAME"):
        load_config(config("prior: {scale: 1}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: many", "seed: should be a valid integer"),
        ("training: {epochs: 2.5}", "training.epochs: should be a valid integer"),
        ("training: {optimizer: {lr: 0}}", "training.optimizer.lr: should be greater than 0, got 0"),
        ("training: {optimizer: {lr: .inf}}", "training.optimizer.lr: should be a finite number, got inf"),
        ("training: 5", "training: give a mapping"),
        ("training: {precision: float16}", "training.precision: should be 'float32', 'float64' or 'bfloat16', got 'float16'"),
        ("training: {draws: 200}", "training: draws 200 must not exceed batch_size 128"),
        ("prior: {kind: scale_mixture, weights: [0.5, 0.6]}", "prior: the weights must sum to one, got 1.1"),
        ("data: {kind: npz}", "data.path: this key is required here"),
    ],
)
def test_a_wrong_value_names_its_line_key_and_what_is_allowed(config, text, message):
    path = config("# first line\n" + text)
    (error,) = errors(path)
    assert error.startswith(f"{path}:2: {message}")


def test_one_wrong_number_in_a_list_is_one_fault(config):
    (error,) = errors(config("prior: {kind: scale_mixture, scales: [1, -2], weights: [0.5, 0.5]}"))
    assert re.search(r"prior\.scales\.1: should be greater than 0, got -2", error)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("training: {budget_bits: {start: 1, end: 2}}", "training.budget_bits.epochs"),
        ("training: {budget_bits: {start: 1, end: 2, epoch: 3}}", "training.budget_bits.epoch"),
        ("bayesian: {estimator: {Conv2d: wieght}}", "bayesian.estimator.Conv2d"),
        ("network: {kind: sequential, layers: [Flatten, {Linear: 5}]}", "network.layers.1.Linear"),
    ],
)
def test_a_fault_inside_a_value_of_several_forms_names_keys_of_the_file_only(config, text, key):
    named = {error.split(": ")[1] for error in errors(config(text))}
    assert key in named
    assert not [name for name in named if re.search(r"Settings|constrained|literal|dict\[|\.str", name)]


def test_all_faults_are_in_one_error_each_with_its_line(config):
    path = config("seed: -1\ntraining:\n  epochs: none\n  optimizer:\n    nme: Adam\nprior: {kind: laplas}\nfoo: 1\n")
    starts = [f"{path}:{line}: {key}: " for line, key in
              [(1, "seed"), (3, "training.epochs"), (5, "training.optimizer.nme"), (6, "prior"), (7, "foo")]]  # fmt: skip
    found = errors(path)
    assert len(found) == 5
    assert all(any(error.startswith(start) for error in found) for start in starts)


def test_extends_merges_sections_key_by_key(config):
    config("training: {epochs: 7, batch_size: 16}\nprior: {kind: laplace, scale: 2}\nseed: 4", "base.yaml")
    merged = load_config(config("extends: base.yaml\ntraining: {epochs: 9}\nprior: {kind: laplace, mean: 0.5}"))
    assert (merged.training.epochs, merged.training.batch_size, merged.seed) == (9, 16, 4)
    assert (merged.prior.scale, merged.prior.mean) == (2.0, 0.5)


def test_a_changed_kind_replaces_its_section(config):
    config("prior: {kind: student_t, scale: 2, df: 5}", "base.yaml")
    assert load_config(config("extends: base.yaml\nprior: {kind: gaussian}")).prior == Config().prior


def test_extends_is_relative_to_the_file_that_says_it_through_a_chain_of_two(config, tmp_path, monkeypatch):
    config("seed: 1\ntraining: {epochs: 2}\nledger: {samples: 3}", "base/deep/first.yaml")
    config("extends: deep/first.yaml\nseed: 5\ntraining: {epochs: 6}", "base/second.yaml")
    monkeypatch.chdir(tmp_path / "base")
    third = load_config(config("extends: ../base/second.yaml\nseed: 9", "other/third.yaml"))
    assert (third.seed, third.training.epochs, third.ledger.samples) == (9, 6, 3)


def test_a_fault_in_an_extended_file_names_that_file_and_line(config):
    base = config("seed: 1\ntraining: {epochs: -1}", "base.yaml")
    assert errors(config("extends: base.yaml\nseed: 2")) == [
        f"{base}:2: training.epochs: should be greater than 0 (or 'auto'), got -1"
    ]


def test_a_missing_extended_file_is_named(config):
    with pytest.raises(ConfigError, match=r"cannot read .*base\.yaml: No such file"):
        load_config(config("extends: base.yaml"))


def test_a_configuration_that_extends_itself_is_refused(config):
    with pytest.raises(ConfigError, match=r"extends itself: run\.yaml -> run\.yaml; remove one of the extends"):
        load_config(config("extends: run.yaml"))


def test_a_configuration_that_extends_itself_through_another_is_refused(config):
    config("extends: run.yaml", "other.yaml")
    with pytest.raises(ConfigError, match=r"extends itself: run\.yaml -> other\.yaml -> run\.yaml; remove"):
        load_config(config("extends: other.yaml"))


def test_overrides_change_nested_keys(config):
    path = config("prior: {kind: gaussian, scale: 2}\ntraining: {epochs: 9, batch_size: 16}")
    changed = load_config(path, ["prior.kind=laplace", "training.epochs=5", "bayesian.exclude=['*.bias']"])
    assert (changed.prior.kind, changed.prior.scale) == ("laplace", 0.3)
    assert (changed.training.epochs, changed.training.batch_size) == (5, 16)
    assert changed.bayesian.exclude == ("*.bias",)


def test_the_last_of_two_equal_overrides_wins(config):
    assert load_config(config(""), ["seed=1", "seed=2"]).seed == 2


def test_an_override_is_kept_when_a_later_one_changes_the_kind(config):
    path = config("prior: {kind: gaussian, mean: 4}")
    one = load_config(path, ["prior.kind=laplace", "prior.scale=0.5"])
    other = load_config(path, ["prior.scale=0.5", "prior.kind=laplace"])
    assert one.prior.scale == other.prior.scale == 0.5
    assert one.prior.mean == other.prior.mean == 0.0


@pytest.mark.parametrize("text", ["prior.kind", "=laplace", "", "prior..kind=laplace", ".seed=1", "seed.=1"])
def test_a_malformed_override_shows_a_good_one(config, text):
    with pytest.raises(
        ConfigError, match=re.escape(f"cannot read '{text}'; an override is key=value, for example prior.kind=")
    ):
        load_config(config("prior: {kind: gaussian}"), [text])


def test_an_override_that_is_no_yaml_is_refused(config):
    with pytest.raises(ConfigError, match=r"cannot read '\[a' as YAML"):
        load_config(config(""), ["prior.kind=[a"])


def test_a_fault_in_an_override_says_command_line(config):
    found = errors(config("seed: 1\ntraining: {epochs: 3}"), "training.epochs=0", "sed=2")
    assert found[0] == "command line: training.epochs: should be greater than 0 (or 'auto'), got 0"
    assert found[1].startswith("command line: sed: unknown key (did you mean 'seed'?); allowed: ")


@pytest.mark.parametrize("kind", list(priors))
def test_a_resolved_configuration_reads_back_equal_for_every_prior(config, kind):
    section = {"kind": kind, **NEEDED.get(kind, {})}
    original = Config.model_validate({"prior": section, "prior_overrides": {"*.bias": section}})
    again = load_config(config(to_yaml(original)))
    assert again == original
    assert type(again.prior) is priors[kind]


number = st.floats(1e-30, 1e30)


@settings(deadline=None, max_examples=25)
@given(
    scale=number, lr=number, mean=st.floats(-1e30, 1e30), seed=st.integers(0, 2**32 - 1), name=st.text(min_size=1, max_size=9)
)
def test_any_numbers_and_names_survive_the_way_through_yaml(tmp_path_factory, scale, lr, mean, seed, name):
    prior = {"kind": "laplace", "scale": scale, "mean": mean}
    training = {"optimizer": {"lr": lr, "arguments": {name: name}}}
    original = Config.model_validate({"prior": prior, "training": training, "seed": seed})
    assert load_config(write(tmp_path_factory.getbasetemp() / "survives.yaml", to_yaml(original))) == original


def network(config, layers, inputs, outputs=5):
    text = "network:\n  kind: sequential\n  layers:\n" + "".join(f"    - {layer}\n" for layer in layers)
    return load_config(config(text)).network.build(inputs, outputs)


def test_sizes_of_convolutions_and_norms_are_read_off_their_inputs(config):
    layers = ["Conv2d: {out_channels: 4, kernel_size: 3}", "BatchNorm2d", "GroupNorm: {num_groups: 2}", "Flatten", "LayerNorm",
              "Linear: {out_features: 7}", "ReLU", "Linear: {bias: false}"]  # fmt: skip
    conv, batch_norm, group_norm, _, layer_norm, linear, _, last = network(config, layers, torch.rand(8, 3, 6, 6))
    assert (conv.in_channels, batch_norm.num_features, group_norm.num_channels) == (3, 4, 4)
    assert (layer_norm.normalized_shape, linear.in_features) == ((64,), 64)
    assert (last.in_features, last.out_features, last.bias) == (7, 5, None)


def test_a_recurrent_layer_reads_batches_first_and_hands_on_its_outputs(config):
    net = network(config, ["LSTM: {hidden_size: 6}", "Linear"], torch.rand(4, 9, 2))
    assert (net[0].input_size, net[0].batch_first, net[1].in_features) == (2, True, 6)
    assert net(torch.rand(3, 9, 2)).shape == (3, 9, 5)


def test_sizes_that_are_given_are_kept(config):
    last = network(config, ["Linear: {out_features: 7}"], torch.rand(8, 3))[-1]
    assert (last.in_features, last.out_features) == (3, 7)


def test_building_leaves_batch_norm_statistics_untouched_and_the_network_in_training_mode(config):
    net = network(config, ["BatchNorm1d", "Linear"], torch.rand(8, 3) + 5)
    assert net.training
    assert net[0].running_mean.tolist() == [0, 0, 0]


def test_pretrained_weights_are_loaded(config, tmp_path):
    weights = {"linear1.weight": torch.rand(10, 64), "linear1.bias": torch.rand(10)}
    write_tensors(tmp_path / "start.safetensors", weights, {})
    built = load_config(
        config(f"network: {{kind: sequential, layers: [Flatten, Linear], pretrained: {tmp_path}/start.safetensors}}")
    )
    loaded = built.network.build(torch.rand(2, 1, 8, 8), 10).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


def test_a_factory_builds_the_network_with_its_arguments(config, tmp_path, monkeypatch):
    write(tmp_path / "my_networks.py", "import torch\ndef wide(width): return torch.nn.Linear(4, width)\n")
    monkeypatch.syspath_prepend(tmp_path)
    chosen = load_config(config("network: {kind: factory, factory: 'my_networks:wide', arguments: {width: 9}}"))
    assert chosen.network.build(torch.rand(2, 4), 5).out_features == 9


def test_a_shipped_configuration_is_found_by_name_and_a_file_of_that_name_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("digits_conv") == load_config(Path(__file__).parent.parent / "configs" / "digits_conv.yaml")
    (tmp_path / "digits_conv").write_text("seed: 7\n")
    assert load_config("digits_conv").seed == 7
    with pytest.raises(ConfigError, match=r"no file digit_conv and no shipped configuration.*did you mean 'digits_conv'"):
        load_config("digit_conv")
    with pytest.raises(ConfigError, match=r"cannot read missing\.yaml"):
        load_config("missing.yaml")


def test_any_character_of_a_label_survives_yaml(config):
    characters = [*map(chr, range(0xA1)), "\u2028", "\u2029", "\ufeff", "\U0001f600", "é"]
    labels = [text for one in characters for text in (f"<{one}>", f"{one}>", f"<{one}")]
    original = Config.model_validate({"likelihood": {"kind": "categorical", "labels": labels}})
    assert load_config(config(to_yaml(original))) == original
    assert "<é>" in to_yaml(original)  # letters stay readable
