"""Contenders from other packages, through their public calls; they run with the peers' own Python."""

import shutil
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from bench.batches import batches_of, padded
from bench.contender import Contender, Gradient, taken_gradients
from bench.setting import Sequence


class HuggingFaceTrainer(Contender):
    """transformers.Trainer: accumulates over the epoch for one step of an optimizer that only takes the gradients.

    The Trainer divides by the labelled tokens, and the result is scaled to the mean over responses.
    """

    title: ClassVar[str] = "transformers Trainer"

    @classmethod
    def choices(cls) -> list[Any]:
        return [4, 8]

    def run(self, staged: Any) -> Gradient:
        from transformers import Trainer, TrainingArguments

        found: Gradient = {}
        model = self.model

        class Taking(torch.optim.Optimizer):
            def step(self, closure: object = None) -> None:
                found.update(taken_gradients(model))

        batches = -(-len(staged) // self.choice)
        arguments = TrainingArguments(
            output_dir=str(Path(self.setting.directory) / "trainer"),
            per_device_train_batch_size=self.choice,
            gradient_accumulation_steps=batches,
            num_train_epochs=1,
            max_grad_norm=0.0,
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=self.setting.device == "cpu",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        optimizer = Taking(model.parameters(), {})
        scheduler = torch.optim.lr_scheduler.LambdaLR(_with_rate(optimizer), lambda step: 1.0)
        Trainer(
            model=model,
            args=arguments,
            train_dataset=staged,
            data_collator=_collate,
            optimizers=(optimizer, scheduler),
        ).train()
        labelled = sum(label != -100 for row in staged for label in row["labels"][1:])
        return {name: gradient.mul_(labelled / len(staged)) for name, gradient in found.items()}

    def stage(self, rows: list[Sequence]) -> Any:
        return [{"input_ids": row.input_ids, "labels": row.labels} for row in rows]

    @property
    def note(self) -> str:
        return f"batches of {self.choice}, group_by_length"


def _with_rate(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # a scheduler wants one
    return optimizer


def _collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    return padded([Sequence(row["input_ids"], row["labels"]) for row in rows], "cpu")


class BergsonDefault(Contender):
    """bergson's collect_gradients with aggregation "mean": linear layers of the body only, its own batches."""

    title: ClassVar[str] = "bergson (default)"

    def prepare(self) -> None:
        super().prepare()
        # as bergson's own build sets it up: no gradient of the weights by autograd
        self.model.requires_grad_(False)
        self.model.get_input_embeddings().requires_grad_(True)
        self.directory = Path(self.setting.directory) / f"bergson-{type(self).__name__}"

    def stage(self, rows: list[Sequence]) -> Any:
        from datasets import Dataset

        shutil.rmtree(f"{self.directory}.part", ignore_errors=True)
        columns = {"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]}
        return Dataset.from_dict({**columns, "length": [len(row.input_ids) for row in rows]})

    def config(self) -> Any:
        """bergson's configuration, with what was chosen."""
        from bergson import IndexConfig

        options = {} if self.choice is None else dict(self.choice)
        config = IndexConfig(run_path=str(self.directory), overwrite=True, **options)
        config.partial_run_path.mkdir(parents=True, exist_ok=True)
        return config

    def run(self, staged: Any) -> Gradient:
        from bergson import GradientProcessor, PreprocessConfig, collect_gradients, load_module_gradients

        config = self.config()
        processor = GradientProcessor()
        collect_gradients(
            self.model,
            staged,
            processor,
            config,
            batches=self.batches(staged, config),
            preprocess_cfg=PreprocessConfig(aggregation="mean"),
        )
        found = load_module_gradients(config.partial_run_path)
        return self.named({name: torch.from_numpy(found[name][:]) for name in self.layers()})

    def batches(self, staged: Any, config: Any) -> list[list[int]]:
        """bergson's own batches."""
        from bergson.data import allocate_batches

        return allocate_batches(staged["length"][:], config.token_batch_size, max_batch_size=config.max_batch_size)

    def layers(self) -> list[str]:
        """The layers it covers, by their names in the body."""
        return [name for name, module in self.model.base_model.named_modules() if isinstance(module, nn.Linear)]

    def named(self, found: dict[str, torch.Tensor]) -> Gradient:
        """By parameter name and in its shape."""
        parameters = dict(self.model.named_parameters())
        names = {layer: f"{self.model.base_model_prefix}.{layer}.weight" for layer in found}
        return {names[layer]: value.reshape(parameters[names[layer]].shape) for layer, value in found.items()}

    @property
    def note(self) -> str:
        return "token_batch_size 2048, to disk"


class BergsonBest(BergsonDefault):
    """bergson in memory, at its fastest batch size."""

    title: ClassVar[str] = "bergson (best)"

    @classmethod
    def choices(cls) -> list[Any]:
        return [
            {"max_batch_size": 1},
            {"token_batch_size": 512},
            {"token_batch_size": 512, "max_batch_size": 4},
            {"token_batch_size": 1024},
            {"token_batch_size": 1024, "max_batch_size": 4},
        ]

    def run(self, staged: Any) -> Gradient:
        from bergson import CollectorComputer, InMemoryCollector, PreprocessConfig

        config = self.config()
        collector = InMemoryCollector(
            model=self.model.base_model,
            data=staged,
            cfg=config,
            preprocess_cfg=PreprocessConfig(aggregation="mean"),
        )
        batches = self.batches(staged, config)
        CollectorComputer(
            self.model, staged, collector=collector, batches=batches, cfg=config
        ).run_with_collector_hooks()
        return self.named({name: gradient[0] for name, gradient in collector.gradients.items()})

    @property
    def note(self) -> str:
        return "in memory, " + ", ".join(f"{key} {value}" for key, value in self.choice.items())


class Kronfluence(Contender):
    """kronfluence's gradient aggregation, which its score computations use: linear layers, the head included.

    It gives scores, not gradients: no call of its analyzer returns the sum, so its modules are driven directly.
    """

    title: ClassVar[str] = "kronfluence"

    @classmethod
    def choices(cls) -> list[Any]:
        return [1, 4, 8]

    def prepare(self) -> None:
        from kronfluence.analyzer import prepare_model
        from kronfluence.task import Task

        super().prepare()
        if self.model.config.tie_word_embeddings:
            raise NotImplementedError("a tied head's weight has a gradient from the embedding too, which it leaves out")
        self.model = prepare_model(self.model, type("Pile", (Task,), _no_task())())

    def run(self, staged: Any) -> Gradient:
        from kronfluence.module.tracked_module import ModuleMode, TrackedModule
        from kronfluence.module.utils import set_mode

        set_mode(self.model, ModuleMode.GRADIENT_AGGREGATION, release_memory=True)
        for batch in batches_of(staged, self.choice, by_length=True):
            tensors = padded(batch, self.setting.device)
            self.model(**tensors, use_cache=False, num_items_in_batch=1).loss.backward()
        modules = [module for module in self.model.modules() if isinstance(module, TrackedModule)]
        sums = {module.name: module.storage["aggregated_gradient"] for module in modules}
        set_mode(self.model, ModuleMode.DEFAULT, release_memory=True)
        return {f"{name}.weight": value.reshape(value.shape[-2:]).div_(len(staged)) for name, value in sums.items()}

    @property
    def note(self) -> str:
        return f"batches of {self.choice}, by length"


def _no_task() -> dict[str, Any]:
    """A task that says nothing: its losses are not used here."""

    def refuse(self: object, *args: object, **options: object) -> torch.Tensor:
        raise NotImplementedError

    return {"compute_train_loss": refuse, "compute_measurement": refuse}


class Opacus(Contender):
    """opacus: per-example gradients of all parameters, then their sum; batches of like length."""

    title: ClassVar[str] = "opacus"

    @classmethod
    def choices(cls) -> list[Any]:
        return [1, 4, 8]

    def prepare(self) -> None:
        from opacus import GradSampleModule

        super().prepare()
        # its hooks look at layers in train mode only; these models have no dropout
        self.model = GradSampleModule(self.model.train(), batch_first=True, loss_reduction="sum", strict=False)

    def run(self, staged: Any) -> Gradient:
        sums = {
            name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in self.model.named_parameters()
        }
        for batch in batches_of(staged, self.choice, by_length=True):
            tensors = padded(batch, self.setting.device)
            # positions by row: the model's own are one row for the whole batch, which has no example dimension
            positions = torch.arange(tensors["input_ids"].shape[1], device=self.setting.device)
            logits = self.model(
                input_ids=tensors["input_ids"],
                position_ids=positions.expand(len(batch), -1),
                use_cache=False,
            ).logits[:, :-1]
            functional.cross_entropy(
                logits.flatten(0, 1).float(), tensors["labels"][:, 1:].flatten(), reduction="sum"
            ).backward()
            for name, parameter in self.model.named_parameters():
                sums[name] += parameter.grad_sample.sum(0, dtype=torch.float32)
            self.model.zero_grad(set_to_none=True)
        return {name.removeprefix("_module."): value.div_(len(staged)) for name, value in sums.items()}

    @property
    def note(self) -> str:
        return f"batches of {self.choice}, by length"
