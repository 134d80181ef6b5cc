"""The built-in world: facts, grammar, probes, and the language model trained on them."""
