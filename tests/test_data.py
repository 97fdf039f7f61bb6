"""The book's data and its classifier."""

import numpy as np
import pytest

import qlab


def test_digits():
    data = qlab.data.digits()
    assert data.train_x.shape == (1200, 64)
    assert data.test_x.shape == (597, 64)
    assert (data.train_x.min(), data.train_x.max()) == (0, 1)
    assert set(data.test_y) == set(range(10))
    together = np.concatenate([data.train_x, data.test_x])
    assert len(np.unique(together, axis=0)) == len(together)  # no picture is in both
    data.train_x[:] = 0
    assert qlab.data.digits().train_x.max() == 1  # each caller has a copy


def test_classifier_learns_the_digits():
    data, network = qlab.data.digits(), qlab.data.train_digits()
    assert network.accuracy(data.test_x, data.test_y) > 97
    assert network.num_weights == 64 * 64 + 64 * 10
    assert all(w.dtype == np.float32 for w in (*network.weights, *network.biases))
    halved = network.map_weights(lambda w: w * 0)
    assert halved.accuracy(data.test_x, data.test_y) < 20
    assert network.accuracy(data.test_x, data.test_y) > 97


def test_training_is_the_same_every_time():
    first = qlab.data.train_digits(16)
    qlab.data._train.cache_clear()
    for a, b in zip(first.weights, qlab.data.train_digits(16).weights, strict=True):
        assert np.array_equal(a, b)


def test_refusals():
    with pytest.raises(ValueError, match="hidden=0"):
        qlab.data.train_digits(0)
