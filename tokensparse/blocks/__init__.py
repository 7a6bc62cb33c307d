"""Attention over a set or in windows, the transformer block, stems, stage transitions."""
