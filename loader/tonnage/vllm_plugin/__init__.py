"""The load format ``tonnage`` of vLLM: ``vllm serve /models/llama --load-format tonnage``.

vLLM finds ``register`` by its entry point in the group ``vllm.general_plugins``, wherever this package is installed, or
on ``PYTHONPATH`` together with its metadata, and calls it in each of its processes. Of the loader's dependencies only
msgspec is imported, which vLLM needs too.
"""

from __future__ import annotations

LOAD_FORMAT = "tonnage"


def register() -> None:
    """Registers the load format. May be called several times in a process."""
    from vllm.model_executor.model_loader import register_model_loader  # in vLLM's processes only

    from tonnage.vllm_plugin.model_loader import TonnageModelLoader

    register_model_loader(LOAD_FORMAT)(TonnageModelLoader)
