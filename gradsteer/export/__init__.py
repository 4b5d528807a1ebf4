"""``gradsteer export``: the steered model, or the steering vector as an adapter, for tools that know nothing of us."""
