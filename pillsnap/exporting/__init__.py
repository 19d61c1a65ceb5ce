"""From a checkpoint to a bundle: ONNX, temperature, parity."""

from pillsnap.core.process_environment import prepare_environment

prepare_environment()  # before the modules of this package import torch, which reads it only then
