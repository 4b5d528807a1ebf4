"""Loading, splitting, packing, losses and memory of causal language models."""
