"""Trained networks as files: from the seed, under PyTorch's names, compact, ONNX, StableHLO, a page."""
