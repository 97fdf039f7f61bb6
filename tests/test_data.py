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


def test_a_training_step_is_what_the_classifier_was_trained_with():
    step, network, data = qlab.data.training_step(), qlab.data.train_digits(), qlab.data.digits()
    assert all(array.dtype == np.float32 for part in step for array in part.values())
    assert np.array_equal(step.parameters["w1"], network.weights[0])
    assert np.array_equal(step.activations["logits"].argmax(1), network.predict(data.train_x))
    assert np.allclose(step.activations["probabilities"].sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("name", ["w1", "b1", "w2", "b2"])
def test_gradients_are_differences_of_the_loss(name):
    def loss(parameters):
        probabilities = qlab.data._forward_and_backward(list(parameters.values())).activations["probabilities"]
        return -np.log(probabilities[np.arange(1200), qlab.data.digits().train_y]).mean()

    step = qlab.data.training_step(3)
    parameters = {key: value.astype(np.float64) for key, value in step.parameters.items()}
    at = np.unravel_index(np.abs(step.gradients[name]).argmax(), step.gradients[name].shape)
    above, below = ({key: value.copy() for key, value in parameters.items()} for _ in range(2))
    above[name][at] += 1e-5
    below[name][at] -= 1e-5
    assert (loss(above) - loss(below)) / 2e-5 == pytest.approx(step.gradients[name][at], rel=1e-4)


def test_refusals():
    with pytest.raises(ValueError, match="step=-1"):
        qlab.data.training_step(-1)
    with pytest.raises(ValueError, match="hidden=0"):
        qlab.data.train_digits(0)
