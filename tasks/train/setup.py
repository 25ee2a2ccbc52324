"""Everything a training needs before its first step: checked inputs, model, process, data."""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch

from prdit_models.diffusion.cosine import CosineProcess, process_from_dict
from prdit_models.intensity import HounsfieldWindow
from prdit_models.networks.build import Network, build_network
from prdit_models.networks.cascade import RefinedPRDiT
from prdit_models.networks.config import NetworkConfig
from prdit_models.networks.initialization import start_global
from prdit_models.networks.prdit import PRDiT
from storage.artifacts import Ref
from storage.checkpoints import WEIGHTS_FILES, load_tensors
from storage.volume_store import VolumeStore
from tasks.config import ComputeConfig
from tasks.train.check import check_training
from tasks.train.config import TrainConfig, TrainGlobalConfig, TrainLocalConfig, TrainRefinerConfig, ViewConfig
from tasks.train.data import ViewDataset
from tasks.train.labels import labels_of
from tasks.train.spec import TrainSpec
from tasks.train.validate import ValidationSet


@dataclass(frozen=True)
class Protocol:
    """What a model sees and in which process: chosen in stage 1, inherited by the stages above.

    Attributes:
        process: forward process.
        window: Hounsfield units to model range.
        view: box and size.
        axes: order of the model's axes, see `CheckpointInfo`.
    """

    process: CosineProcess
    window: HounsfieldWindow
    view: ViewConfig
    axes: str = "zyx"


@dataclass(frozen=True)
class Assembly:
    """A training put together.

    Attributes:
        model: on its device; what is frozen is loaded.
        network: its shape.
        protocol: what it sees.
        train, validation: data.
        device: where it runs.
        spacing_mm: of the store's level 0.
        label_values: what the integer labels of the training volumes mean; empty without labels.
        labels: of the training volumes, by index; None without labels.
    """

    model: Network
    network: NetworkConfig
    protocol: Protocol
    train: ViewDataset
    validation: ValidationSet
    device: torch.device
    spacing_mm: float
    label_values: tuple[str, ...] = ()
    labels: torch.Tensor | None = None

    @property
    def process(self) -> CosineProcess:
        """The forward process."""
        return self.protocol.process


def assemble(spec: TrainSpec) -> Assembly:
    """Build model, process and data of a training; seeds the initialisation."""
    config = spec.stage_config()
    start = check_training(spec.store, spec.split, spec.below, config)
    device = pick_device(config)
    torch.manual_seed(config.seed)
    protocol = _protocol(config, start.below)
    model = _model(config, start.network, spec.below)
    store = VolumeStore.open(spec.store.path)
    ids = {"train": start.roles["train"], "val": sorted(start.roles["val"])[: config.val_volumes]}
    data = {
        role: ViewDataset(
            spec.store.path, names, protocol.view, protocol.window, config.cache_mb * (role == "train"), protocol.axes
        )
        for role, names in ids.items()
    }
    labels = {}
    if isinstance(config, TrainGlobalConfig) and config.label_column:
        labels = {
            role: torch.tensor(labels_of(store, config.label_column, start.label_values, ids[role])) for role in ids
        }
    volumes = data["val"].batch(range(len(data["val"])))
    return Assembly(
        model=model.to(device),
        network=start.network,
        protocol=protocol,
        train=data["train"],
        validation=ValidationSet(volumes, protocol.process, labels=labels.get("val")),
        device=device,
        spacing_mm=store.spacing_mm,
        label_values=start.label_values,
        labels=labels.get("train"),
    )


def _protocol(config: TrainConfig, base: dict[str, Any]) -> Protocol:
    """Stage 1 chooses; the others take what the checkpoint below was trained with, a level finer in stage 3."""
    if isinstance(config, TrainLocalConfig):
        window = HounsfieldWindow.of_mapping(**config.intensity.model_dump())
        process = CosineProcess(noise_std=config.noise_std, prediction=config.prediction)
        return Protocol(process, window, config.view)
    process_below = process_from_dict(base["process"])
    if not isinstance(process_below, CosineProcess):
        raise ValueError("Trainings start from models of the cosine process; flow-matching checkpoints can be sampled.")
    if process_below.noise_std != config.noise_std:
        raise ValueError(
            f"noise_std {config.noise_std} differs from the {process_below.noise_std} of the checkpoint below; use the same."
        )
    view = ViewConfig.model_validate(base["view"])
    if isinstance(config, TrainRefinerConfig):
        view = view.model_copy(update={"size": 2 * view.size})
    return Protocol(process_below, HounsfieldWindow(**base["intensity"]), view, base.get("axes", "zyx"))


def _model(config: TrainConfig, network: NetworkConfig, below: Ref | None) -> Network:
    """The network as its training starts."""
    attention = config.attention if isinstance(config, TrainGlobalConfig) else "auto"
    model = build_network(network, attention=attention, checkpointing=config.checkpointing)
    if below is None:
        return model
    if isinstance(model, RefinedPRDiT) and isinstance(config, TrainRefinerConfig):
        model.load_base(_weights(below, config.base_weights))
        model.freeze_base(config.fine_tune_lr is None)
    if isinstance(model, PRDiT) and isinstance(config, TrainGlobalConfig):
        start_global(model, _weights(below, config.local_weights))
        model.freeze_local(not config.joint_local)
    return model


def _weights(checkpoint: Ref, which: str) -> dict[str, torch.Tensor]:
    """One of a checkpoint's two sets of weights as torch tensors."""
    arrays = load_tensors(checkpoint.path / WEIGHTS_FILES[which])
    return {key: torch.from_numpy(value) for key, value in arrays.items()}


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


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context a stage computes in: bfloat16 autocast, or none for `fp32`."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def checkpoint_info(assembly: Assembly, spec: TrainSpec, step: int, gates: dict[str, Any]) -> dict[str, Any]:
    """Content of `checkpoint.json` (docs/architecture.md)."""
    config, protocol = spec.stage_config(), assembly.protocol
    info = {
        "format_version": 1,
        "kind": spec.training.stage.kind,
        "model": assembly.network.to_dict(),
        "process": protocol.process.to_dict(),
        "intensity": asdict(protocol.window),
        "view": protocol.view.model_dump(mode="json"),
        "axes": protocol.axes,
        "spacing_mm": assembly.spacing_mm,
        "step": step,
        "seed": config.seed,
        "gates": gates,
    }
    if isinstance(config, TrainGlobalConfig) and config.label_column:
        info["labels"] = {"column": config.label_column, "values": list(assembly.label_values)}
    return info
