"""Matches the tensors of a base and a finetune by name and shape."""
