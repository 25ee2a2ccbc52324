"""Everything a training needs before its first step: checked inputs, model, process, data."""

import os
from dataclasses import dataclass
from typing import Any

import torch

from prdit_models.config import ModelConfig, model_config
from prdit_models.diffusion import CosineProcess
from prdit_models.initialization import start_global
from prdit_models.intensity import HounsfieldWindow
from prdit_models.prdit import PRDiT
from storage.artifacts import Ref
from storage.checkpoints import load_checkpoint_info, load_tensors
from storage.volume_store import VolumeStore
from tasks.config import ComputeConfig
from tasks.train.check import check_training
from tasks.train.config import IntensityConfig, TrainLocalConfig, ViewConfig
from tasks.train.data import ViewDataset
from tasks.train.spec import TrainSpec
from tasks.train.validate import ValidationSet


@dataclass(frozen=True)
class Assembly:
    """A training put together.

    Attributes:
        model: on its device; in stage 2 with the frozen local branch loaded.
        model_config: its shape.
        process: forward process.
        train, validation: data.
        view, window: how volumes become model input.
        device: where it runs.
        spacing_mm: of the store's level 0.
    """

    model: PRDiT
    model_config: ModelConfig
    process: CosineProcess
    train: ViewDataset
    validation: ValidationSet
    view: ViewConfig
    window: HounsfieldWindow
    device: torch.device
    spacing_mm: float


def assemble(spec: TrainSpec) -> Assembly:
    """Build model, process and data of a training; seeds the initialisation."""
    config = spec.stage_config()
    roles = check_training(spec.split, spec.local, config)
    device = pick_device(config)
    torch.manual_seed(config.seed)
    if isinstance(config, TrainLocalConfig):
        view, intensity, noise_std = config.view, config.intensity, config.noise_std
        model = PRDiT(model_config(config.preset, view.size))
    else:
        if spec.local is None:
            raise ValueError("stage 2 needs the local checkpoint's reference")
        base = load_checkpoint_info(spec.local)
        view, intensity = ViewConfig.model_validate(base["view"]), IntensityConfig.model_validate(base["intensity"])
        noise_std = base["process"]["noise_std"]
        if noise_std != config.noise_std:
            raise ValueError(
                f"train_global.noise_std {config.noise_std} differs from the local checkpoint's {noise_std}; use the same."
            )
        model = PRDiT(model_config(config.preset, view.size))
        start_global(model, local_tensors(spec.local, config.local_weights))
    window = HounsfieldWindow(intensity.lower_hu, intensity.upper_hu)
    process = CosineProcess(noise_std=noise_std)
    store = spec.store.path
    validation = ViewDataset(store, sorted(roles["val"])[: config.val_volumes], view, window, cache_mb=0)
    return Assembly(
        model=model.to(device),
        model_config=model.config,
        process=process,
        train=ViewDataset(store, roles["train"], view, window, config.cache_mb),
        validation=ValidationSet(validation.batch(range(len(validation))), process),
        view=view,
        window=window,
        device=device,
        spacing_mm=VolumeStore.open(store).spacing_mm,
    )


def local_tensors(local: Ref, weights: str) -> dict[str, torch.Tensor]:
    """Stage-1 weights as torch tensors."""
    name = "ema.safetensors" if weights == "ema" else "model.safetensors"
    return {key: torch.from_numpy(value) for key, value in load_tensors(local.path / name).items()}


def pick_device(config: ComputeConfig) -> torch.device:
    """The device of a stage; also sets its CPU threads.

    Raises: ValueError: CUDA asked for and not there.
    """
    torch.set_num_threads(config.num_threads or os.cpu_count() or 1)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device 'cuda' was asked for, but torch sees no CUDA device. Use device: auto or cpu (`prdit doctor` shows why)."
        )
    cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if cuda else "cpu")


def checkpoint_info(assembly: Assembly, spec: TrainSpec, step: int, gates: dict[str, Any]) -> dict[str, Any]:
    """Content of `checkpoint.json` (docs/architecture.md)."""
    return {
        "format_version": 1,
        "kind": "checkpoint-local" if spec.local is None else "checkpoint-global",
        "model": assembly.model_config.to_dict(),
        "process": {"noise_std": assembly.process.noise_std, "num_steps": assembly.process.num_steps},
        "intensity": {"lower_hu": assembly.window.lower_hu, "upper_hu": assembly.window.upper_hu},
        "view": assembly.view.model_dump(mode="json"),
        "spacing_mm": assembly.spacing_mm,
        "step": step,
        "seed": spec.stage_config().seed,
        "gates": gates,
    }
