"""From a checkpoint to a bundle: ONNX, temperature, parity."""
