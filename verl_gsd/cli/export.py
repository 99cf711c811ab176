"""``verl-gsd export``: write a run's checkpoint as a model in Hugging Face's format, with a model card."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from verl_gsd.console import err, fail, out

if TYPE_CHECKING:
    from verl_gsd.rundir import RunDirectory


def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="RUN[/global_step_N]", help="A checkpoint, or a run for its newest checkpoint.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new or empty folder for the model.")],
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"],
        typer.Option(help="Precision of the weights. float32 keeps them exactly as they were trained."),
    ] = "bfloat16",
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Write the LoRA adapter in PEFT's format instead of merging it.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The base model: a folder or hub name. Default: that of the run's config."),
    ] = None,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="Read models and data files that the run's config names, although others may have made it.",
        ),
    ] = False,
    push: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Also upload to this repository on the hub, where you are logged in."),
    ] = None,
) -> None:
    """Write a run's checkpoint as a Hugging Face model, with a model card.

    Examples:
        verl-gsd export RUN models/mine
        verl-gsd export RUN/global_step_40 models/mine --dtype float32
    """
    from huggingface_hub import HfApi
    from transformers.utils import logging as transformers_logging

    from verl_gsd.checkpoints import step_of
    from verl_gsd.cli.evaluate import default_output
    from verl_gsd.export.checkpoint import find_checkpoint, shard_paths
    from verl_gsd.export.hub import check_login, upload
    from verl_gsd.export.run import check_target
    from verl_gsd.export.run import export as export_checkpoint
    from verl_gsd.run import trust as run_trust
    from verl_gsd.rundir import RunDirectory

    transformers_logging.disable_progress_bar()
    try:
        # Without links once and for all, so that it is one and the same run that is examined and read.
        if step_of(checkpoint) is None:
            checkpoint = find_checkpoint(run_trust.real_run(checkpoint))
        else:
            checkpoint = run_trust.real_run(checkpoint.parent) / checkpoint.name
        shard_paths(checkpoint)
        check_target(folder)
        api = HfApi()
        name = check_login(api, push) if push else folder.absolute().name
        distrust = None if trust else run_trust.distrust(RunDirectory(checkpoint.parent))
        with err.status(f"exporting {escape(str(checkpoint))}"):
            export_checkpoint(
                checkpoint,
                folder,
                dtype=dtype,
                adapter=adapter,
                prompts=_held_out_prompts(checkpoint) if distrust is None else {},
                evaluations=default_output(str(checkpoint)),
                name=name,
                distrust=distrust,
                base=base,
            )
        what = "adapter" if adapter else "model"
        out.print(f"The {what} of {escape(checkpoint.name)} is in [bold]{escape(str(folder))}[/].", soft_wrap=True)
        if push:
            with err.status(f"uploading to {escape(name)}"):
                address = upload(api, folder, name)
            out.print(f"Uploaded to {escape(address)}.", soft_wrap=True, highlight=False)
    except (ValueError, OSError) as error:  # ConfigError is a ValueError
        fail(str(error))
    except KeyboardInterrupt:
        fail("stopped; nothing was written" if not folder.exists() else "stopped", code=130)


def show_export_command(run: RunDirectory) -> None:
    """Print the command that exports a run's newest checkpoint, on a line of its own, if there is a checkpoint."""
    step = run.latest_checkpoint()
    if step is not None:
        out.print("to use the model outside of verl-gsd, run:", highlight=False)
        command = f"verl-gsd export {shlex.quote(str(run.checkpoint(step)))} FOLDER"
        out.print(command, soft_wrap=True, markup=False, highlight=False)


def _held_out_prompts(checkpoint: Path) -> Mapping[str, int]:
    """The number of held-out prompts per data source of the checkpoint's run; empty if it is unknown."""
    from omegaconf import OmegaConf

    from verl_gsd.cli.train import held_out_prompts
    from verl_gsd.dotted_keys import value_at
    from verl_gsd.rundir import RunDirectory

    run = RunDirectory(checkpoint.parent)
    config = run.read_yaml(run.config)
    return held_out_prompts(OmegaConf.create(config)) if value_at(config, "data.val_files") else {}
