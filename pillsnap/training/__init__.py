"""From a manifest to a checkpoint: backbone, augmentation, loaders, trainer."""

from pillsnap.core.process_environment import prepare_environment

prepare_environment()  # before the modules of this package import torch, which reads it only then
