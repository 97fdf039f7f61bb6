"""One number: formats, rounding, codes. Read in the order formats, bits, rounding, lanes, codec, explain."""
