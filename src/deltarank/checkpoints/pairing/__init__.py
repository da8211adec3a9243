"""Matches the tensors of a base and a finetune by name (`name_matches`) and shape, and pairs them (`pair`)."""
