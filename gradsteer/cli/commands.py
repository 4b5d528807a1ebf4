"""The command table: what a command is called, what serves it and with which defaults.

Strings only, so that ``--help`` and a typing error are answered without importing anything heavy.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: on the command line; for a Trainer command also the Trainer's method.
        help: one line for the list of commands.
        module: ``package.module:Class`` of the LightningModule.
        data: of the LightningDataModule.
        callbacks: option group -> callback class, in the order in which they start: what predicts, what steers, what
            judges, the checks before a model is loaded, the report.
        options: option group -> dataclass of options that the report is given.
        defaults: option -> this command's default.
        named: whether the command's artifact has a name (``--name``) and what it is by default.
        outputs: what the command leaves in the output directory ({name} is the artifact's).
        plain: ``package.module:function`` that serves a command which is no Trainer command.
        parser: of such a command, ``package.module:function`` that gives its parser.
    """

    name: str
    help: str
    module: str = ""
    data: str = ""
    callbacks: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    named: str | None = None
    outputs: tuple[str, ...] = ()
    plain: str = ""
    parser: str = ""


COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command(
            "corpus",
            "write the embedded demo's corpus, prompts, tokenizer and model config",
            outputs=("corpus/model.json",),
            plain="gradsteer.demo.command:main",
            parser="gradsteer.demo.command:options_parser",
        ),
        Command(
            "fit",
            "finetune a base model (or fresh weights) into an anchor",
            module="gradsteer.trainer.modules.finetune:FinetuneModule",
            data="gradsteer.trainer.datamodules.chat:ChatDataModule",
            callbacks={"saving": "gradsteer.trainer.callbacks.saving:SavePretrained"},
            defaults={
                "trainer.max_epochs": 3,
                "trainer.enable_checkpointing": False,
                "trainer.log_every_n_steps": 5,
                "trainer.num_sanity_val_steps": 0,
                "trainer.enable_model_summary": False,
            },
            named="anchor",
            outputs=("{name}/config.json",),
        ),
        Command(
            "validate",
            "validation loss and perplexity of a model",
            module="gradsteer.trainer.modules.finetune:FinetuneModule",
            data="gradsteer.trainer.datamodules.chat:ChatDataModule",
            defaults={"trainer.enable_model_summary": False},
        ),
        Command(
            "evaluate",
            "sample responses from a model, judge them, report behavior rates",
            module="gradsteer.trainer.modules.generation:GenerationModule",
            data="gradsteer.trainer.datamodules.prompts:PromptDataModule",
            callbacks={
                "evaluation": "gradsteer.trainer.callbacks.evaluation:JudgeEvaluation",
                "preflight": "gradsteer.trainer.callbacks.preflight:EvaluationPreflight",
                "report": "gradsteer.trainer.callbacks.report:EvaluationReport",
            },
            defaults={"trainer.enable_checkpointing": False, "trainer.enable_model_summary": False},
            named="anchor",
            outputs=("responses/{name}.jsonl", "evaluations/{name}.json"),
        ),
        Command(
            "attribute",
            "pile-average gradients and the steering vectors that contrast them",
            module="gradsteer.trainer.modules.attribution:AttributionModule",
            data="gradsteer.trainer.datamodules.piles:PileDataModule",
            callbacks={
                "writing": "gradsteer.trainer.callbacks.vectors:VectorWriter",
                "partial_sums": "gradsteer.trainer.callbacks.partial_sums:PartialSums",
                "graddiff": "gradsteer.trainer.callbacks.graddiff:GradDiffBaseline",
                "figures": "gradsteer.trainer.callbacks.report:LayerNorms",
            },
            defaults={
                "trainer.enable_checkpointing": False,
                "trainer.enable_model_summary": False,
                "trainer.inference_mode": False,
            },
            outputs=("gradients", "vectors"),
        ),
        Command(
            "discover",
            "what a finetune taught, without a judge: groups of responses, a vector of each, and its forecast",
            module="gradsteer.trainer.modules.discovery:DiscoveryModule",
            data="gradsteer.trainer.datamodules.responses:ResponseDataModule",
            callbacks={"discovery": "gradsteer.trainer.callbacks.discovery:Discovery"},
            defaults={
                "trainer.enable_checkpointing": False,
                "trainer.enable_model_summary": False,
                "trainer.inference_mode": False,
            },
            outputs=("discovery/discovery.json",),
        ),
        Command(
            "forecast",
            "behavior rates of any condition from judged responses and forward passes: nothing is sampled",
            module="gradsteer.trainer.modules.forecast:ForecastModule",
            data="gradsteer.trainer.datamodules.conditions:ConditionDataModule",
            callbacks={
                "forecasting": "gradsteer.trainer.callbacks.forecasting:Forecasting",
                "steering": "gradsteer.trainer.callbacks.steering:WeightSteering",
                "report": "gradsteer.trainer.callbacks.forecast_report:ForecastReport",
            },
            defaults={
                "trainer.enable_checkpointing": False,
                "trainer.enable_model_summary": False,
                "trainer.inference_mode": False,
            },
            outputs=("forecast.json", "forecast.csv"),
        ),
        Command(
            "steer",
            "behavior rates with multiples of the vectors added to the weights",
            module="gradsteer.trainer.modules.generation:GenerationModule",
            data="gradsteer.trainer.datamodules.prompts:PromptDataModule",
            callbacks={
                "forecasting": "gradsteer.trainer.callbacks.forecasting:Forecasting",
                "steering": "gradsteer.trainer.callbacks.steering:WeightSteering",
                "evaluation": "gradsteer.trainer.callbacks.evaluation:JudgeEvaluation",
                "preflight": "gradsteer.trainer.callbacks.preflight:Preflight",
                "report": "gradsteer.trainer.callbacks.report:ResultsReport",
            },
            options={
                "fluency": "gradsteer.trainer.fluency:FluencyOptions",
                "comparisons": "gradsteer.evaluation.condition_comparisons:ComparisonOptions",
            },
            defaults={
                "trainer.enable_checkpointing": False,
                "trainer.enable_model_summary": False,
                "trainer.inference_mode": False,
            },
            outputs=("results.json", "results.csv"),
        ),
        Command(
            "judge",
            "judge existing responses by one or several judges, and say how far they agree",
            plain="gradsteer.judges.command.main:main",
            parser="gradsteer.judges.command.options:options_parser",
        ),
        Command(
            "export",
            "write the steered model, or the vector as a LoRA adapter, for tools that know nothing of gradsteer",
            plain="gradsteer.export.command:main",
            parser="gradsteer.export.command:options_parser",
        ),
        Command(
            "inspect",
            "say what a file of gradients, a vector or a second moment is",
            plain="gradsteer.cli.inspect_command:main",
            parser="gradsteer.cli.inspect_command:options_parser",
        ),
        Command(
            "report",
            "write a run's page, one HTML file that reads like a paper; steer does it by itself",
            plain="gradsteer.cli.report_command:main",
            parser="gradsteer.cli.report_command:options_parser",
        ),
        Command(
            "doctor",
            "say what this machine has: versions, devices, speeds, room, keys that are set",
            plain="gradsteer.cli.doctor:main",
            parser="gradsteer.cli.doctor:options_parser",
        ),
        Command(
            "run", "run an experiment: a list of stages, each of these commands", plain="gradsteer.cli.runner:main"
        ),
    )
}

# the datamodules split the batches over the ranks themselves
TRAINER_DEFAULTS: dict[str, Any] = {"trainer.use_distributed_sampler": False}
TRAINER_COMMANDS = tuple(command.name for command in COMMANDS.values() if command.module)


def overview(program: str = "gradsteer") -> str:
    """The text of the top-level ``--help``."""
    width = max(map(len, COMMANDS))
    lines = [
        f"usage: {program} [--help] [--version] COMMAND [options]",
        "",
        "Find what a finetune taught a language model as a direction in weight space, and turn exactly that",
        "up or down.",
        "",
        "commands:",
        *(f"  {command.name:<{width}}  {command.help}" for command in COMMANDS.values()),
        "",
        f"{program} COMMAND --help explains a command's options; every command reads them from --config FILE too.",
        f"{program} run --config configs/demo/run.yaml shows all of it on a model trained here in minutes.",
    ]
    return "\n".join(lines) + "\n"
