"""The reference by task: what a user of the library can name, each name on one page, under the name by which it is imported."""

import importlib
import inspect
import sys
from functools import cache
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from made import Made
from pydantic import BaseModel
from settings import anchor
from sphinx.pycode import ModuleAnalyzer
from text import code, table, toctree, unmarked

import bitsback
from bitsback.config import json_schema
from bitsback.registry import Registry

INTRODUCTION = """# API

By task. Names are imported when they are first used, so that `import bitsback` is quick. What is not listed here is internal,
and changes without notice.

"""
PLAIN = {
    "bitsback.__version__": "The version of the package, as text.",
    "bitsback.coding.NORMAL": "The density of N(0, 1), up to a constant.",
}
"""What is said of constants without a docstring."""


MEMBERS = {
    "bitsback.BayesianModel": "kl_bits refund_bits weights_by_prior posteriors smallest_std grid_step update_priors dtype "
    "device deterministic charges round_to_grid not_charged lay_out draw draw_number mirror holds sample mean holding "
    "set_noise seed predict mean_network sampled_network",
    "bitsback.model.Weight": "owner parameter is_gaussian is_trained",
}
"""What a user needs of classes whose other members are for the package."""


class Task(NamedTuple):
    """A page: its file, its title, a sentence, names, and the name space whose other names stand there as well."""

    file: str
    title: str
    about: str
    names: tuple[str, ...] = ()
    space: str = ""


def names(module: str, listed: str) -> tuple[str, ...]:
    """Names of one module, in full."""
    return tuple(f"{module}.{name}" for name in listed.split())


TASKS = (
    Task(
        "train",
        "Train",
        "From a configuration or a network of your own to a trained run.",
        (
            *names("bitsback", "train compare bayesianize BayesianModel evaluate load_config load_run Config Experiment"),
            *names("bitsback", "TrainingSettings EngineSettings LedgerSettings LoggingSettings __version__"),
            *names("bitsback.config", "Run to_yaml json_schema"),
            "bitsback.analysis.sources.TrainedRun",
            "bitsback.runs.Comparison",
            *names("bitsback.model", "Evaluation Weight"),
        ),
    ),
    Task(
        "ledger",
        "Ledger",
        "What was paid for data and weights: gross bits, the refund, the net.",
        names("bitsback", "take_ledger Ledger Entry width_curve"),
    ),
    Task(
        "ask",
        "Ask a run",
        "Questions that a trained run or a file of it answers; each answer can be printed, and has its numbers besides.",
        (
            *names("bitsback", "widen codelengths probe certify prune predict write_report"),
            "bitsback.analysis.widen.WidthCurve",
            *names("bitsback.analysis.codelengths", "CodeTable Row"),
            *names("bitsback.analysis.prune", "Pruning PrunedCost"),
            "bitsback.model.Prediction",
            *names("bitsback.result", "Result TableResult"),
        ),
    ),
    Task(
        "files",
        "Files",
        "Messages that carry labels, and files that carry a network, in real bytes.",
        (
            *names("bitsback", "pack unpack save load LoadedModel inspect send receive"),
            "bitsback.formats.model_file.write.Packed",
            "bitsback.formats.message.write.Sent",
            "bitsback.formats.prequential.write.Prequential",
            "bitsback.formats.two_part.TwoPart",
            "bitsback.formats.inspect.Inspection",
            *names("bitsback.formats.transfer", "Unpacked ReceivedFile"),
            *names("bitsback.formats.message.pyro_message", "send_program receive_program SentProgram ReceivedProgram"),
        ),
    ),
    Task("pyro", "Pyro", "Models as Pyro programs, and the ledger of any program.", space="bitsback.interop.pyro"),
    Task("guests", "Posteriors trained elsewhere", "Means and stds of other libraries as a model whose bits can be counted.",
         space="bitsback.interop"),
    Task("layers", "Layers", "Layers of torch that hold a posterior over each weight.", space="bitsback.nn"),
    Task("networks", "Ready networks", "Plain networks of torch for tables, sequences and images.",
         space="bitsback.networks"),
    Task("optimisers", "Optimisers", "For a training loop of your own.", space="bitsback.optim"),
    Task("priors", "Priors", "What a weight costs before the data are seen.", space="bitsback.priors"),
    Task("posteriors", "Posteriors", "What is known of a weight once the data are seen.", space="bitsback.posteriors"),
    Task("likelihoods", "Likelihoods", "What a target costs once the network has spoken.", space="bitsback.likelihoods"),
    Task("data", "Data", "Examples to train on and to test on, from whatever holds them.", space="bitsback.data"),
    Task("pictures", "Pictures", "Every figure of a report, to draw and save by itself.",
         names("bitsback.report", "figure FIGURES observe Observation write_comparison"), "bitsback.report.plots"),
    Task("sklearn", "scikit-learn", "Estimators for pipelines and searches.", space="bitsback.sklearn"),
    Task("certificates", "Certificates", "The inequalities behind `bitsback.certify`, to be used alone.",
         space="bitsback.certificates"),
    Task("coding", "An entropy coder", "The coder behind messages and model files, to be used alone.", space="bitsback.coding"),
    Task(
        "contracts",
        "Contracts for code of your own",
        "What a class of your own derives from, and the checks that tell whether it keeps its promises.",
        (
            *names("bitsback.priors", "Prior PriorSettings WeightInfo"),
            "bitsback.priors.base.ScalePrior",
            "bitsback.priors.settings.ScaleSettings",
            *names("bitsback.likelihoods", "Likelihood LikelihoodSettings Mixture"),
            "bitsback.posteriors.Posterior",
            "bitsback.data.DataSettings",
            "bitsback.optim.PosteriorOptimizer",
            "bitsback.nn.BayesianLayer",
            "bitsback.training.Logger",
            "bitsback.registry.Registry",
        ),
        "bitsback.testing",
    ),
    Task("errors", "Errors", "Each says what was given, what is allowed, and the fix.", space="bitsback.errors"),
)  # fmt: skip
SPACES = ("bitsback", *(task.space for task in TASKS if task.space))


@cache
def pages() -> dict[str, tuple[str, ...]]:
    """The full names on each page, by its file: what is not listed elsewhere of its name space, then those listed."""
    listed = {id(thing(name)) for task in TASKS for name in task.names}
    found = {}
    for task in TASKS:
        rest = importlib.import_module(task.space).__all__ if task.space else ()
        rest = [f"{task.space}.{name}" for name in rest]
        rest = [name for name in rest if id(thing(name)) not in listed]
        found[task.file] = (*sorted(rest, key=lambda name: (is_plain(thing(name)), name.lower())), *task.names)
    return found


def thing(full: str) -> Any:
    """What a full name stands for."""
    module, _, name = full.rpartition(".")
    return getattr(importlib.import_module(module), name)


@cache
def documented() -> dict[str, str]:
    """Where each name of a class, a function or a constant is described, by every name that leads to the same thing."""
    found = {name: name for listed in pages().values() for name in listed}
    by_thing = {id(thing(name)): name for name in found}
    for module, contents in [(name, vars(each)) for name, each in sys.modules.items() if f"{name}.".startswith("bitsback.")]:
        for name, value in list(contents.items()):
            if id(value) in by_thing and not isinstance(value, str | int | float | bool | None):
                found.setdefault(f"{module}.{name}", by_thing[id(value)])
    for module in SPACES:
        for name in importlib.import_module(module).__all__:
            if id(thing(f"{module}.{name}")) in by_thing:
                found.setdefault(f"{module}.{name}", by_thing[id(thing(f"{module}.{name}"))])
    return found


def public_name(full: str) -> str:
    """The name under which ``full``, or the class whose member it is, is described; an empty text for what is internal."""
    owner, member = full, ""
    while owner:
        if owner in documented():
            return documented()[owner] + member
        owner, _, last = owner.rpartition(".")
        member = f".{last}{member}"
    return ""


def members_of_bases(owner: str, target: str) -> list[str]:
    """Names that ``target`` may have where it is inherited: a member of a base of ``owner``."""
    if documented().get(owner) != owner or not inspect.isclass(thing(owner)):
        return []
    return [f"{base.__module__}.{base.__qualname__}.{target}" for base in thing(owner).__mro__]


def is_described(cls: type) -> bool:
    """Whether a class has a place in the reference, or comes from elsewhere."""
    return not cls.__module__.startswith("bitsback") or bool(public_name(f"{cls.__module__}.{cls.__qualname__}"))


def nearest(cls: type) -> list[type]:
    """The class itself if it has a place in the reference, else the first of its bases here that has."""
    return [each for each in cls.__mro__ if is_described(each) and (each is cls or each.__module__.startswith("bitsback"))][:1]


def inherited(cls: type) -> list[str]:
    """Names of the foreign bases of a class whose bases here are all internal: their members are shown as its own."""
    here = [base for base in cls.__mro__[1:] if base.__module__.startswith("bitsback")]
    if not here or any(map(is_described, here)):
        return []
    return [base.__name__ for base in cls.__mro__[1:] if base not in here]


def methods(cls: type) -> list[str]:
    """Methods that a class of settings describes itself."""
    own = {name: value for name, value in vars(cls).items() if not name.startswith("_")}
    return [name for name, value in own.items() if inspect.isfunction(value) and value.__doc__]


def described(full: str) -> str:
    """What an alias, a registry or a constant is, on one line."""
    if full in PLAIN:
        return PLAIN[full]
    found = thing(full)
    if isinstance(found, Registry):
        return f"Every {found.family} by its kind: {', '.join(f'``{kind}``' for kind in found)}."
    if not get_args(found):
        return said_below(full) or f"By name: {', '.join(found)}."
    while get_origin(found) is Annotated:
        found = get_args(found)[0]
    members = [f"``{each.__name__}``" if inspect.isclass(each) else f"``{each!r}``" for each in get_args(found)]
    return f"One of {', '.join(members)}."


def said_below(full: str) -> str:
    """The docstring below a constant, where it is defined."""
    name = full.rpartition(".")[2]
    for module in [each for each in sys.modules if each.startswith("bitsback.")]:
        if vars(sys.modules[module]).get(name) is thing(full):
            lines = ModuleAnalyzer.for_module(module).find_attr_docs().get(("", name))
            if lines:
                return " ".join(lines).strip()
    return ""


def summary(full: str) -> str:
    """The first line of a docstring."""
    found = thing(full)
    if is_plain(found):
        return unmarked(described(full))
    return unmarked((found.__doc__ or "").strip().partition("\n")[0])


def is_plain(found: object) -> bool:
    """Whether one line says all of it."""
    return not (inspect.isclass(found) or inspect.isroutine(found) or hasattr(found, "__wrapped__"))


@cache
def settings_with_section() -> set[str]:
    """The classes that have a section of their own on the page of settings."""
    return {*json_schema()["$defs"]}


def entry(full: str) -> list[str]:
    """What autodoc is told of one name."""
    found = thing(full)
    if is_plain(found):
        module, _, name = full.rpartition(".")
        return [f".. py:data:: {name}", f"   :module: {module}", "", f"   {described(full)}", ""]
    if not inspect.isclass(found):
        return [f".. autofunction:: {full}", ""]
    if issubclass(found, BaseModel):
        has_section = found.__name__ in settings_with_section()
        own = "" if has_section else ", ".join(methods(found))
        where = f":ref:`Its settings <{anchor(found.__name__)}>`." if has_section else "See :doc:`every setting <settings>`."
        options = f"   :members: {own}" if own else "   :no-members:"
        return [f".. autoclass:: {full}", options, "", f"   {where}", ""]
    kind = "autoexception" if issubclass(found, BaseException) else "autoclass"
    stop = inherited(found)
    if full in MEMBERS:
        return [f".. {kind}:: {full}", f"   :members: {', '.join(MEMBERS[full].split())}", ""]
    again = [name for name, value in vars(found).items() if any(vars(base).get(name) is value for base in found.__mro__[1:])]
    options = {"inherited-members": stop, "exclude-members": [name for name in again if not name.startswith("_")]}
    return [f".. {kind}:: {full}", *(f"   :{option}: {', '.join(said)}" for option, said in options.items() if said), ""]


def page(task: Task) -> str:
    """The page of one task."""
    lines = [f"# {task.title}", "", *([task.about, ""] if task.names else [])]  # a name space speaks for itself
    again = [name for name in pages()[task.file] if name.count(".") > 1 and is_in_bitsback(name)]
    if again:
        lines += ["In `bitsback` itself as well: " + ", ".join(code(name.rpartition(".")[2]) for name in again) + ".", ""]
    lines += ["```{eval-rst}"]
    if task.space:
        lines += [f".. automodule:: {task.space}", "   :no-members:", ""]
    for name in pages()[task.file]:
        lines += entry(name)
    return "\n".join([*lines, "```", ""])


def is_in_bitsback(full: str) -> bool:
    """Whether a name of a name space is one of ``bitsback`` as well."""
    name = full.rpartition(".")[2]
    return name in bitsback.__all__ and getattr(bitsback, name) is thing(full)


def link(full: str) -> str:
    """A reference to a name."""
    return f"{{py:obj}}`{full} <{full}>`"


def make(made: Made) -> None:
    """Write reference/api.md and a page for every task."""
    parts = [INTRODUCTION, "```{eval-rst}\n.. py:module:: bitsback\n```\n"]
    for task in TASKS:
        made.write(f"reference/{task.file}.md", page(task))
        rows = [[link(name), summary(name)] for name in pages()[task.file]]
        parts.append(f"\n## [{task.title}]({task.file}.md)\n\n{task.about}\n\n" + table(["name", "what it is"], rows))
    made.write("reference/api.md", "".join(parts) + "\n" + toctree([task.file for task in TASKS], "hidden"))
