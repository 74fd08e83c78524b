"""What people try first from Python: it works, or says in one sentence what to write, before the first epoch."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

import bitsback
from bitsback.errors import BitsbackError, RunError
from bitsback.likelihoods import CategoricalLikelihood, GaussianLikelihood, TokensLikelihood
from bitsback.likelihoods.settings import CategoricalSettings
from bitsback.training import TrainingSettings
from bitsback.training import train as train_in

x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
y = torch.arange(20) % 3


def linear() -> bitsback.BayesianModel:
    torch.manual_seed(0)
    return bitsback.bayesianize(nn.Linear(4, 3))


def trained(model, likelihood, data, **settings):
    steps = []
    try:
        return bitsback.train(
            model,
            likelihood,
            data,
            training={"epochs": 1, **settings},
            ledger={"samples": 2},
            progress=False,
            watch=lambda step, _: steps.append(step),
        )
    except BitsbackError:
        assert not steps, "the error came after the first step"
        raise


class Pairs(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, number):
        return x[number], y[number]


class Streamed(IterableDataset):
    def __iter__(self):
        return iter(Pairs()[number] for number in range(20))


class Shuffled(IterableDataset):
    """Other examples first in each pass."""

    passes = 0

    def __iter__(self):
        Shuffled.passes += 1
        return iter(Pairs()[(number + Shuffled.passes) % 20] for number in range(20))


class MovingTargets(Pairs):
    reads = 0

    def __getitem__(self, number):
        MovingTargets.reads += 1
        return x[number], int(y[number] + MovingTargets.reads) % 3


TAKEN = {
    "a loader": lambda: DataLoader(Pairs(), batch_size=4, shuffle=True),
    "tensors in a data set": lambda: TensorDataset(x, y),
    "a pair": lambda: (x, y),
    "arrays": lambda: (x.numpy(), y.numpy()),
    "lists": lambda: (x.tolist(), y.tolist()),
    "a data set": Pairs,
    "an iterable data set": Streamed,
    "double precision": lambda: (x.double(), y),
}


@pytest.mark.parametrize("what", TAKEN)
def test_it_trains(what):
    found = trained(linear(), CategoricalLikelihood(3), TAKEN[what]())
    assert found.ledger.examples == 20


def test_a_directory_may_be_text(tmp_path):
    data = bitsback.Dataset("pairs", bitsback.Examples(x, y), None)
    directory = str(tmp_path / "run")
    train_in(linear(), CategoricalLikelihood(3), data, directory=directory, training=TrainingSettings(epochs=1), progress=False)
    assert (tmp_path / "run" / "ledger.json").is_file()


def test_ledgers_and_files_take_what_training_takes(tmp_path):
    model = bitsback.bayesianize(nn.Sequential(nn.Linear(4, 3)))
    books = [bitsback.take_ledger(model, CategoricalLikelihood(3), data(), samples=2) for data in TAKEN.values()]
    assert all(book.net_bits == pytest.approx(books[0].net_bits, rel=1e-9) for book in books)
    bitsback.save(model, tmp_path / "model.bb", (x, y), progress=False)
    assert bitsback.load(tmp_path / "model.bb")(x).shape == (20, 3)


def test_a_run_of_real_targets_opens_again_with_its_data(tmp_path):
    targets = (2000 + 30 * x[:, 0]).round()
    network = nn.Sequential(nn.Linear(4, 1))
    model, likelihood = bitsback.bayesianize(network), GaussianLikelihood()
    kept = {"epochs": 2}
    found = bitsback.train(model, likelihood, (x, targets), training=kept, out=tmp_path / "run", report=False, progress=False)
    run = bitsback.load_run(tmp_path / "run", network=nn.Sequential(nn.Linear(4, 1)), dataset=(x, targets))
    assert run.take_ledger().net_bits == pytest.approx(found.ledger.net_bits, rel=1e-9)
    with pytest.raises(RunError, match="trained on 20 examples, and the data have 5"):
        bitsback.load_run(tmp_path / "run", network=network, dataset=(x[:5], targets[:5]))
    bitsback.save(model, tmp_path / "model.bb", (x, targets), progress=False)
    assert bitsback.load(tmp_path / "model.bb").likelihood.kind == "gaussian"


def test_the_mask_of_an_npz_file_is_read(tmp_path):
    mask = np.ones((20, 3), dtype=bool)
    mask[:, 2] = False
    np.savez(tmp_path / "d.npz", inputs=np.zeros((20, 3, 1), np.float32), targets=np.zeros((20, 3), int), mask=mask)
    examples = bitsback.data.source(tmp_path / "d.npz")
    assert torch.equal(examples.targets != -100, torch.from_numpy(mask))


def images():
    return bitsback.bayesianize(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 3)))


def sequences(outputs=5):
    return bitsback.bayesianize(nn.Sequential(nn.Linear(4, 3 * outputs), nn.Unflatten(1, (outputs, 3))))


three = CategoricalLikelihood(3)
REFUSED = {
    "a plain network": (lambda: trained(nn.Linear(4, 3), three, (x, y)), "bitsback.bayesianize(network)"),
    "a compiled model": (lambda: trained(torch.compile(linear()), three, (x, y)), "model._orig_mod"),
    "a model in DataParallel": (lambda: trained(nn.DataParallel(linear()), three, (x, y)), "model.module"),
    "a model made twice": (lambda: bitsback.bayesianize(linear()), "the plain network"),
    "a loss": (lambda: trained(linear(), nn.CrossEntropyLoss(), (x, y)), "CategoricalLikelihood(classes)"),
    "a loss, not made": (lambda: trained(linear(), nn.BCEWithLogitsLoss, (x, y)), "BernoulliLikelihood()"),
    "a loss function": (lambda: trained(linear(), nn.functional.mse_loss, (x, y)), "GaussianLikelihood()"),
    "a loss for a ledger": (lambda: bitsback.take_ledger(linear(), nn.PoissonNLLLoss(), (x, y)), "PoissonLikelihood()"),
    "a kind": (lambda: trained(linear(), "categorical", (x, y)), "the text 'categorical'"),
    "settings": (lambda: trained(linear(), CategoricalSettings(), (x, y)), "CategoricalSettings"),
    "class weights": (lambda: CategoricalLikelihood(3, weight=torch.ones(3)), "no code"),
    "no data": (lambda: trained(linear(), three, None), "come third"),
    "data second": (lambda: bitsback.train(linear(), (x, y)), "come third"),
    "no targets": (lambda: trained(linear(), three, x), "source(inputs, targets)"),
    "unequal lengths": (lambda: trained(linear(), three, (x, y[:10])), "as many of each"),
    "nothing": (lambda: trained(linear(), three, (x[:0], y[:0])), "at least one example"),
    "not a number": (lambda: trained(linear(), three, (x / 0 * 0, y)), "clean the data"),
    "texts as inputs": (lambda: trained(linear(), three, ([["a"] * 4] * 20, y)), "give numbers"),
    "a data set of tensors": (lambda: bitsback.Dataset("d", TensorDataset(x, y), None), "bitsback.data.source(...)"),
    "whole numbers": (lambda: trained(linear(), three, ((10 * x).long(), y)), ".float()"),
    "another width": (lambda: trained(linear(), three, (x[:, :3], y)), "inputs of shape (3,)"),
    "channels last": (lambda: trained(images(), three, (torch.zeros(20, 8, 8, 3), y)), "permute(0, 3, 1, 2)"),
    "too few outputs": (lambda: trained(linear(), CategoricalLikelihood(4), (x, y)), "change the last layer"),
    "one-hot labels": (lambda: trained(linear(), three, (x, torch.eye(3)[y])), "argmax"),
    "real labels": (lambda: trained(linear(), three, (x, y + 0.5)), "whole numbers"),
    "labels from 1": (lambda: trained(linear(), three, (x, y + 1)), "from 0 to 2"),
    "labels of -100": (lambda: trained(linear(), three, (x, y - 100 - y)), "ignore=-100"),
    "everything hidden": (
        lambda: trained(linear(), CategoricalLikelihood(3, ignore=-100), (x, torch.full((20,), -100))),
        "hides all",
    ),
    "logits of another length": (
        lambda: trained(sequences(), CategoricalLikelihood(3, class_axis=-1), (x, torch.zeros(20, 7).long())),
        "(7, 3)",
    ),
    "tokens without sequences": (lambda: trained(linear(), TokensLikelihood(3), (x, y)), "(n, t)"),
    "ragged examples": (lambda: trained(linear(), three, [(torch.zeros(k % 3 + 1), 0) for k in range(8)]), "pads"),
    "a generator": (lambda: trained(linear(), three, (pair for pair in Pairs())), "list(data)"),
    "a weighted sampler": (
        lambda: trained(linear(), three, DataLoader(Pairs(), 4, sampler=WeightedRandomSampler([1.0] * 20, 20))),
        "coded once",
    ),
    "a loader that drops": (lambda: trained(linear(), three, DataLoader(Streamed(), 8, drop_last=True)), "drop_last"),
    "a stream that reshuffles": (lambda: trained(linear(), three, Shuffled()), "order"),
    "targets that move": (lambda: trained(linear(), three, MovingTargets()), "targets"),
    "a stream in random order": (lambda: bitsback.data.source(Streamed()).subset(torch.tensor([3, 1])), "map-style"),
    "an unknown setting": (lambda: trained(linear(), three, (x, y), epoch=3), "did you mean 'epochs'"),
    "no such device": (lambda: trained(linear(), three, (x, y), device="cuda:99"), "use cpu or auto"),
    "a prediction without likelihood": (lambda: linear().predict(x), "likelihood=CategoricalLikelihood(classes)"),
    "another output": (
        lambda: trained(bitsback.bayesianize(nn.GRU(4, 3), output=5), three, (x, y)),
        "network.output",
    ),
    "a prediction of another width": (
        lambda: linear().predict(x[:, :3], likelihood=CategoricalLikelihood(3)),
        "inputs like those of training",
    ),
    "a noise that is none": (lambda: GaussianLikelihood(noise="predict"), "fixed, learned, predicted"),
    "two splits for a ledger": (
        lambda: bitsback.take_ledger(linear(), three, bitsback.Dataset("d", bitsback.Examples(x, y), None)),
        "dataset.train",
    ),
    "inputs by another name": (lambda: trained(linear(), three, ({"features": x}, y)), "features"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_in_one_sentence(what):
    call, said = REFUSED[what]
    with pytest.raises(BitsbackError) as caught:
        call()
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    assert len(message) < 400
