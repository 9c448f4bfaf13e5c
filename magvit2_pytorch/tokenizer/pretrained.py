"""Saving and loading tokenizers, in folders or on the Hugging Face hub."""

import json
import logging
import os
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
from safetensors.torch import save_file
from torch import Tensor

from magvit2_pytorch.atomic import as_path, replace_json, replacing
from magvit2_pytorch.config import Options, Presets, keyword_signature
from magvit2_pytorch.functional import check_range
from magvit2_pytorch.quantizers.quantizer import Quantizer
from magvit2_pytorch.tokenizer.inputs import validate_video
from magvit2_pytorch.types import Video
from magvit2_pytorch.weights import default_file_mode, read_tensors

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

CARD = """---
library_name: magvit2_pytorch
tags: [{tag}, magvit2]
---
{summary} Load it with

```python
from {module} import {name}

model = {name}.from_pretrained("PATH_OR_HUB_NAME")
```
"""


def _read_config(path: Path) -> dict[str, Any]:
    try:
        # Editors on Windows put a byte order mark first.
        config = json.loads(path.read_bytes().decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON in UTF-8 ({error}): save it as UTF-8") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no options by name, but a {type(config).__name__}")
    return config


class Pretrained(ModelHubMixin):
    """Adds `save_pretrained`, `from_pretrained` and `push_to_hub` to a model.

    A folder holds `config.json`, the fields of the config, and `model.safetensors`. Loading never
    executes code. Keyword arguments of `from_pretrained` override options of the config.
    """

    config_class: ClassVar[type[Options]]
    """Class of `config`, whose fields are the model's options as keyword arguments."""
    presets: ClassVar[Presets]
    """Named configurations."""
    tag: ClassVar[str] = "video-tokenizer"
    """Kind of model, on its card on the hub."""

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        if hasattr(cls, "config_class"):
            cls.__signature__ = keyword_signature(cls.__init__, cls.config_class)

    @classmethod
    def from_config(cls, config: Options):
        return cls(**config.to_dict())

    @classmethod
    def from_preset(cls, name: str, **overrides: Any):
        """A named configuration (see `presets`), with options overridden by keyword."""
        return cls(**(cls.presets.model(name) | overrides))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights; inputs must be there too, except with `tile_size`."""
        return next(self.parameters()).device

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Writes `config.json` and `model.safetensors` to a folder, each atomically."""
        return super().save_pretrained(as_path(save_directory), **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        # The format has one memory order; loading restores channels-last.
        state = {name: value.contiguous() for name, value in self.state_dict().items()}
        with replacing(save_directory / WEIGHTS_FILE) as part, default_file_mode(part):
            save_file(state, part, metadata={"format": "pt"})
        replace_json(save_directory / CONFIG_FILE, self.config.to_dict())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any):
        name = os.fsdecode(pretrained_model_name_or_path)
        folder = as_path(name)
        if folder.is_dir():
            config = folder / CONFIG_FILE
            saved = _read_config(config) if config.is_file() else {}
            return cls._from_pretrained(model_id=str(folder), **(saved | options))
        if folder.exists():
            raise NotADirectoryError(f"{name} is a file: give a folder of save_pretrained")
        # A hub name is NAME or OWNER/NAME. For a path, the hub would only say that it is neither.
        is_path = folder.is_absolute() or name.startswith(".") or name.count("/") > 1
        # With `runs` here, `runs/mine` is a path and nobody's model.
        if is_path or ("/" in name and folder.parent.is_dir()):
            raise FileNotFoundError(f"there is no folder {name}")
        logging.getLogger(__name__).warning(
            f"there is no folder {name}: looking for it on the Hugging Face hub"
        )
        return super().from_pretrained(name, **options)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        device: str | torch.device = "cpu",
        **options: Any,
    ):
        folder = Path(model_id)
        if folder.is_dir():
            for file in (CONFIG_FILE, WEIGHTS_FILE):
                if not (folder / file).is_file():
                    raise FileNotFoundError(
                        f"{folder} holds no {file}: was it written by save_pretrained?"
                    )
            weights = folder / WEIGHTS_FILE
        else:
            weights = hf_hub_download(
                model_id,
                WEIGHTS_FILE,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        model = cls(**options)
        state = read_tensors(weights, f"a {WEIGHTS_FILE} of save_pretrained")
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{weights} does not fit its {CONFIG_FILE}: {error}") from error
        return model.to(device).eval()

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        cls = type(self)
        summary = cls.__doc__.splitlines()[0]
        names = dict(summary=summary, module=cls.__module__, name=cls.__name__)
        return ModelCard(CARD.format(tag=self.tag, **names))


class PretrainedTokenizer(Pretrained):
    """Base of tokenizers: codes of their quantizer, check of videos."""

    quantizer: Quantizer
    space_factor: int

    @property
    def codebook_size(self) -> int | None:
        """Number of codes in one codebook; None if latents are continuous."""
        return self.quantizer.codebook_size

    @property
    def num_codebooks(self) -> int:
        """Codes per position, each from its own codebook."""
        return self.quantizer.num_codebooks

    @property
    def digit_levels(self) -> tuple[int, ...] | None:
        """Number of values of each digit of a code, as in `Quantizer`."""
        return self.quantizer.digit_levels

    def prepare(self, video: Tensor, check_values: bool = True) -> Video:
        """Checked video `b c t h w`; an image becomes one frame."""
        video = validate_video(video, self.config.channels, self.space_factor)
        if check_values and not video.is_meta:
            check_range(video)
        return video
