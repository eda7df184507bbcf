"""Trained networks as files: seeds, PyTorch's names, compact ones, ONNX, StableHLO, web pages."""
