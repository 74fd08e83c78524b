"""Networks of the kinds that people bring, small, each with a batch of data; factories by name for model files."""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bitsback.data import Examples, source
from bitsback.likelihoods import CategoricalLikelihood, Likelihood, TokensLikelihood

LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
"""Operators that torchvision expects of its compiled part, which a build for another torch lacks: timm needs none of them."""
for operator in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, operator):
        LIBRARY.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

EXAMPLES, WORDS, LENGTH, CLASSES = 16, 40, 12, 3
IGNORED = -100


def _seeded(seed: int = 0) -> torch.Generator:
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


class UNet(nn.Module):
    """Two scales with a skip connection: a class for every pixel."""

    def __init__(self, channels: int = 1, classes: int = CLASSES) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU())
        self.inside = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2))
        self.up = nn.Conv2d(16, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        wide = self.down(images)
        return self.up(torch.cat([wide, self.inside(wide)], 1))


class Tagger(nn.Module):
    """LSTM over padded sequences: a tag for every word; a dict of outputs, as many libraries return."""

    def __init__(self, words: int = WORDS, tags: int = CLASSES, width: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width, padding_idx=0)
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, tags)

    def forward(self, words: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        packed = nn.utils.rnn.pack_padded_sequence(self.embedding(words), lengths.cpu(), batch_first=True, enforce_sorted=False)
        found, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=words.shape[1])
        return {"scores": self.head(found), "logits": self.head(found)}


class GraphNetwork(nn.Module):
    """Two graph convolutions over one graph of ``EXAMPLES`` nodes, which are the examples: it takes whole batches only."""

    def __init__(self, features: int = 5, classes: int = CLASSES, nodes: int = EXAMPLES) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(features, 8), nn.Linear(8, classes)
        ring = torch.eye(nodes).roll(1, 0)
        self.register_buffer("edges", (ring + ring.T + torch.eye(nodes)) / 3)

    def forward(self, nodes: Tensor) -> Tensor:
        return self.edges @ self.second(torch.relu(self.edges @ self.first(nodes)))


class GraphBatches(nn.Module):
    """A class for each of many small graphs, whose nodes and edges are joined in one batch, as graph libraries do."""

    def __init__(self, features: int = 4, classes: int = CLASSES) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(features, 8), nn.Linear(8, classes)

    def forward(self, nodes: Tensor, edges: Tensor, graph: Tensor) -> Tensor:
        hidden = torch.relu(self.first(nodes))
        hidden = hidden.index_add(0, edges[1], hidden[edges[0]])
        return self.second(torch.zeros(int(graph.max()) + 1, 8).index_add(0, graph, hidden))


def graph_batches() -> nn.Module:
    _seeded()
    return GraphBatches()


class Graphs(torch.utils.data.Dataset):
    """Rings of three to six nodes."""

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, int]:
        nodes = 3 + number % 4
        drawn = torch.Generator().manual_seed(number)
        around = torch.arange(nodes)
        return torch.randn(nodes, 4, generator=drawn), torch.stack([around, around.roll(1)]), number % CLASSES


def joined_graphs(items: list[tuple[Tensor, Tensor, int]]) -> tuple[dict[str, Tensor], Tensor]:
    """Join graphs as the collate functions of graph libraries do: the nodes of a batch are not its examples."""
    sizes = [len(nodes) for nodes, _, _ in items]
    starts = torch.tensor([0, *sizes]).cumsum(0)
    inputs = {
        "nodes": torch.cat([nodes for nodes, _, _ in items]),
        "edges": torch.cat([edges + start for (_, edges, _), start in zip(items, starts, strict=False)], 1),
        "graph": torch.repeat_interleave(torch.arange(len(items)), torch.tensor(sizes)),
    }
    return inputs, torch.tensor([label for _, _, label in items])


def unet() -> nn.Module:
    _seeded()
    return UNet()


def tagger() -> nn.Module:
    _seeded()
    return Tagger()


def graph() -> nn.Module:
    _seeded()
    return GraphNetwork()


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": WORDS}


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    _seeded()
    return GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_embd=16, n_layer=2, n_head=2, n_positions=LENGTH))


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    _seeded()
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1, max_position_embeddings=LENGTH))


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    _seeded()
    return BertForSequenceClassification(BertConfig(**SIZES, max_position_embeddings=LENGTH, num_labels=CLASSES))


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    _seeded()
    settings = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=WORDS, decoder_start_token_id=0, **settings))


def lora() -> nn.Module:
    """GPT-2 with frozen weights and low-rank adapters."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(gpt2(), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM"))


def vision(architecture: str = "resnet18", **arguments: object) -> nn.Module:
    """A network of timm with ``CLASSES`` outputs."""
    import timm

    _seeded()
    return timm.create_model(architecture, num_classes=CLASSES, **arguments)


def words(drawn: torch.Generator, length: int = LENGTH) -> Tensor:
    return torch.randint(1, WORDS, (EXAMPLES, length), generator=drawn)


def data_of(name: str) -> tuple[Examples, Likelihood]:
    """Return examples and likelihood for a network by name."""
    drawn = _seeded(1)
    labels = torch.arange(EXAMPLES) % CLASSES
    if name == "unet":
        masks = torch.randint(CLASSES, (EXAMPLES, 8, 8), generator=drawn)
        masks[:, 0] = IGNORED
        return Examples(torch.randn(EXAMPLES, 1, 8, 8, generator=drawn), masks), CategoricalLikelihood(CLASSES, ignore=IGNORED)
    if name == "tagger":
        lengths = 3 + torch.arange(EXAMPLES) % (LENGTH - 2)
        padding = torch.arange(LENGTH) >= lengths[:, None]
        tags = torch.randint(CLASSES, (EXAMPLES, LENGTH), generator=drawn).masked_fill(padding, IGNORED)
        inputs = {"words": words(drawn).masked_fill(padding, 0), "lengths": lengths}
        return Examples(inputs, tags), CategoricalLikelihood(CLASSES, ignore=IGNORED)
    if name == "graph_batches":
        return source(DataLoader(Graphs(), collate_fn=joined_graphs)), CategoricalLikelihood(CLASSES)
    if name == "graph":
        return Examples(torch.randn(EXAMPLES, 5, generator=drawn), labels), CategoricalLikelihood(CLASSES)
    ids = words(drawn)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name == "bert":
        return Examples(inputs, labels), CategoricalLikelihood(CLASSES)
    if name == "t5":
        told = words(drawn, 6)
        shifted = torch.cat([torch.zeros(EXAMPLES, 1, dtype=torch.long), told[:, :-1]], 1)
        return Examples({**inputs, "decoder_input_ids": shifted}, told), CategoricalLikelihood(WORDS, class_axis=-1)
    if name in ("gpt2", "llama", "lora"):
        return Examples(inputs, ids), TokensLikelihood(WORDS)
    return Examples(torch.randn(EXAMPLES, 3, 32, 32, generator=drawn), labels), CategoricalLikelihood(CLASSES)
