"""Many numbers that share a scale: schemes and the quantizer they describe."""
