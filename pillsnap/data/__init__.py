"""From folders of pictures to a manifest that can be trained on: sources, links, mixture, groups, split, cache."""
