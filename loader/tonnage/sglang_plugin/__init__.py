"""The load format ``tonnage`` of SGLang: ``python -m sglang.launch_server --model-path DIR --load-format tonnage``.

SGLang finds ``register`` by its entry point in the group ``sglang.srt.plugins`` and calls it in each of its processes,
before it parses its arguments. It has no registry of load formats, but a list of their names that can be extended,
hooks before its functions, and takes a class of loaders as a load format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.srt.configs.load_config import LoadConfig

LOAD_FORMAT = "tonnage"


def register() -> None:
    """Registers the load format. May be called several times in a process."""
    from sglang.srt.arg_groups.choices import LOAD_FORMAT_CHOICES  # in SGLang's processes only
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    if LOAD_FORMAT in LOAD_FORMAT_CHOICES:
        return
    LOAD_FORMAT_CHOICES.append(LOAD_FORMAT)
    HookRegistry.register(
        "sglang.srt.configs.load_config.LoadConfig._verify_load_format", choose_loader, HookType.BEFORE
    )


def choose_loader(config: LoadConfig) -> None:
    """Puts the class of the loader in the place of the format's name, which SGLang's own list doesn't have."""
    if config.load_format == LOAD_FORMAT:
        from tonnage.sglang_plugin.model_loader import TonnageModelLoader

        config.load_format = TonnageModelLoader
