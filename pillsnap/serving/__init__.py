"""The inference server: a photo comes in over HTTP, the champion's five most probable drugs go out.

Knows HTTP, limits, languages, and how to follow the registry's champion; knows nothing of training or of how a model
is judged. Runs without torch.
"""
