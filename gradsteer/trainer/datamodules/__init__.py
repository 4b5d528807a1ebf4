"""LightningDataModules: chat data for the finetune, prompts for sampling, piles for attribution."""
