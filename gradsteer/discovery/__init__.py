"""Behaviors that a finetune taught, found without labels: where it spoke, groups of responses, their vectors."""
