"""The section on the engine: where a study runs, and on what."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedkd.config.sections import Section

Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]


class Engine(Section):
    """Where an arm runs, and on what."""

    name: str = Field(
        "inline",
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        description="inline: silos are threads of one process; ray: Flower's Simulation Runtime; "
        "or the connection to a SuperLink in Flower's config.toml",
    )
    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        "auto",
        description="number of simulated silos that train at a time; auto: as many as the cores "
        "have threads for",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="of training and prediction; bf16: mixed precision"
    )
    server_threads: int = Field(
        2, ge=1, le=1024, description="threads for distillation and evaluation on the server"
    )
    silo_threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        1,
        description="threads with which a simulated silo trains; auto: the cores, divided by the "
        "number of silos that train at a time. Another number gives other last bits",
    )
    device: Device = Field(
        "cpu",
        description="auto (a GPU if there is one), cpu, cuda, cuda:N or mps; silos share all GPUs "
        "of cuda",
    )
