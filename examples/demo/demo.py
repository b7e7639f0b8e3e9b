"""Demo of Tonnage on one machine: `make demo`.

Starts an S3 server (SeaweedFS), creates a model with transformers, and serializes it with tensorizer. Then `tonnage`
loads it, loads it again, is killed and resumes; every tensor is compared with the original. Then it loads the same
model from safetensors files, as transformers saves them. At the end transformers starts on the cache and answers.

All files are below one temporary directory, which is removed at the end, also after a failure or an interrupt. With
`--cache DIR` the model stays in the cache.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY / "hack"), str(Path(__file__).parent)]

from demo_cluster.step_printer import DemoFailed, StepPrinter, expect  # noqa: E402  # needs the path above

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from support.s3_server import SeaweedS3

STEPS = 11
BUCKET = "models"
PREFIX = "demo-llama/"
SOURCE = f"s3://{BUCKET}/{PREFIX}"
CHECKPOINT = "demo-llama-checkpoint/"
"""Prefix of the same model as safetensors files."""
PROMPT = "Model weights from object storage into a verified cache"
KILL_FRACTION = 0.4
"""Fraction of the bytes after which the load is killed."""
SLOW_SECONDS = 8
"""Seconds that the load would take if it were not killed."""
SHOW_CURSOR = "\033[?25h"
"""Shows the cursor again, which a killed progress bar leaves hidden."""
MEMORY_NEEDED = 2 << 30
"""Free bytes of /dev/shm that the demo needs to use it."""


class TonnageCli:
    """Prints and runs `tonnage` commands, with the S3 server's environment."""

    def __init__(self, environment: Mapping[str, str], cache: Path, printer: StepPrinter, *, segment_size: str) -> None:
        self._environment = {**os.environ, **environment}
        self._cache = cache
        self._options = ["--segment-size", segment_size]
        self._printer = printer
        self._program = str(Path(sys.executable).with_name("tonnage"))

    def load(self, *options: str, source: str = SOURCE) -> tuple[dict[str, Any], float]:
        """Loads the model, with progress on the terminal. Returns the report and the seconds of the whole process."""
        began = time.perf_counter()
        output = self._run("load", source, *(self._options if source == SOURCE else ()), *options)
        seconds = time.perf_counter() - began
        report: dict[str, Any] = json.loads(output.splitlines()[-1])
        return report, seconds

    def show(self, *arguments: str) -> None:
        """Runs another command and prints its output."""
        self._printer.print_details(self._run(*arguments))

    def kill_mid_load(self, total: int) -> None:
        """Starts a slow load and kills it (SIGKILL) before its end. On a terminal it shows the bar until then."""
        terminal = sys.stderr.isatty()
        kind = "bar" if terminal else "json"
        limit = ["--bandwidth-limit", str(total // SLOW_SECONDS), "--part-size", "1MiB", "--progress", kind]
        command = [self._program, *self._arguments("load", SOURCE, *self._options, *limit)]
        errors = None if terminal else subprocess.PIPE
        with subprocess.Popen(
            command, env=self._environment, stdout=subprocess.DEVNULL, stderr=errors, text=True
        ) as process:
            try:
                if process.stderr:
                    next((line for line in process.stderr if loaded_bytes(line) > KILL_FRACTION * total), "")
                else:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(KILL_FRACTION * SLOW_SECONDS)
                killed = process.poll() is None
            finally:
                process.kill()
        if terminal:
            print(SHOW_CURSOR, file=sys.stderr, flush=True)
        expect(killed, "the load finished before it was killed")

    def _arguments(self, command: str, *arguments: str) -> list[str]:
        whole = [command, *arguments, "--cache", str(self._cache)]
        self._printer.print_command(" ".join(["tonnage", *whole]))
        return whole

    def _run(self, command: str, *arguments: str) -> str:
        """Runs a command and returns its output. In a log, lines of progress are left out."""
        done = subprocess.run(
            [self._program, *self._arguments(command, *arguments)],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=None if sys.stderr.isatty() else subprocess.PIPE,
            text=True,
            check=False,
        )
        errors = [line for line in (done.stderr or "").splitlines(keepends=True) if '"kind":"progress"' not in line]
        sys.stderr.writelines(errors)
        if done.returncode:
            raise DemoFailed(f"`tonnage {command}` exited with {done.returncode}.\n{done.stdout}")
        return done.stdout


def loaded_bytes(line: str) -> int:
    """Returns `loaded_bytes` of a line of `--progress json`; 0 if it has none."""
    try:
        message = json.loads(line)
    except ValueError:
        return 0
    progress = message.get("progress") or message
    return int(progress.get("loaded_bytes", 0))


def run_demo(work: Path, cache: Path, printer: StepPrinter, *, small: bool) -> None:
    """Runs all steps.

    Args:
        work: A folder for the server's and the model's files.
        cache: The cache's folder.
        printer: Prints the steps.
        small: Whether the model is small.

    Raises:
        DemoFailed: A check failed.
    """
    printer.print_step("Start an S3 server (SeaweedFS) on this machine.")
    with seaweed_server(work / "s3") as server:
        printer.print_details(f"It listens on {server.endpoint}.")

        printer.print_step("Create a model and a tokenizer with transformers, and serialize the model with tensorizer.")
        model, tokenizer = make_files(work / "files", small=small)
        original = dict(model.state_dict())
        total = sum(file.stat().st_size for file in (work / "files").iterdir())
        printer.print_details(tree(work / "files"))
        printer.print_details(
            f"{len(original)} tensors, and {count_computed(model)} buffers that engines compute themselves."
        )

        printer.print_step(f"Upload the files to {SOURCE} with boto3.")
        server.client().create_bucket(Bucket=BUCKET)
        server.put(BUCKET, {PREFIX + file.name: file for file in sorted((work / "files").iterdir())})
        printer.print_details(f"{megabytes(total)} uploaded.")

        segment_size = "16MiB" if small else "128MiB"  # several shards, as for a large model
        tonnage = TonnageCli(server.environment(), cache, printer, segment_size=segment_size)
        printer.print_step("Load it into a cache. The checksum of every tensor is verified during the transfer.")
        report, seconds = tonnage.load()
        expect(report["outcome"] == "loaded" and report["verified"] == "crc32", f"unexpected report: {report}")
        rate = report["bytes"] / report["seconds"] / 1e9
        printer.print_details(f"{megabytes(report['bytes'])} in {report['seconds']:.2f} s ({rate:.2f} GB/s).")
        printer.print_details(f"Files in {report['path']}:")
        printer.print_details(tree(Path(report["path"])))

        printer.print_step("Load it again: a cache hit. Access and sizes are checked, and nothing is downloaded.")
        report, seconds = tonnage.load()
        expect(report["outcome"] == "hit" and report["downloaded_bytes"] == 0, f"not a hit: {report}")
        printer.print_details(f"Hit in {1000 * seconds:.0f} ms, including the start of the process.")

        printer.print_step("Read it with safetensors and transformers, and compare every tensor with the original.")
        compare_tensors(Path(report["path"]), original, printer)
        compare_model(Path(report["path"]), model, tokenizer, printer)

        printer.print_step("Remove it, load it again slowly, and kill the loader (SIGKILL) before it finishes.")
        tonnage.show("rm", "--all")
        tonnage.kill_mid_load(total)
        printer.print_details("Killed the loader.")
        visible = list(cache.glob("*/model/*"))
        expect(not visible, f"an incomplete model is visible: {visible}")
        printer.print_details("The entry's model folder is empty: engines never see an incomplete model.")

        printer.print_step("Load it again: the load resumes after the parts that the killed loader wrote.")
        report, seconds = tonnage.load("--part-size", "1MiB")
        kept, fetched = report["resumed_bytes"], report["downloaded_bytes"]
        expect(report["outcome"] == "loaded" and kept > 0 and fetched > 0, f"the load did not resume: {report}")
        printer.print_details(f"{megabytes(kept)} were in the cache (resumed_bytes), {megabytes(fetched)} downloaded.")
        compare_tensors(Path(report["path"]), original, printer)

        checkpoint = load_checkpoint(work / "checkpoint", server, tonnage, printer, model, tokenizer, small=small)

        printer.print_step("List the cache, and remove the entry of the safetensors files.")
        remove_entry(checkpoint, tonnage)

        printer.print_step("Start an engine on the cache: transformers, in a process of its own, answers a prompt.")
        start_engine(Path(report["path"]), model, tokenizer, printer)
    print("\nAll checks passed.")


def load_checkpoint(
    checkpoint: Path,
    server: SeaweedS3,
    tonnage: TonnageCli,
    printer: StepPrinter,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    small: bool,
) -> dict[str, Any]:
    """Uploads what transformers saves, loads it, and compares files and model. Returns the report."""
    printer.print_step("Load the same model from safetensors files, as transformers saves it. They stay as they are.")
    model.save_pretrained(checkpoint, max_shard_size="20MB" if small else "200MB")
    tokenizer.save_pretrained(checkpoint)
    server.put(BUCKET, {CHECKPOINT + file.name: file for file in sorted(checkpoint.iterdir())})
    report, _ = tonnage.load(source=f"s3://{BUCKET}/{CHECKPOINT}")
    expect(report["outcome"] == "loaded", f"unexpected report: {report}")
    for file in checkpoint.iterdir():
        same = (Path(report["path"]) / file.name).read_bytes() == file.read_bytes()
        expect(same, f"{file.name} differs from the file in the bucket")
    printer.print_details(tree(Path(report["path"])))
    tonnage.show("verify", report["entry"])
    compare_model(Path(report["path"]), model, tokenizer, printer)
    return report


def remove_entry(report: Mapping[str, Any], tonnage: TonnageCli) -> None:
    """Lists the cache, and removes an entry."""
    tonnage.show("ls")
    tonnage.show("rm", report["entry"])
    left = list(Path(report["path"]).glob("*"))
    expect(not left, f"the removed entry still has files: {left}")


def start_engine(
    directory: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, printer: StepPrinter
) -> None:
    """Starts transformers on an entry's directory, and compares its answer with the original model's."""
    from generate import generate

    script = Path(__file__).with_name("generate.py")
    printer.print_command(f'python {script.relative_to(REPOSITORY)} {directory} "{PROMPT}"')
    began = time.perf_counter()
    command = [sys.executable, str(script), str(directory), PROMPT]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - began
    expect(done.returncode == 0, f"transformers exited with {done.returncode}")
    answer = json.loads(done.stdout.splitlines()[-1])
    expected = generate(model, tokenizer, PROMPT)
    expect(answer["tokens"] == expected, f"it answers {answer['tokens']}, and the original model {expected}")
    printer.print_details(f"The answer, after {seconds:.0f} s with the start: {len(expected)} tokens, {expected}.")
    printer.print_details("The original model gives the same tokens. Its weights are random, so they are no words.")
    vllm = find_vllm()
    if vllm:
        printer.print_details(f"vLLM is installed, too (the folder stays with --cache DIR): {vllm} serve {directory}")


def find_vllm() -> str | None:
    """Returns the command `vllm`: of the path, or of the environment that `make engines` installs."""
    script = REPOSITORY / "hack" / "env" / "engines.sh"
    done = subprocess.run([str(script), "--installed"], capture_output=True, text=True, check=False)
    installed = Path(done.stdout.strip()).with_name("vllm") if done.returncode == 0 else None
    return shutil.which("vllm") or (f"VLLM_CPU_KVCACHE_SPACE=1 {installed}" if installed else None)


@contextlib.contextmanager
def seaweed_server(directory: Path) -> Iterator[SeaweedS3]:
    """Runs an S3 server within the context."""
    from support.s3_server import start_seaweed

    directory.mkdir()
    server = start_seaweed(directory)
    try:
        yield server
    finally:
        server.stop()


def make_files(directory: Path, *, small: bool) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Writes the files to upload, and returns the model and tokenizer in them."""
    from model import make_model, make_tokenizer, save

    model = make_model(small=small)
    tokenizer = make_tokenizer((REPOSITORY / name).read_text() for name in ("README.md", "LICENSE"))
    save(model, tokenizer, directory)
    return model, tokenizer


def compare_tensors(directory: Path, original: Mapping[str, torch.Tensor], printer: StepPrinter) -> None:
    """Reads every shard with safetensors and compares the tensors with the originals, bit for bit."""
    import torch
    from safetensors import safe_open

    missing = dict(original)
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118  # not a mapping
                read, expected = shard.get_tensor(name), missing.pop(name)
                same = read.dtype == expected.dtype and read.shape == expected.shape
                same = same and torch.equal(read.view(-1).view(torch.uint8), expected.view(-1).view(torch.uint8))
                expect(same, f"{name} in {file.name} differs from the original")
    expect(not missing, f"{len(missing)} tensors are missing, such as {next(iter(missing), '')}")
    printer.print_details(f"safetensors: all {len(original)} tensors equal the originals, bit for bit.")


def compare_model(
    directory: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, printer: StepPrinter
) -> None:
    """Loads the folder with transformers, and compares parameters, tokens and logits with the original model's."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype="auto", local_files_only=True).eval()
    ours = dict(loaded.named_parameters())
    for name, parameter in model.named_parameters():
        expect(torch.equal(ours[name], parameter), f"transformers: {name} differs from the original")
    reader = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    tokens = reader(PROMPT, return_tensors="pt")["input_ids"]
    expect(tokens.tolist() == tokenizer(PROMPT, return_tensors="pt")["input_ids"].tolist(), "the tokens differ")
    with torch.inference_mode():
        expected, logits = model(tokens).logits, loaded(tokens).logits
    expect(torch.equal(expected, logits), "the logits differ")
    shape = " × ".join(map(str, logits.shape))
    printer.print_details(f"transformers: all {len(ours)} parameters and the logits of a sentence ({shape}) are equal.")


def tree(directory: Path) -> str:
    """Returns the files below a folder with their sizes, one per line."""
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    return "\n".join(f"{file.stat().st_size:>13,}  {file.relative_to(directory)}" for file in files)


def count_computed(model: LlamaForCausalLM) -> int:
    """Returns the number of buffers that are not in the state dict: tensorizer writes them, engines compute them."""
    return sum(name not in model.state_dict() for name, _ in model.named_buffers())


def megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB"


def default_parent() -> str:
    """Returns /dev/shm if it has enough free space, otherwise the directory for temporary files."""
    shared = Path("/dev/shm")
    with contextlib.suppress(OSError):
        if os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > MEMORY_NEEDED:
            return str(shared)
    return tempfile.gettempdir()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--small", action="store_true", help="use a model of 40 MB instead of 460 MB")
    parser.add_argument(
        "--directory", help="parent of the temporary directory (default: /dev/shm if it has space, otherwise /tmp)"
    )
    parser.add_argument("--cache", type=Path, help="a new folder for the cache, which keeps the model at the end")
    arguments = parser.parse_args()
    if arguments.cache and arguments.cache.exists():
        parser.error(f"{arguments.cache} exists; the demo removes entries of its cache")
    warnings.filterwarnings("ignore")  # of torch and transformers
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(143))
    with tempfile.TemporaryDirectory(
        prefix="tonnage-demo-", dir=arguments.directory or default_parent(), ignore_cleanup_errors=True
    ) as work:
        try:
            cache = arguments.cache or Path(work) / "cache"
            run_demo(Path(work), cache, StepPrinter(STEPS), small=arguments.small)
        except DemoFailed as error:
            print(f"\nThe demo failed: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\nInterrupted. The temporary files were removed and the S3 server was stopped.", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
