"""diffusers' pipeline with its UNet in another runtime: the usual alternative to sd2rt's whole-step graph.

Options: ``runner`` (a function of unet_runners), ``dtype`` and ``device`` as in diffusers_pipeline, and the runner's
own. Only the UNet is exported, at fixed shapes (the run's size, two guided rows), which are fastest in every
runtime. Text encoder, guidance, scheduler and decoder stay in PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from benchmarks.peers.diffusers_call import maker
from benchmarks.peers.diffusers_pipeline import check_device, load, torch_dtype
from benchmarks.peers.job import Generate, Job, require

PACKAGES = (
    "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "diffusers", "torch", "transformers",
)  # fmt: skip
_ROWS = 2


def prepare(job: Job) -> None:
    require("diffusers", "torch")
    check_device(job)
    runners = import_module("benchmarks.peers.unet_runners")
    runners.check(job)
    if not job.folder.exists():
        _export(job)


def open_pipeline(job: Job) -> Generate:
    import torch

    runners = import_module("benchmarks.peers.unet_runners")
    run = getattr(runners, job.options["runner"])(job, job.folder / "unet.onnx")
    device = job.options.get("device", "cpu")

    class Unet(torch.nn.Module):
        """The part of the UNet's interface that the pipeline uses."""

        def __init__(self, config: Any) -> None:
            super().__init__()
            self.config, self.dtype, self.device = config, torch_dtype(job), torch.device(device)

        def forward(
            self, sample: Any, timestep: Any, encoder_hidden_states: Any, **options: Any
        ) -> tuple[Any, ...]:
            unsupported = {name: value for name, value in options.items() if value is not None}
            if unsupported != {"return_dict": False}:
                raise ValueError(f"the exported UNet does not support {', '.join(unsupported)}")
            return (run(sample, timestep, encoder_hidden_states),)

    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        meta_unet = UNet2DConditionModel.from_config(
            UNet2DConditionModel.load_config(job.checkpoint, subfolder="unet")
        )
    pipeline = load(job, unet=None).to(device)
    pipeline.unet = Unet(meta_unet.config)
    return maker(pipeline, job, dtype=torch_dtype(job), device=device)


def _export(job: Job) -> None:
    """Export ``unet.onnx``: (sample [2, C, h, w], timestep [], text [2, 77, D]) to prediction [2, C, h, w]."""
    import torch
    from diffusers import UNet2DConditionModel

    dtype = torch_dtype(job)
    unet = UNet2DConditionModel.from_pretrained(
        job.checkpoint, subfolder="unet", torch_dtype=dtype, local_files_only=True
    ).eval()
    _, *latent = job.latent_shape
    inputs = (
        torch.zeros(_ROWS, *latent, dtype=dtype),
        torch.tensor(1.0),
        torch.zeros(_ROWS, 77, unet.config.cross_attention_dim, dtype=dtype),
    )
    job.folder.mkdir()
    with torch.no_grad():
        torch.onnx.export(
            unet,
            inputs,
            job.folder / "unet.onnx",
            kwargs={"return_dict": False},
            input_names=["sample", "timestep", "text"],
            output_names=["prediction"],
            dynamo=True,
            external_data=True,
            verbose=False,
        )
