"""Everything Lightning: the Trainer, datamodules, modules and callbacks."""
