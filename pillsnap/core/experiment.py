"""The experiment file (YAML): every value of a training run, typed and checked before anything starts.

The defaults are the specification's reference configuration (part C). Unknown keys are refused, each
mistake is answered with file, key and value.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pillsnap.core.errors import ConfigError
from pillsnap.core.preprocessing_spec import PreprocessingSpec
from pillsnap.core.search import STRENGTH, TuningConfig, overrides_of, search_fault
from pillsnap.core.yaml_mapping import describe_validation_error, flatten, read_yaml_mapping

Probability = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Range = tuple[float, float]


class Section(BaseModel):
    """A frozen group of values that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def is_fetched(weights: str) -> bool:
    """Whether ``model.weights`` or ``distillation.teacher`` stands for a checkpoint that a run has logged.

    Such are ``runs:/…``, ``models:/…`` and a bundle's file; all else is a file or a package.
    """
    return weights.startswith(("runs:", "models:")) or weights.endswith(".onnx")


class ModelConfig(Section):
    """The timm backbone."""

    backbone: str = "tf_efficientnetv2_s"
    """Name in timm's list of models."""
    pretrained: bool = True
    """Start from pretrained weights: those of ``weights``, or timm's from the hub. False: random weights."""
    weights: str | None = None
    """Weights in place of the hub's: a ``.safetensors`` or ``.pth`` file that timm saved, a ``.pt`` checkpoint of a
    former training, that training as ``runs:/RUN_ID`` or by a model version that came from it
    (``models:/NAME/VERSION``, ``models:/NAME@ALIAS``), or the ``.onnx`` bundle that it made."""
    drop_rate: Probability = 0.3
    drop_path_rate: Probability = 0.2
    kwargs: dict[str, bool | int | float | str | list[int]] = {}
    """Further arguments of ``timm.create_model``."""

    @model_validator(mode="after")
    def _weights_are_used(self) -> Self:
        if self.weights is not None and not self.pretrained:
            raise ValueError("weights are given but pretrained is false: they would not be used")
        return self


class LoaderConfig(Section):
    """How batches reach the model."""

    batch_size: int = Field(default=32, ge=2)
    """Images of one update, of all processes together where torchrun starts several."""
    workers: int = Field(default=8, ge=0)
    """Processes that augment; 0 augments in the training process."""
    pin_memory: bool = True
    persistent_workers: bool = True
    domain: Literal["all", "studio", "real"] = "all"
    """Which training images are used; validation and test are never narrowed."""

    @model_validator(mode="after")
    def _batch_is_even(self) -> Self:
        if self.batch_size % 2:
            raise ValueError(f"batch_size must be even (mixup pairs the images of a batch), not {self.batch_size}")
        return self


class TrainingConfig(Section):
    """Length, rates and regularisation of the training."""

    epochs: int = Field(default=50, ge=1)
    warmup_epochs: float = Field(default=3, ge=0)
    base_lr: float = Field(default=1e-3, gt=0)
    min_lr: float = Field(default=1e-6, ge=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    """Not applied to biases and norms."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    gradient_clip: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient; null: no clipping."""
    mixed_precision: bool | Literal["auto"] = True
    """true: bf16 (fp16 with a scaled loss on older GPUs) where the hardware computes in it, float32 elsewhere.
    auto: as true, but float32 for a net that bf16 would slow down on a CPU (the rule is in training/device.py).
    false: float32."""
    accumulate: int = Field(default=1, ge=1)
    """Batches to one update: it sees batch_size times this many images, in the memory of one batch. Schedule and
    steps count updates; the batches that do not fill an update at the end of an epoch are left out."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """For fine-tuning: each layer learns at this share of the rate of the layer after it; 1: all at the same rate.
    A layer is a block of the backbone, so deep nets need values near 1."""
    backbone_lr_scale: float = Field(default=1.0, gt=0, le=1)
    """For fine-tuning: the backbone learns at this share of base_lr, the classifier at base_lr. layer_decay comes on
    top."""
    batch_norm: Literal["auto", "train", "keep"] = "auto"
    """keep: batch norms compute with the statistics that they started with; train: with those of the batches, which
    they learn. auto: keep where the training starts from weights, train where it starts from random ones."""
    freeze_epochs: int = Field(default=0, ge=0)
    """For fine-tuning, head first: for so many epochs the backbone keeps its weights and the statistics of its batch
    norms, and only the classifier learns; then all do, the backbone with a warm-up of its own."""
    mix_off_epochs: int = Field(default=0, ge=0)
    """The last so many epochs see images unmixed, as they will be photographed."""
    compile: bool = False
    """Compile the backbone with torch.compile: a minute and more at the start, then faster on a GPU."""
    quantisation_aware: bool = False
    """For an 8-bit variant in OpenVINO: learn, and be validated, with weights and inputs of layers rounded as there.
    Meant for a few last epochs, from a net's own weights and with itself as the teacher (experiments/eight-bit.yaml).
    Wants mixed_precision false or auto (which is float32 then), and no compile."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Exponential moving average of the weights, which is what is validated and kept; null: none."""

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs}) must be fewer than epochs ({self.epochs})")
        if self.min_lr > self.base_lr:
            raise ValueError(f"min_lr ({self.min_lr}) must not be above base_lr ({self.base_lr})")
        if self.freeze_epochs >= self.epochs:
            raise ValueError(f"freeze_epochs ({self.freeze_epochs}) must be fewer than epochs ({self.epochs})")
        if self.mix_off_epochs >= self.epochs:
            raise ValueError(
                f"mix_off_epochs ({self.mix_off_epochs}) must be fewer than epochs ({self.epochs}); to mix nothing set "
                "augmentation.mix_probability to 0"
            )
        if self.quantisation_aware and (self.compile or self.mixed_precision is True):
            raise ValueError(
                "quantisation_aware computes in float32 and uncompiled: set compile to false, and mixed_precision to "
                "false or auto"
            )
        return self


class OptimizerConfig(Section):
    """AdamW."""

    name: Literal["adamw"] = "adamw"
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)


class ScheduleConfig(Section):
    """Cosine with a linear warm-up, stepped at every update."""

    name: Literal["cosine"] = "cosine"
    warmup_factor: float = Field(default=0.001, gt=0, le=1)
    """The warm-up starts at base_lr times this."""


class ColorJitterConfig(Section):
    """Largest relative change of each property; 0 switches it off."""

    brightness: Probability = 0.2
    contrast: Probability = 0.2
    saturation: Probability = 0.2
    hue: float = Field(default=0.1, ge=0, le=0.5)


class RandomCropConfig(Section):
    """Random resized crop."""

    scale: Range = (0.8, 1.0)
    """Share of the area."""
    ratio: Range = (0.9, 1.1)
    """Width to height."""


class BlurConfig(Section):
    """Gaussian blur."""

    probability: Probability = 0.5
    kernel: int = Field(default=5, ge=1)
    """Side of the kernel in pixels, odd."""
    sigma: Range = (0.1, 2.0)

    @model_validator(mode="after")
    def _kernel_is_odd(self) -> Self:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, not {self.kernel}")
        return self


class AugmentationConfig(Section):
    """What happens to training images only. Geometry and colour act on uint8 pixels, before normalisation."""

    rotation_degrees: float = Field(default=30.0, ge=0, le=180)
    color_jitter: ColorJitterConfig = ColorJitterConfig()
    random_crop: RandomCropConfig = RandomCropConfig()
    blur: BlurConfig = BlurConfig()
    random_erasing: Probability = 0.2
    mixup_alpha: float = Field(default=0.2, ge=0)
    cutmix_alpha: float = Field(default=1.0, ge=0)
    """Of the pasted box's area (Beta distribution); 0: no cutmix. With cutmix_minmax it is 0 or 1, off or on."""
    cutmix_minmax: Range | None = (0.1, 1.0)
    """Smallest and largest side of the pasted box, as a share of the image; used when cutmix_alpha > 0."""
    mix_probability: Probability = 0.5
    """Share of the batches that are mixed (mixup or cutmix, half and half where both are on)."""

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        ranges: dict[str, Range | None] = {
            "random_crop.scale": self.random_crop.scale,
            "random_crop.ratio": self.random_crop.ratio,
            "blur.sigma": self.blur.sigma,
            "cutmix_minmax": self.cutmix_minmax,
        }
        for key, pair in ranges.items():
            if pair is not None and not 0 < pair[0] <= pair[1]:
                raise ValueError(f"{key} must be two positive numbers, the smaller one first, not {list(pair)}")
        if self.cutmix_minmax is not None and self.cutmix_alpha not in (0, 1):
            raise ValueError(
                f"cutmix_alpha ({self.cutmix_alpha}) would do nothing while cutmix_minmax says how large the box is; "
                "set cutmix_minmax to null, or cutmix_alpha to 0 or 1"
            )
        return self


class DistillationConfig(Section):
    """A teacher, whose answers a net learns beside the labels; usually a large net, for a small one.

    Loss = (1 - weight) · cross-entropy with the labels + weight · T² · KL(teacher's answer at T ‖ the net's answer at
    T), where an answer at the temperature T is softmax(logits / T) (Hinton, Vinyals, Dean 2015, "Distilling the
    knowledge in a neural network": T² keeps the gradient's size as T grows). The teacher answers to the very picture
    that the net learns from, augmented, mixed and erased (Beyer et al. 2022, "Knowledge distillation: a good teacher
    is patient and consistent").
    """

    teacher: str = Field(min_length=1)
    """A ``.pt`` checkpoint, the folder of a run, ``runs:/RUN_ID``, a model version (``models:/NAME/VERSION``,
    ``models:/NAME@ALIAS``), or the ``.onnx`` bundle of a run. Of the same drugs in the same order; backbone, size and
    normalisation may be others."""
    weight: Probability = 0.9
    """Share of the teacher in the loss; 1: the labels are not looked at."""
    temperature: float = Field(default=2.0, gt=0)
    """Above 1 the teacher's answers are softer: what it holds for less likely counts more."""


class CheckpointConfig(Section):
    """Which states of the training are kept, beside the last one."""

    every_epochs: int = Field(default=5, ge=1)
    keep_best: int = Field(default=3, ge=1)


class LoggingConfig(Section):
    """How often figures are logged within an epoch."""

    every_steps: int = Field(default=100, ge=1)


class ExperimentConfig(Section):
    """One experiment file."""

    name: str = "reference"
    seed: int = Field(default=0, ge=0, lt=2**32)
    preprocessing: PreprocessingSpec = PreprocessingSpec()
    model: ModelConfig = ModelConfig()
    data: LoaderConfig = LoaderConfig()
    training: TrainingConfig = TrainingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    distillation: DistillationConfig | None = None
    """null: no teacher."""
    checkpoints: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    tuning: TuningConfig = TuningConfig()

    @classmethod
    def load(cls, path: Path | str, overrides: dict[str, Any] | None = None) -> Self:
        """Read an experiment file.

        Args:
            path: the YAML file.
            overrides: dotted key → value, stronger than the file.

        Raises:
            ConfigError: no such file, not YAML, an unknown key, a wrong type or value.
        """
        return cls.build(
            read_yaml_mapping(Path(path)), overrides, source=str(path), overrides_source="the command line"
        )

    @classmethod
    def build(
        cls,
        document: dict[str, Any],
        overrides: dict[str, Any] | None,
        source: str,
        overrides_source: str | None = None,
    ) -> Self:
        """Validate a document with ``overrides`` laid over it.

        Args:
            document: nested mappings.
            overrides: dotted key → value, stronger than the document.
            source: where the document is from, for the reader of an error.
            overrides_source: where the overrides are from; by default the same.

        Raises:
            ConfigError: a mistake in either; it says in which.
        """
        overrides = overrides or {}
        for dotted, value in overrides.items():
            document = _with_override(document, dotted, value)

        def where(key: str) -> str:
            given = any(f"{key}.".startswith(f"{dotted}.") for dotted in overrides)
            return overrides_source if given and overrides_source else source

        try:
            config = cls.model_validate(document)
        except ValidationError as error:
            raise ConfigError(describe_validation_error(error, where, _known_keys(cls))) from error
        config._check_search_space(source)
        return config

    def with_overrides(self, overrides: dict[str, Any], source: str = "overrides") -> Self:
        """A copy with other values. Raises ConfigError."""
        return self.build(self.model_dump(mode="json"), overrides, source)

    def to_yaml(self) -> str:
        """The whole experiment as YAML that `load` takes."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def flat(self) -> dict[str, Any]:
        """Dotted key → value, for parameter tables."""
        return flatten(self.model_dump(mode="json"))

    def with_drawn(self, drawn: dict[str, Any], source: str, others: dict[str, Any] | None = None) -> Self:
        """A copy with the values that a study has drawn, and ``others``. Raises ConfigError."""
        return self.with_overrides({**overrides_of(drawn, self.flat()), **(others or {})}, source)

    def _check_search_space(self, source: str) -> None:
        known = self.flat()
        for key, space in self.tuning.space.items():
            fault = search_fault(key, space, known)
            if fault is not None:
                raise ConfigError(f"{source}: tuning.space: {key!r} {fault}")

    def check_search_ends(self, source: str) -> None:
        """Both ends of every search range, and every choice, must be allowed values. Raises ConfigError.

        Asked before a study, not when the file is read: a range that a training does not use must not stop it.
        """
        document = self.model_dump(mode="json")
        for key, space in self.tuning.space.items():
            if key == STRENGTH:
                continue  # what it scales is held within what is allowed
            for end in space.ends():
                try:
                    type(self).model_validate(_with_override(document, key, end))
                except ValidationError as error:
                    raise ConfigError(
                        describe_validation_error(error, f"{source}: tuning.space: {key}={end}")
                    ) from error


def _known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted keys of a model and of the models in it, also of those that may be null."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        for part in get_args(field.annotation) or (field.annotation,):
            if isinstance(part, type) and issubclass(part, BaseModel):
                keys += _known_keys(part, f"{prefix}{name}.")
    return keys


_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def parse_override(text: str) -> tuple[str, Any]:
    """``training.epochs=3`` → key and value, read as YAML; a text stays as it is written. Raises ConfigError."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"{text!r}: expected KEY=VALUE, for example training.epochs=3")
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r}: the value is not valid YAML") from error
    if _is_text(ExperimentConfig, key.strip()):
        return key.strip(), value if read is not None and not isinstance(read, str) else read
    if isinstance(read, str) and _NUMBER.fullmatch(read):
        return key.strip(), float(read)  # YAML 1.1 takes 1e-3 for a text
    return key.strip(), read


def _is_text(model: type[BaseModel], dotted: str) -> bool:
    """Whether a field takes a text and nothing else, or null."""
    name, _, rest = dotted.partition(".")
    field = model.model_fields.get(name)
    if field is None:
        return False
    kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not type(None)]
    if rest:
        return any(isinstance(kind, type) and issubclass(kind, BaseModel) and _is_text(kind, rest) for kind in kinds)
    return kinds == [str]


def _with_override(document: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    head, _, rest = dotted.partition(".")
    if not rest:
        return {**document, head: value}
    child = document.get(head)
    return {**document, head: _with_override(child if isinstance(child, dict) else {}, rest, value)}
