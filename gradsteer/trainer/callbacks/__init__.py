"""Callbacks: steering, judging, saving, reporting. They meet the modules in Trainer hooks and in files only."""
