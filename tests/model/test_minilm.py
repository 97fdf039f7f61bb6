"""A real sentence encoder under every kind of recipe: the cosine of its embeddings to those in float32."""

from functools import lru_cache

import pytest
import torch
from networks import recipe
from torch import nn

import qlab

LEAST = {
    "dynamic_int8": 0.99, "weight_only_int8": 0.999, "static_int8": 0.985, "weight_only_nf4": 0.974,
    "weight_only_int4": 0.96,
}  # fmt: skip

CALIBRATION = [
    "A scale is shared by a block of thirty-two weights.", "The train to the coast leaves at half past six.",
    "She planted tomatoes behind the house in April.", "Our server ran out of memory during the night.",
    "The committee postponed the vote until next week.", "He tuned the piano before the concert began.",
    "Glaciers in the Alps have lost half of their ice.", "Please sign the form and return it by Friday.",
    "The recipe calls for two eggs and a cup of flour.", "Investors fear that interest rates will rise again.",
    "A fox crossed the road just behind our car.", "The goalkeeper saved two penalties in the final.",
    "Doctors advise walking for thirty minutes a day.", "The museum bought a painting by an unknown artist.",
    "My phone's battery lasts for less than a day now.", "Light takes eight minutes from the Sun to the Earth.",
]  # fmt: skip


@lru_cache(maxsize=1)
def encoder():
    try:
        model, tokenize = qlab.data.minilm()
    except ImportError as error:
        pytest.skip(str(error))
    model.requires_grad_(False)
    tested = tokenize(qlab.data.sentences())
    return model, tokenize, tested, model(**tested)


def cosine(of):
    model, tokenize, tested, want = encoder()
    batches = [tokenize(CALIBRATION[i : i + 8]) for i in (0, 8)]
    found = qlab.quantize_model(model, of, batches, show=False)(**tested)
    return float(nn.functional.cosine_similarity(found, want).mean())


@pytest.mark.parametrize("name", LEAST)
def test_embeddings_stay_where_they_are(name):
    assert cosine(recipe(name)) >= LEAST[name]


@pytest.mark.parametrize("method, share, options", [("gptq", 0.7, {}), ("awq", 0.75, {"steps": 8}), ("hqq", 0.8, {})])
def test_methods_are_better_than_rounding(method, share, options):
    """Of what rounding loses of the cosine (0.038), GPTQ loses about 0.020, AWQ 0.023, HQQ, which sees no data, 0.027."""
    plain = cosine(qlab.Recipe(weights="int4-b32"))
    assert plain >= 0.96
    better = cosine(qlab.Recipe(weights="int4-b32", method=method, options=options))
    assert 1 - better < share * (1 - plain)


def test_nothing_but_linear_layers_changes():
    model, *_ = encoder()
    quantized = qlab.quantize_model(model, "dynamic_int8", show=False)
    assert isinstance(quantized.word, nn.Embedding)
    assert isinstance(quantized.norm, nn.LayerNorm)
    how = [row[4] for row in qlab.quantization_map(quantized).rows if row[1] == "Linear"]
    assert how == ["integer product"] * 36
    assert torch.equal(quantized.word.weight, model.word.weight)
