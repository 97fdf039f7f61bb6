"""Ranges of inputs that training finds."""

import pytest
import torch
from torch import nn

import qlab


@pytest.mark.parametrize("options", [{}, {"steps": "lsq"}, {"clip": "pact"}])
def test_a_range_that_no_finite_batch_has_set_is_refused(options):
    static = qlab.Recipe("int8-channel", qlab.Activations("int8-asym", "static"))
    prepared = qlab.prepare_qat(nn.Sequential(nn.Linear(8, 4)), static, **options)
    prepared(torch.full((2, 8), torch.nan))
    with pytest.raises(ValueError, match=r"layer '0' has (no range .*finite|learned a step of .*nan.*train again)"):
        qlab.convert(prepared, show=False)
