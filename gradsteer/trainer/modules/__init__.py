"""LightningModules: the finetune, the attribution, the generation of responses."""
