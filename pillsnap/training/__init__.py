"""From a manifest to a checkpoint: backbone, augmentation, loaders, trainer."""
