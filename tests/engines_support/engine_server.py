"""Runs real engines: imports vLLM once, and forks a process for each request, so that a request takes seconds.

It runs with the Python of hack/env/engines.sh. Requests are lines of JSON on standard input, answers are lines of JSON
on the descriptor that is its first argument; the second is the engine that it imports: vllm or sglang.
"""

from __future__ import annotations

import gc
import importlib.abc
import importlib.machinery
import json
import os
import re
import signal
import sys
import traceback
import types
from pathlib import Path
from typing import Any, NoReturn

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_COMPILE_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
}
PROMPTS = ([1, 5, 9], [3, 200, 17, 44], [7])
NEW_TOKENS = 24
MODULES = (
    "vllm",
    "vllm.entrypoints.launchers.cli_args",
    "vllm.entrypoints.llm",
    "vllm.distributed.elastic_ep.elastic_execute",
    "vllm.model_executor.layers.quantization.online.base",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.models.mixtral",
    "vllm.model_executor.models.qwen2",
    "vllm.model_executor.models.qwen3_moe",
    "vllm.plugins.lora_resolvers.filesystem_resolver",
    "vllm.plugins.lora_resolvers.hf_hub_resolver",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_model_runner",
    "vllm.v1.worker.cpu_worker",
)
"""Imported once, before processes are forked."""
SGLANG_MODULES = (
    "sglang.srt.configs.device_config",
    "sglang.srt.configs.load_config",
    "sglang.srt.configs.model_config",
    "sglang.srt.distributed",
    "sglang.srt.model_loader.loader",
    "sglang.srt.models.registry",
    "sglang.srt.plugins",
    "sglang.srt.runtime_context",
    "sglang.srt.server_args",
)
"""Imported in place of vLLM's in the process that runs SGLang, which takes ten times as long as a request."""
_KEPT: list[object] = []
"""Keeps engines, whose shutdown would take longer than their start: the process is killed."""
ENGINES = ("vllm", "transformers", "peft", "diffusers", "sglang", "torch", "tensorizer")


def main() -> None:
    """Answers requests until standard input ends.

    A request is ``{"number", "operation", "arguments", "log"}`` and starts a process; ``{"wait": number}`` waits for it
    and is answered. The first answer has the versions of all engines.
    """
    answers = os.fdopen(int(sys.argv[1]), "w")
    if sys.argv[2] == "sglang":
        sys.meta_path.insert(0, _KernelFinder())
        for module in SGLANG_MODULES:
            importlib.import_module(module)
    else:
        _import_vllm()
    gc.collect()
    gc.freeze()  # else the first collection in each forked process copies all pages
    print(json.dumps({name: _version(name) for name in ENGINES}), file=answers, flush=True)
    running: dict[int, tuple[int, Path]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(json.dumps(_wait(*running.pop(request["wait"]))), file=answers, flush=True)
            continue
        log = Path(request["log"])
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            _run(request, log)
        running[request["number"]] = (pid, log)


def _import_vllm() -> None:
    for module in MODULES:
        importlib.import_module(module)
    registry = importlib.import_module("vllm.model_executor.models.registry")
    registry._run_in_subprocess = lambda function: function()  # else a new interpreter imports vLLM for each model
    _stand_in_for_fp8_kernel()
    _replace_triton_kernels()


def _stand_in_for_fp8_kernel() -> None:
    """Quantizes to FP8 with PyTorch: vLLM's kernel, which it uses when it post-processes FP8 weights, needs a GPU."""
    import torch
    import vllm._custom_ops as kernels

    def scaled_fp8_quant(weight: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        largest = torch.finfo(torch.float8_e4m3fn).max
        return (weight.float() / scale).clamp(-largest, largest).to(torch.float8_e4m3fn), scale

    kernels.scaled_fp8_quant = scaled_fp8_quant


def _replace_triton_kernels() -> None:
    """Does once what takes each worker as long as the rest of its start: looks for kernels in all modules."""
    from vllm.platforms import current_platform

    current_platform.register_triton_kernel_overrides()
    type(current_platform).register_triton_kernel_overrides = classmethod(lambda _: None)


def _wait(pid: int, log: Path) -> dict[str, Any]:
    os.waitpid(pid, 0)
    answer = log.with_suffix(".json")
    if answer.exists():
        found: dict[str, Any] = json.loads(answer.read_text())
        return found
    return {"error": "Ended", "message": f"the process ended; see {log}"}


def _run(request: dict[str, Any], log: Path) -> NoReturn:
    """Runs a request in the forked process, with its output in a file, and ends the process and its workers."""
    os.setpgid(0, 0)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    result: dict[str, Any] = {"error": "Ended", "message": f"the process ended; see {log}"}
    try:
        result = OPERATIONS[request["operation"]](**request["arguments"])
    except Exception as error:  # noqa: BLE001  # the answer has it
        traceback.print_exc()
        sys.stderr.flush()
        result = _describe(error, log)
    finally:
        sys.stdout.flush()
        unfinished = log.with_suffix(".tmp")
        unfinished.write_text(json.dumps(result))
        unfinished.rename(log.with_suffix(".json"))
        os.killpg(0, signal.SIGKILL)
    raise SystemExit


def _describe(error: BaseException, log: Path) -> dict[str, Any]:
    """Returns the error's type and message; of a worker that ended: those of the first error in its log."""
    message = str(error)
    if "stack trace" in message:
        causes = re.findall(r"([A-Za-z_.]*(?:Error|Mismatch|Missing|Processed)): (.+)", log.read_text(errors="replace"))
        others = [each for each in causes if "stack trace" not in each[1]]
        if others:
            return {"error": others[0][0].rpartition(".")[2], "message": others[0][1]}
    return {"error": type(error).__name__, "message": message}


def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return ""


def generate(
    model: str,
    load_format: str = "auto",
    extra: dict[str, Any] | None = None,
    ranks: int = 1,
    adapter: str | None = None,
    revision: str | None = None,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns vLLM's greedy tokens for each prompt, and the logarithms of their probabilities."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    if ranks > 1:
        _fork_workers()
    engine = LLM(
        model=model,
        revision=revision,
        load_format=load_format,
        model_loader_extra_config=extra or {},
        tensor_parallel_size=ranks,
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=64,
        max_num_seqs=4,
        dtype="bfloat16",
        kv_cache_memory_bytes=32 << 20,
        seed=0,
        disable_log_stats=True,
        **({"enable_lora": True, "max_lora_rank": 8} if adapter else {}),
        **(options or {}),
    )
    _KEPT.append(engine)
    outputs = engine.generate(
        [{"prompt_token_ids": prompt} for prompt in PROMPTS],
        SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=0, detokenize=False),
        lora_request=LoRARequest("adapter", 1, adapter) if adapter else None,
        use_tqdm=False,
    )
    completions = [output.outputs[0] for output in outputs]
    return {
        "locked": _is_locked(Path(model).parent / ".tonnage/use.lock"),
        "tokens": [list(each.token_ids) for each in completions],
        "logprobs": [[next(iter(step.values())).logprob for step in each.logprobs] for each in completions],
    }


def embed(model: str, load_format: str = "auto") -> dict[str, Any]:
    """Returns vLLM's embedding of each prompt."""
    from vllm import LLM

    engine = LLM(
        model=model,
        runner="pooling",
        load_format=load_format,
        enforce_eager=True,
        max_model_len=64,
        max_num_seqs=4,
        dtype="float32",
        seed=0,
        disable_log_stats=True,
    )
    _KEPT.append(engine)
    outputs = engine.embed([{"prompt_token_ids": prompt} for prompt in PROMPTS], use_tqdm=False)
    return {"tokens": [[round(each, 4) for each in output.outputs.embedding] for output in outputs], "logprobs": []}


def _is_locked(path: Path) -> bool:
    """Returns whether a process of this request holds an entry's lock; false outside an entry.

    Requests run at the same time, so a lock that another one holds must not count.
    """
    if not path.exists():
        return False
    inode = str(path.stat().st_ino)
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return any(
        fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == inode and _is_in_this_group(int(fields[4]))
        for fields in locks
    )


def _is_in_this_group(pid: int) -> bool:
    try:
        return os.getpgid(pid) == os.getpgrp()
    except (ProcessLookupError, PermissionError):
        return False


def _fork_workers() -> None:
    """Starts vLLM's workers as forks of this process, which has imported everything, instead of new interpreters."""
    import multiprocessing

    import vllm.v1.executor.multiproc_executor as executor

    executor.get_mp_context = lambda: multiprocessing.get_context("fork")


def serialize(model: str, target: str, ranks: int = 1, processed: bool = False) -> dict[str, Any]:
    """Serializes a model as vLLM's ``tensorize_vllm_model`` does, and returns what ``generate`` does.

    Args:
        model: The folder of the checkpoint.
        target: The file; with several ranks it has ``%03d``.
        ranks: The number of ranks.
        processed: Write the weights as vLLM has post-processed them, as on a GPU. If false, before that: the CPU
            repacks weights that are not quantized, and frees the originals.
    """
    from vllm.model_executor.model_loader import register_model_loader, tensorizer
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    tensorizer.serialize_extra_artifacts = lambda *_, **__: None  # downloads from a hub

    @register_model_loader("serialize")
    class Serializer(DefaultModelLoader):
        def _prepare_weights(self, *arguments: object, **more: object) -> object:
            self.load_config.load_format = "auto"
            return super()._prepare_weights(*arguments, **more)

        def load_weights(self, model: object, model_config: object) -> None:
            super().load_weights(model, model_config)
            if not processed:
                self._write(model, model_config)

        def load_model(self, vllm_config: object, model_config: object, prefix: str = "") -> object:
            model = super().load_model(vllm_config=vllm_config, model_config=model_config, prefix=prefix)
            if processed:
                self._write(model, model_config)
            return model

        def _write(self, model: object, model_config: object) -> None:
            tensorizer.serialize_vllm_model(model, tensorizer.TensorizerConfig(tensorizer_uri=target), model_config)
            del model.vllm_tensorized_marker

    return generate(model, "serialize", ranks=ranks)


def write_models(folder: str) -> dict[str, Any]:
    """Writes each model as a folder of Hugging Face, and as ``.tensors`` files in the ways that users write them."""
    from write_engine_models import write_all

    return write_all(Path(folder))


def transformers_tokens(model: str) -> dict[str, Any]:
    """Returns transformers' greedy tokens, and what it reports as missing or unexpected."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded, info = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, output_loading_info=True)
    reported = {key: sorted(map(str, info[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    return {"tokens": _greedy(loaded), **reported}


def write_checkpoint(model: str, target: str) -> dict[str, Any]:
    """Writes a checkpoint from what Tonnage loaded, with nothing else: the remedy for fused experts."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    import tonnage

    written = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model), dtype=torch.bfloat16)
    with tonnage.open(model) as weights:
        weights.load_into(written, strict=False)
        written.save_pretrained(target)
    return {}


def peft_tokens(model: str, adapter: str) -> dict[str, Any]:
    """Returns the greedy tokens of a model with an adapter."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    return {"tokens": _greedy(PeftModel.from_pretrained(base, adapter))}


def _greedy(model: Any) -> list[list[int]]:
    import torch

    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return [
        model.generate(input_ids=torch.tensor([prompt]), **options)[0].tolist()[len(prompt) :] for prompt in PROMPTS
    ]


def diffusers_sum(folder: str) -> dict[str, Any]:
    """Returns a checksum of a diffusers model's output, rounded: the last bits depend on the weights' alignment."""
    import torch
    from diffusers import UNet2DModel

    model = UNet2DModel.from_pretrained(folder)
    torch.manual_seed(0)
    output = model(torch.randn(1, 3, 16, 16), 3).sample
    return {"tokens": [[round(float(each), 3) for each in (output.double().sum(), output.double().abs().max())]]}


def sglang_state(folder: str, load_format: str = "auto") -> dict[str, Any]:
    """Returns the state of SGLang's own model after SGLang's own loader filled it, each tensor as a hash.

    All is SGLang's: plugins, arguments, model, loader. Only its compiled kernels are replaced, by ones that can't be
    called, so the model computes nothing. Only the process that imports SGLang runs it.
    """
    import hashlib
    import tempfile

    import torch
    from sglang.srt.plugins import load_plugins

    load_plugins()
    from sglang.srt.configs.device_config import DeviceConfig
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.distributed import init_distributed_environment, initialize_model_parallel
    from sglang.srt.model_loader.loader import get_model_loader
    from sglang.srt.runtime_context import SpawnRanks, publish
    from sglang.srt.server_args import prepare_server_args

    command = f"--model-path {folder} --load-format {load_format} --device cpu --skip-tokenizer-init"
    arguments = prepare_server_args([*command.split(), "--attention-backend", "torch_native"])
    publish(arguments, role="scheduler", ranks=SpawnRanks(world_rank=0))
    with tempfile.NamedTemporaryFile() as meeting:
        address = f"file://{meeting.name}"
        init_distributed_environment(1, 0, local_rank=0, distributed_init_method=address, backend="gloo")
        initialize_model_parallel()
    config = ModelConfig.from_server_args(arguments)
    loader = get_model_loader(LoadConfig(load_format=arguments.load_format), config)
    model = loader.load_model(model_config=config, device_config=DeviceConfig("cpu"))
    return {
        "locked": _is_locked(Path(folder).parent / ".tonnage/use.lock"),
        "tensors": {
            name: hashlib.sha256(tensor.detach().contiguous().flatten().view(torch.uint8).numpy()).hexdigest()
            for name, tensor in model.state_dict().items()
        },
    }


def checkpoint_keys(folders: list[str]) -> dict[str, Any]:
    """Returns vLLM's keys of checkpoints, by which its ``ipc_cache`` finds weights that are on a GPU already."""
    from vllm.model_executor.model_loader.weight_cache.protocol import hash_checkpoint

    return {"keys": [hash_checkpoint(folder) for folder in folders]}


def code_keys(model: str, revisions: list[str | None]) -> dict[str, Any]:
    """Returns what vLLM's keys of compiled code have of a model, for each ``--revision``."""
    from vllm.config import ModelConfig

    configs = [ModelConfig(model=model, skip_tokenizer_init=True, revision=each) for each in revisions]
    return {"keys": [config.compute_hash() for config in configs]}


class _Kernel(types.ModuleType):
    """A module, class or function of compiled kernels that isn't there."""

    __path__ = ()  # importers take it for a package

    def __getattr__(self, name: str) -> _Kernel:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Kernel(f"{self.__name__}.{name}")

    def __call__(self, *_: object, **__: object) -> NoReturn:
        raise RuntimeError(f"{self.__name__} is a kernel")


class _KernelFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name.partition(".")[0] == "sgl_kernel" else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> _Kernel:
        return _Kernel(spec.name)

    def exec_module(self, module: object) -> None:
        pass


OPERATIONS = {
    function.__name__: function
    for function in (
        generate,
        embed,
        serialize,
        write_models,
        transformers_tokens,
        write_checkpoint,
        peft_tokens,
        diffusers_sum,
        sglang_state,
        checkpoint_keys,
        code_keys,
    )
}

if __name__ == "__main__":
    main()
