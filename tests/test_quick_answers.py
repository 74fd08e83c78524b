"""What needs no tensor waits for no torch: settings, configurations that are wrong, and the commands that read them."""

import subprocess
import sys

import pytest

from bitsback.coding import quantised
from bitsback.config import Config, coding_settings, load_config
from bitsback.errors import ConfigError, FileError
from bitsback.formats.config_tree import MODEL_SECTIONS, from_tree, to_tree

LIGHT = [
    "bitsback.cli.app",
    "bitsback.config",
    "bitsback.config.coding_settings",
    "bitsback.config._explain",
    "bitsback.config.load",
    "bitsback.config.network",
    "bitsback.config.schema",
    "bitsback.data.settings",
    "bitsback.layers.estimator",
    "bitsback.likelihoods.settings",
    "bitsback.posteriors.settings",
    "bitsback.priors.settings",
    "bitsback.training.settings",
]
HEAVY = ("torch", "numpy", "pyro")
SAY_HEAVY = f"import sys; print([name for name in {HEAVY} if name in sys.modules])"
MISSPELT = "data: {kind: digits}\ntrainin: {epochs: 3}\n"


def python(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("module", LIGHT)
def test_settings_are_read_without_torch(module):
    done = python(f"import {module}; {SAY_HEAVY}")
    assert done.stdout.strip() == "[]", done.stderr


def test_every_kind_is_there_once_its_settings_are():
    code = "from bitsback.FAMILY.settings import registry; print(*registry)"
    for family, kind in (("priors", "pyro"), ("likelihoods", "poisson"), ("data", "npz")):
        assert kind in python(code.replace("FAMILY", family)).stdout.split()


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "CONFIG"],
        ["compare", "CONFIG", "seed=1,2"],
        ["codelengths", "CONFIG"],
        ["send", "CONFIG", "--payload", "CONFIG", "-o", "message"],
        ["send", "CONFIG", "--code", "prequential", "-o", "message"],
        ["send", "CONFIG", "--code", "two_part", "-o", "message"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_a_misspelt_key_is_answered_without_torch(tmp_path, arguments):
    config = tmp_path / "x.yaml"
    config.write_text(MISSPELT)
    code = (
        "import sys\n"
        "from bitsback.cli import main\n"
        "try:\n    main()\n"
        f"finally:\n    print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = python(code, *[argument.replace("CONFIG", str(config)) for argument in arguments])
    assert (done.returncode, done.stdout.strip()) == (1, "[]"), done.stderr
    assert f"{config}:2: trainin: unknown key (did you mean 'training'?)" in done.stderr


WRONG_LAYERS = [
    ("[Flatten, Linaer]", ["Flatten", "Linaer"], r"layer 1: torch.nn has no layer 'Linaer' \(did you mean 'Linear'\?\)"),
    (
        "[{Linear: {biass: no}}]",
        [{"Linear": {"biass": False}}],
        r"layer 0: Linear has no argument 'biass' \(did you mean 'bias'",
    ),
]


@pytest.mark.parametrize(("text", "layers", "sentence"), WRONG_LAYERS)
def test_a_wrong_layer_is_found_in_yaml_by_its_line_and_in_python_when_it_is_built(tmp_path, text, layers, sentence):
    import torch

    path = tmp_path / "x.yaml"
    path.write_text(f"seed: 1\nnetwork:\n  kind: sequential\n  layers: {text}\n")
    with pytest.raises(ConfigError, match=rf"x\.yaml:4: network\.layers: {sentence}"):
        load_config(path)
    config = Config(network={"kind": "sequential", "layers": layers})
    with pytest.raises(ConfigError, match=rf"^network\.layers: {sentence}"):
        config.network.build(torch.zeros(2, 3), 1)


@pytest.mark.parametrize(("text", "layers", "sentence"), WRONG_LAYERS)
def test_a_wrong_layer_in_a_file_is_the_files_mistake(text, layers, sentence):
    tree = to_tree(Config(network={"kind": "sequential", "layers": layers}), MODEL_SECTIONS)
    with pytest.raises(FileError, match=rf"does not suit this bitsback \(network\.sequential\.layers: Value error, {sentence}"):
        from_tree(tree)


def test_a_layer_from_the_command_line_is_named_as_such(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("seed: 1\n")
    with pytest.raises(ConfigError, match=r"^command line: network\.layers: layer 0: torch\.nn has no layer 'Nothing'"):
        load_config(path, ["network.kind=sequential", "network.layers=[Nothing]"])


def test_the_grid_step_of_the_settings_is_that_of_the_codec():
    assert coding_settings.STEPS_PER_STD == quantised.STEPS_PER_STD


@pytest.mark.parametrize("first", ["import bitsback.training.train", "from bitsback.training.train import start"])
def test_a_function_is_not_hidden_by_its_module_of_the_same_name(first):
    done = python(
        f"{first}\nfrom bitsback.training import train\nimport bitsback.training\nprint(callable(train), bitsback.training.train is train)"
    )
    assert done.stdout.split() == ["True", "True"], done.stderr
