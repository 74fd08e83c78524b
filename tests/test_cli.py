"""The command line: every command at toy size, what it prints, what it leaves behind, and how it stops."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bitsback.cli.app import main
from bitsback.config import Config, json_schema, load_config
from bitsback.errors import ConfigError
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.priors import registry as priors
from bitsback.training.loop import Fit

TOY = "data: {kind: digits, limit: 200}\ntraining: {epochs: 3}\nledger: {samples: 2}\nlogging: {report: false}\n"
COMMANDS = ["train", "ledger", "widen", "compare", "priors", "schema"]
MONEY = ("net_bits", "gross_bits", "refund_bits", "data_bits")


def invoke(patch, *arguments):
    """Runs main() in this process; returns the exit code."""
    patch.setattr(sys, "argv", ["bitsback", *map(str, arguments)])
    patch.setenv("BITSBACK_DEBUG", "")
    try:
        main()
    except SystemExit as stopped:
        return stopped.code or 0
    return 0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of toy.yaml with the Laplace prior; nobody changes it."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "toy.yaml").write_text(TOY)
    with pytest.MonkeyPatch.context() as patch:
        assert (
            invoke(patch, "train", folder / "toy.yaml", "prior.kind=laplace", "logging.report=true", "--out", folder / "run")
            == 0
        )
    return folder / "run"


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """Runs a command in a folder with toy.yaml; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(TOY)

    def call(*arguments):
        code = invoke(monkeypatch, *arguments)
        said = capsys.readouterr()
        return SimpleNamespace(code=code, out=said.out, err=said.err)

    return call


@pytest.fixture
def interrupted(cli, monkeypatch):
    """Runs a command that is interrupted by Ctrl-C after two epochs."""

    def call(*arguments):
        run_epoch = Fit.run_epoch

        def two_epochs(fit):
            if fit.epoch == 2:
                raise KeyboardInterrupt
            return run_epoch(fit)

        with monkeypatch.context() as patch:
            patch.setattr(Fit, "run_epoch", two_epochs)
            return cli(*arguments)

    return call


def answer(said):
    assert said.code == 0, said.err
    return json.loads(said.out)


def shown(text):
    """The numbers with one decimal in every line of a table that has three or more of them."""
    lines = [re.findall(r"(?<=\s)-?[\d,]+\.\d(?=\s|$)", line) for line in text.splitlines()]
    return [[float(number.replace(",", "")) for number in numbers] for numbers in lines if len(numbers) >= 3]


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_train_writes_every_file_of_a_run(run):
    kept = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    files = {"config.yaml", "metrics.jsonl", "ledger.json", "summary.json", "posterior.safetensors", "report.html"}
    assert kept == files | {"checkpoint/state.safetensors", "checkpoint/previous.safetensors"}


def test_a_run_that_wants_no_report_has_none(cli, tmp_path):
    said = cli("train", "toy.yaml", "--out", "out")
    assert "report.html" not in said.out
    assert not (tmp_path / "out" / "report.html").exists()


def test_train_without_out_makes_a_run_named_by_its_configuration(cli, tmp_path):
    assert cli("train", "toy.yaml").code == 0
    (made,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"toy-\d{8}-\d{6}", made.name)
    assert (made / "ledger.json").is_file()


def test_train_prints_a_ledger_that_adds_up_in_the_digits_shown(cli):
    said = cli("train", "toy.yaml", "logging.report=true", "--out", "out")
    rows = shown(said.out)
    assert len(rows) == 2 + 6
    assert all(gross - refund == pytest.approx(net, abs=1e-6) for gross, refund, net, *_ in rows)
    assert re.search(r"The labels cost 664 bits without a model; with it [\d,]+ bits, model included\.", said.out)
    assert said.out.endswith("The run is in out\nTo look at it: out/report.html\n")


def test_train_prints_json_alone_on_stdout(cli, tmp_path):
    book = answer(cli("train", "toy.yaml", "--out", "out", "--json"))
    assert {*MONEY, "data_bits_stderr", "net_weight_bits", "hyperparameter_bits", "entries", "charges", "weights"} <= set(book)
    for part in [book, *book["entries"]]:
        assert part["gross_bits"] - part["refund_bits"] == pytest.approx(part["net_bits"], abs=1e-6)
    parts = book["data_bits"] + book["net_weight_bits"] + book["hyperparameter_bits"]
    assert parts == pytest.approx(book["net_bits"], abs=1e-6)
    assert book == json.loads((tmp_path / "out" / "ledger.json").read_text())


def test_metrics_have_a_line_for_every_epoch_that_adds_up(run):
    metrics = lines_of(run / "metrics.jsonl")
    assert [line["epoch"] for line in metrics] == [1, 2, 3]
    assert all({*MONEY, "beta", "lr", "test_error", "seconds"} <= set(line) for line in metrics)
    assert all(line["gross_bits"] - line["refund_bits"] == pytest.approx(line["net_bits"], abs=1e-6) for line in metrics)


def test_the_configuration_of_a_run_reads_back_equal(run):
    given = load_config(run.parent / "toy.yaml", ["prior.kind=laplace", "logging.report=true"])
    settled = given.training.settled(200, CategoricalLikelihood(10))  # numbers in place of auto
    data = given.data.model_copy(update={"scaling": "unit"})
    assert load_config(run / "config.yaml") == given.model_copy(update={"training": settled, "data": data})


def test_an_interruption_exits_with_130_and_says_how_to_resume(interrupted, cli, tmp_path):
    said = interrupted("train", "toy.yaml", "--out", "out")
    assert said.code == 130
    assert "interrupted; continue with: bitsback train out --resume" in said.err
    assert "Traceback" not in said.err
    assert not (tmp_path / "out" / "ledger.json").exists()
    assert "out has no ledger yet; finish it with `bitsback train out --resume`" in cli("ledger", "out").err


def test_every_command_says_that_it_was_interrupted(interrupted, cli, tmp_path):
    said = interrupted("compare", "toy.yaml", "prior.kind=laplace,gaussian")
    assert (said.code, said.err.splitlines()[-1]) == (130, "bitsback: interrupted")
    assert "Traceback" not in said.err


@pytest.mark.parametrize("seconds", [0, 1000])
def test_a_resumed_run_ends_as_an_uninterrupted_one(interrupted, cli, tmp_path, seconds):
    overrides = ["prior.kind=laplace", f"training.checkpoint_seconds={seconds}"]
    straight = answer(cli("train", "toy.yaml", *overrides, "--out", "straight", "--json"))
    interrupted("train", "toy.yaml", *overrides, "--out", "out")
    assert answer(cli("train", "out", "--resume", "--json")) == straight
    timeless = [[{k: v for k, v in line.items() if k != "seconds"} for line in lines_of(tmp_path / name / "metrics.jsonl")]
                for name in ("straight", "out")]  # fmt: skip
    assert timeless[0] == timeless[1]


def test_ledger_shows_what_train_wrote(cli, run):
    assert answer(cli("ledger", run, "--json")) == json.loads((run / "ledger.json").read_text())
    rows = shown(cli("ledger", run).out)
    assert len(rows) == 2 + 6
    assert all(gross - refund == pytest.approx(net, abs=1e-6) for gross, refund, net, *_ in rows)


def test_a_recomputed_ledger_of_the_same_draws_is_the_same(cli, run):
    again = answer(cli("ledger", run, "--recompute", "--samples", "2", "--json"))
    assert again == json.loads((run / "ledger.json").read_text())


@pytest.mark.parametrize("command", [["ledger", "--recompute"], ["widen"]], ids=" ".join)
def test_a_run_in_double_precision_can_be_looked_at_again(cli, command):
    assert cli("train", "toy.yaml", "training.precision=float64", "--out", "out").code == 0
    assert cli(*command, "out", "--samples", "1").code == 0


def test_advice_on_a_grid_that_is_too_coarse_names_the_key_that_was_set(cli):
    said = cli(
        "train",
        "toy.yaml",
        "posterior={kind: point}",
        "prior={kind: gaussian, learn: none}",
        "ledger.grid_step=10",
        "--out",
        "out",
    )
    assert said.code == 1
    assert re.search(r"bitsback: grid step 10 is too coarse .*; set ledger\.grid_step to ", said.err)


def test_widen_prices_nine_widths_that_add_up(cli, run):
    rows = answer(cli("widen", run, "--samples", "2", "--json"))
    assert [row["factor"] for row in rows] == [2.0**k for k in range(-4, 5)]
    assert all(r["gross_weight_bits"] - r["refund_bits"] == pytest.approx(r["net_weight_bits"], abs=1e-6) for r in rows)
    trained = json.loads((run / "ledger.json").read_text())
    assert rows[4]["net_bits"] == pytest.approx(trained["net_bits"], abs=1e-6)


def test_the_table_of_widths_marks_the_cheapest_and_adds_up_in_the_digits_shown(cli, run):
    text = cli("widen", run, "--samples", "2").out
    rows = [row[-5:] for row in shown(text)]  # without the width itself
    (marked,) = [row for row, line in zip(rows, text.splitlines()[2:-1], strict=True) if line.endswith("cheapest")]
    assert marked[-1] == min(row[-1] for row in rows)
    assert all(gross - refund == pytest.approx(net, abs=1e-6) for gross, refund, net, *_ in rows)


def test_a_point_estimate_has_no_width(cli):
    cli("train", "toy.yaml", "posterior={kind: point}", "prior={kind: gaussian, learn: none}", "--out", "out")
    said = cli("widen", "out")
    assert (said.code, said.err.count("bitsback: a point estimate has no width to change")) == (1, 1)


def test_compare_prints_a_row_for_every_value_that_adds_up_in_the_digits_shown(cli, tmp_path):
    said = cli("compare", "toy.yaml", "seed=0,1,2,3,4,5,6,7", "training.epochs=1")
    table = "".join(line + "\n" for line in said.out.splitlines() if not line.startswith("seed="))
    rows = shown(table)
    assert sorted(line.split()[0] for line in table.splitlines()[2:]) == list("01234567")
    assert [net for net, *_ in rows] == sorted(net for net, *_ in rows)
    assert all(gross - refund == pytest.approx(net, abs=1e-6) for net, gross, refund, *_ in rows)
    assert [path.name for path in tmp_path.iterdir()] == ["toy.yaml"]


def test_compare_prints_json_and_keeps_the_runs_in_out(cli):
    rows = answer(cli("compare", "toy.yaml", "prior.kind=gaussian,laplace", "--out", "out", "--json"))
    assert [row["prior.kind"] for row in rows] == ["gaussian", "laplace"]
    assert all({*MONEY, "test_error", "seconds"} <= set(row) for row in rows)
    assert answer(cli("ledger", "out/prior.kind=laplace", "--json"))["net_bits"] == rows[1]["net_bits"]


@pytest.mark.parametrize("position", [0, 1])
def test_compare_applies_fixed_settings_to_every_value_wherever_they_stand(cli, position):
    choices = ["prior.kind=gaussian,laplace"]
    choices.insert(position, "prior.scale=0.125")
    assert cli("compare", "toy.yaml", *choices, "--out", "out").code == 0
    assert [load_config(f"out/prior.kind={kind}/config.yaml").prior.scale for kind in ("gaussian", "laplace")] == [0.125] * 2


# priors and schema


def test_priors_lists_every_prior_and_describes_each(cli):
    listed = [line.split()[0] for line in cli("priors").out.splitlines()[2:]]
    assert listed == list(priors) == list(answer(cli("priors", "--json")))
    for kind in priors:
        text = cli("priors", kind).out
        assert [line.split()[0] for line in text.splitlines()[4:]] == list(priors[kind].model_fields)


def references(node):
    if isinstance(node, dict):
        found = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return found + [name for value in node.values() for name in references(value)]
    return [name for item in node for name in references(item)] if isinstance(node, list) else []


def test_schema_is_printed_or_written(cli, tmp_path):
    assert answer(cli("schema")) == json_schema()
    said = cli("schema", "--out", "configs/schema.json")
    assert (said.out, json.loads((tmp_path / "configs/schema.json").read_text())) == ("", json_schema())


def test_the_schema_knows_every_section_every_prior_and_whatever_it_refers_to(cli):
    schema = answer(cli("schema"))
    assert set(schema["properties"]) == {*Config.model_fields, "extends"}
    assert set(schema["properties"]["prior"]["discriminator"]["mapping"]) == {*priors, "factory"}
    assert {name.removeprefix("#/$defs/") for name in references(schema)} <= set(schema["$defs"])
    assert all(part["additionalProperties"] is False for part in [schema, *schema["$defs"].values()] if "properties" in part)


# help and mistakes


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(cli, command):
    said = cli(command, "--help")
    assert said.code == 0
    assert f"Example: bitsback {command}" in said.out


def test_debug_shows_the_error_as_it_was_raised(cli):
    with pytest.raises(ConfigError, match=r"cannot read gone\.yaml"):
        cli("--debug", "train", "gone.yaml")


def process(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def heavy_imports(*arguments):
    """A command in a process of its own, and which of the slow libraries it imported."""
    heavy = "print('heavy:', *sorted({'torch', 'pydantic', 'numpy'} & set(sys.modules)))"
    done = process(
        "-c", f"import atexit, sys; atexit.register(lambda: {heavy}); from bitsback.cli import main; main()", *arguments
    )
    assert done.returncode == 0
    return done.stdout, set(done.stdout.splitlines()[-1].split()[1:])


def test_help_imports_neither_torch_nor_pydantic_and_names_every_command():
    shown_help, heavy = heavy_imports("--help")
    assert not heavy
    assert all(re.search(rf"^  {command} ", shown_help, re.MULTILINE) for command in COMMANDS)


def test_the_ledger_of_a_finished_run_is_shown_without_torch(run):
    text, heavy = heavy_imports("ledger", str(run))
    assert "The labels cost" in text
    assert heavy <= {"pydantic"}  # some versions of typer import it


@pytest.mark.parametrize(
    ("flags", "start"), [([], "bitsback: cannot read "), (["--debug"], "Traceback")], ids=["plain", "debug"]
)
def test_a_process_shows_a_traceback_only_with_debug(flags, start):
    done = process("-m", "bitsback", *flags, "train", "gone.yaml")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(start)
    assert "cannot read gone.yaml" in done.stderr.splitlines()[-1]
    assert ("Traceback" in done.stderr) == bool(flags)
