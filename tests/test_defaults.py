"""New defaults are those of YAML and Python; what a file leaves out means what it meant when format version 1 was made."""

import hashlib
from importlib.resources import files

import pytest

from bitsback.config.schema import Config
from bitsback.errors import FileError
from bitsback.formats.config_text import bases, difference
from bitsback.formats.config_tree import DEFAULTS, MESSAGE_SECTIONS, MODEL_SECTIONS, from_tree, to_tree, with_first_defaults

FROZEN = "0ac10691"


def test_the_table_is_frozen():
    """What stands in it never changes; only settings that are new may be added under `later`."""
    content = (files("bitsback.formats") / "defaults_1.json").read_bytes()
    first = content[: content.index(b'"later"')]
    assert hashlib.sha256(first).hexdigest()[:8] == FROZEN
    assert DEFAULTS["later"]["data"] == {"prior_fraction": None, "part": None}
    assert DEFAULTS["later"]["training"] == {
        "objective": {"kind": "elbo"},
        "antithetic": False,
        "fused": False,
        "noise_reuse": 8,
    }
    assert DEFAULTS["later"]["likelihood"] == {"labels": None, "standardise": False, "shift_bits": None}


@pytest.mark.parametrize(
    ("path", "then", "now"),
    [
        ("data.scaling", "unit", "auto"),
        ("training.epochs", 100, "auto"),
        ("training.beta.warmup_epochs", 0.0, "auto"),
        ("training.fused", False, True),
        ("likelihood.std", 1.0, None),
        ("likelihood.target_step", 0.01, None),
        ("likelihood.standardise", False, True),
    ],
)
def test_a_missing_setting_means_what_it_meant(path, then, now):
    tree = {"data": {"kind": "digits"}, "likelihood": {"kind": "gaussian"}, "training": {}}
    for values, expected in ((from_tree(tree), then), (Config.model_validate(tree), now)):
        for part in path.split("."):
            values = getattr(values, part)
        assert values == expected


def test_an_optimiser_of_another_name_has_defaults_of_its_own():
    tree = {"training": {"optimizer": {"name": "IVON"}}}
    assert with_first_defaults(tree)["training"]["optimizer"] == {"name": "IVON"}
    assert from_tree(tree).training.optimizer.lr == 0.3


@pytest.mark.parametrize("number", range(len(bases())))
def test_every_known_configuration_is_written_as_it_is_known(number):
    """Otherwise its header would grow from one byte to about two hundred."""
    known = bases()[number]
    sections = [name for name in (*MESSAGE_SECTIONS, "prequential") if name in known]
    tree = {name: value for name, value in known.items() if name in sections}
    locations = ["data.root=data/mnist"] if known.get("data", {}).get("kind") == "idx" else []
    config = from_tree(tree, locations)
    again = to_tree(config, sections)
    assert difference(tree, again) == ([], [])


def test_what_differs_from_the_first_meaning_is_written():
    tree = to_tree(Config.model_validate({"likelihood": {"kind": "gaussian", "target_step": 0.5}}), MODEL_SECTIONS)
    assert tree["likelihood"] == {"kind": "gaussian", "std": None, "noise": "learned", "target_step": 0.5, "standardise": True}
    assert from_tree(tree).likelihood.standardise


@pytest.mark.parametrize("ignore", [None, -1, -100])
def test_a_file_says_which_tokens_are_not_coded(ignore):
    """A missing value means none, though the default of YAML is -100."""
    config = Config.model_validate({"likelihood": {"kind": "tokens", "classes": 5, "ignore": ignore}})
    assert from_tree(to_tree(config, MODEL_SECTIONS)).likelihood == config.likelihood


@pytest.mark.parametrize("training", [{"epochs": "auto"}, {"beta": {"start": "auto"}}, {"beta": {"warmup_epochs": "auto"}}])
def test_a_file_says_how_long_to_train(training):
    with pytest.raises(FileError, match="does not say how long its sender trained"):
        from_tree({"data": {"kind": "digits"}, "training": training})
