"""Messages of other packages that a user of ours can do nothing about; each with its reason.

Applied by the command line only: a notebook keeps whatever its owner set.
"""

import logging
import warnings

_WARNINGS = (
    # Lightning 2.6 calls what torch 2.13 deprecates; the user sees neither side
    (r"`isinstance\(treespec, LeafSpec\)` is deprecated", Warning),
    # fit without --data.validation has an empty validation loader, by design
    (r"Total length of `list` across ranks is zero", UserWarning),
    # examples are encoded when the run starts: worker processes would have nothing to do
    (r"The '\w+_dataloader' does not have many workers", UserWarning),
    # a few examples make a short epoch; the last loss is logged all the same
    (r"The number of training batches .* is smaller than the logging interval", UserWarning),
    # the validation's mean is synchronised by torchmetrics already
    (r"It is recommended to use `self.log\('val/", UserWarning),
    # a resumed finetune logs to a new version's directory, on purpose
    (r"The dirpath has changed from", UserWarning),
    # a stage's checkpoints directory may hold those of an earlier, unfinished run of it
    (r"Checkpoint directory .* exists and is not empty", UserWarning),
    # the finetune's model is put in train mode on purpose, everything else runs in eval mode
    (r"Found \d+ module\(s\) in eval mode at the start of training", UserWarning),
)


def quieten() -> None:
    """Filters the messages out and turns off transformers' own progress bars."""
    from transformers.utils import logging as transformers_logging

    for message, category in _WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category)
    # Lightning advertises a product of its maker in every run's log
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.trainer.connectors.logger_connector"):
        logging.getLogger(name).addFilter(lambda record: "Tip:" not in record.getMessage())
    transformers_logging.disable_progress_bar()
