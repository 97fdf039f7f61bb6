"""GGUF's block formats, byte for byte: the types that llama.cpp's files are made of.

A type cuts the last axis into blocks of 32 or 256 values and stores a block's scale beside its codes. To be read in the
order `layouts` (fields and bits), `legacy` (one scale per block), `search` (how to look for a better scale), `k_quants`
(scales that are themselves quantized), `i_quants` (codes that stand for uneven values, and for eight values at
once), `codec` (the table of types, and the verbs), `schemes` (the types as schemes).
"""

from qlab.tensor.gguf.codec import GGUF_TYPES, GGUFType, decode_gguf, encode_gguf
from qlab.tensor.gguf.schemes import dequantize_gguf, ledger_of, quantize_gguf

__all__ = [
    "GGUF_TYPES", "GGUFType", "decode_gguf", "dequantize_gguf", "encode_gguf", "ledger_of", "quantize_gguf",
]  # fmt: skip
