"""Methods of post-training quantization, each for one layer: a page or two with its formula and its paper.

Those that choose the codes of a weight have a function ``quantize_weight(weight, inputs, scheme, **options) -> QTensor``:
`rtn`, `gptq`, `awq`, `hqq`, `adaround`. Those that change a network so that rounding hurts less leave its outputs alone:
`smoothquant` (`smoothquant.smooth_model` does a whole network), `equalize`, `rotation`; `bias` takes the mean of an error away.
"""
