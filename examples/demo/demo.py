"""What Tonnage does, shown on this machine with real parts: `make demo`.

A real S3 server (SeaweedFS), a real model (transformers), serialized by the real tensorizer, loaded by `tonnage`,
loaded again, killed and resumed, and compared tensor by tensor with the original. Everything lies below one temporary
directory and is removed at the end, however it comes.
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

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from support.s3_server import SeaweedS3

STEPS = 9
BUCKET = "models"
PREFIX = "demo-llama/"
SOURCE = f"s3://{BUCKET}/{PREFIX}"
KILL_FRACTION = 0.4
"""Part of the bytes after which the load is killed."""
SLOW_SECONDS = 8
"""How long the load that is killed would take."""
SHOW_CURSOR = "\033[?25h"
"""What a killed progress bar leaves to be done on the terminal."""
MEMORY_NEEDED = 2 << 30
"""Room in /dev/shm for the cache to lie there."""


class DemoFailed(Exception):
    """Something was not as it must be."""


class StepPrinter:
    """Announces steps, and indents what belongs to them."""

    def __init__(self) -> None:
        self._step = 0
        self._bold, self._dim, self._plain = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")

    def print_step(self, sentence: str) -> None:
        """Begins the next step."""
        self._step += 1
        print(f"\n{self._bold}{self._step}/{STEPS} {sentence}{self._plain}", flush=True)

    def print_details(self, text: str) -> None:
        """Says something within a step."""
        print("\n".join(f"    {line}" for line in text.splitlines()), flush=True)

    def print_command(self, arguments: list[str]) -> None:
        """Shows a command line as a person would type it."""
        print(f"    {self._dim}$ {' '.join(arguments)}{self._plain}", flush=True)


class TonnageCli:
    """Runs `tonnage` with the server's environment, as a person would in a shell."""

    def __init__(self, environment: Mapping[str, str], cache: Path, printer: StepPrinter, *, segment_size: str) -> None:
        self._environment = {**os.environ, **environment}
        self._cache = cache
        self._source = [SOURCE, "--segment-size", segment_size]
        self._printer = printer
        self._program = str(Path(sys.executable).with_name("tonnage"))

    def load(self, *options: str) -> tuple[dict[str, Any], float]:
        """Loads the model, progress on the terminal; returns the report and the seconds of the whole process."""
        began = time.perf_counter()
        output = self._run("load", *self._source, *options)
        seconds = time.perf_counter() - began
        report: dict[str, Any] = json.loads(output.splitlines()[-1])
        return report, seconds

    def show(self, *arguments: str) -> None:
        """Runs another command and shows what it prints."""
        self._printer.print_details(self._run(*arguments))

    def kill_mid_load(self, total: int) -> None:
        """Loads slowly, and kills the process (SIGKILL) part of the way; on a terminal the bar is seen until then."""
        watched = sys.stderr.isatty()
        kind = "bar" if watched else "json"
        limit = ["--bandwidth-limit", str(total // SLOW_SECONDS), "--part-size", "1MiB", "--progress", kind]
        command = [self._program, *self._arguments("load", *self._source, *limit)]
        errors = None if watched else subprocess.PIPE
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
        if watched:
            print(SHOW_CURSOR, file=sys.stderr, flush=True)
        expect(killed, "the load was over before it could be killed")

    def _arguments(self, command: str, *arguments: str) -> list[str]:
        whole = [command, *arguments, "--cache", str(self._cache)]
        self._printer.print_command(["tonnage", *whole])
        return whole

    def _run(self, command: str, *arguments: str) -> str:
        done = subprocess.run(
            [self._program, *self._arguments(command, *arguments)],
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise DemoFailed(f"`tonnage {command}` exited with {done.returncode}.\n{done.stdout}")
        return done.stdout


def loaded_bytes(line: str) -> int:
    """Returns the bytes that a line of `--progress json` speaks of; 0 when it speaks of something else."""
    try:
        message = json.loads(line)
    except ValueError:
        return 0
    progress = message.get("progress") or message
    return int(progress.get("loaded_bytes", 0))


def run_demo(work: Path, printer: StepPrinter, *, small: bool) -> None:
    """The steps, one after the other."""
    printer.print_step("Start a real S3 server (SeaweedFS) on this machine.")
    with seaweed_server(work / "s3") as server:
        printer.print_details(f"It answers at {server.endpoint}.")

        printer.print_step("Make a model and a tokenizer with transformers, and serialize them with tensorizer.")
        model, tokenizer = make_files(work / "files", small=small)
        original = dict(model.state_dict())
        total = sum(file.stat().st_size for file in (work / "files").iterdir())
        printer.print_details(tree(work / "files"))
        printer.print_details(f"{len(original)} tensors: {dtypes_of(original)}.")

        printer.print_step(f"Upload the folder to {SOURCE} with boto3, as anybody does.")
        server.client().create_bucket(Bucket=BUCKET)
        server.put(BUCKET, {PREFIX + file.name: file for file in sorted((work / "files").iterdir())})
        printer.print_details(f"{megabytes(total)} uploaded.")

        segment_size = "16MiB" if small else "128MiB"  # so that there are several, as in a large model
        tonnage = TonnageCli(server.environment(), work / "cache", printer, segment_size=segment_size)
        printer.print_step("Load it into a cache: in parallel, every tensor's checksum verified while it arrives.")
        report, seconds = tonnage.load()
        expect(report["outcome"] == "loaded" and report["verified"] == "crc32", f"an unexpected report: {report}")
        rate = report["bytes"] / report["seconds"] / 1e9
        printer.print_details(f"{megabytes(report['bytes'])} in {report['seconds']:.2f} s ({rate:.2f} GB/s).")
        printer.print_details(f"What lies in {report['path']}:")
        printer.print_details(tree(Path(report["path"])))

        printer.print_step("Load it again: nothing is downloaded, access and sizes are checked.")
        report, seconds = tonnage.load()
        expect(report["outcome"] == "hit" and report["downloaded_bytes"] == 0, f"no hit: {report}")
        printer.print_details(f"A hit, in {1000 * seconds:.0f} ms for the whole process.")

        printer.print_step(
            "Read it with safetensors and with transformers, and compare every tensor with the original."
        )
        compare_tensors(Path(report["path"]), original, printer)
        compare_model(Path(report["path"]), model, tokenizer, printer)

        printer.print_step("Remove it, load it again slowly, and kill -9 the load in the middle.")
        tonnage.show("rm", "--all")
        tonnage.kill_mid_load(total)
        printer.print_details("Killed.")
        visible = list((work / "cache").glob("*/model/*"))
        expect(not visible, f"a half-written model can be seen: {visible}")
        printer.print_details("No engine can see a half-written model: nothing is in the entry's model folder.")

        printer.print_step("Load once more: it goes on where the killed one stopped.")
        report, seconds = tonnage.load("--part-size", "1MiB")
        kept, fetched = report["resumed_bytes"], report["downloaded_bytes"]
        expect(report["outcome"] == "loaded" and kept > 0 and fetched > 0, f"nothing was resumed: {report}")
        printer.print_details(
            f"{megabytes(kept)} were on disk and kept (resumed_bytes), {megabytes(fetched)} downloaded."
        )
        compare_tensors(Path(report["path"]), original, printer)

        printer.print_step("Look at the cache, and remove the entry.")
        tonnage.show("ls")
        tonnage.show("rm", "--all")
        expect(not Path(report["path"]).exists() or not any(Path(report["path"]).iterdir()), "something is left")
    print("\nAll of it was as it must be.")


@contextlib.contextmanager
def seaweed_server(directory: Path) -> Iterator[SeaweedS3]:
    """A running server, stopped at the end."""
    from support.s3_server import start_seaweed

    directory.mkdir()
    server = start_seaweed(directory)
    try:
        yield server
    finally:
        server.stop()


def make_files(directory: Path, *, small: bool) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Writes the files to upload, and returns what they were made of."""
    from model import make_model, make_tokenizer, save

    model = make_model(small=small)
    tokenizer = make_tokenizer((REPOSITORY / name).read_text() for name in ("README.md", "LICENSE"))
    save(model, tokenizer, directory)
    return model, tokenizer


def compare_tensors(directory: Path, original: Mapping[str, torch.Tensor], printer: StepPrinter) -> None:
    """Reads every shard with safetensors and demands the original tensors, bit for bit."""
    import torch
    from safetensors import safe_open

    missing = dict(original)
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118  # not a mapping
                read, expected = shard.get_tensor(name), missing.pop(name)
                same = read.dtype == expected.dtype and read.shape == expected.shape
                same = same and torch.equal(read.view(-1).view(torch.uint8), expected.view(-1).view(torch.uint8))
                expect(same, f"{name} in {file.name} is not the original")
    expect(not missing, f"{len(missing)} tensors are missing, {next(iter(missing), '')} among them")
    printer.print_details(f"safetensors: {len(original)} tensors, all as the originals, bit for bit.")


def compare_model(
    directory: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, printer: StepPrinter
) -> None:
    """Has transformers load the folder, and demands the same parameters, tokens and logits."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype="auto", local_files_only=True).eval()
    ours = dict(loaded.named_parameters())
    for name, parameter in model.named_parameters():
        expect(torch.equal(ours[name], parameter), f"transformers: {name} is not the original")
    reader = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    text = "Model weights from object storage into a verified cache"
    tokens = reader(text, return_tensors="pt")["input_ids"]
    expect(tokens.tolist() == tokenizer(text, return_tensors="pt")["input_ids"].tolist(), "the tokens differ")
    with torch.inference_mode():
        expected, logits = model(tokens).logits, loaded(tokens).logits
    expect(torch.equal(expected, logits), "the logits differ")
    shape = " × ".join(map(str, logits.shape))
    printer.print_details(f"transformers: {len(ours)} parameters and the logits ({shape}) of a sentence, all equal.")


def tree(directory: Path) -> str:
    """Returns the files with their sizes."""
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    return "\n".join(f"{file.stat().st_size:>13,}  {file.relative_to(directory)}" for file in files)


def dtypes_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Returns how many tensors there are of each dtype."""
    names = [str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()]
    return ", ".join(f"{names.count(name)} {name}" for name in sorted(set(names)))


def megabytes(count: int) -> str:
    """Returns a size for people."""
    return f"{count / 1e6:.0f} MB"


def expect(condition: bool, what: str) -> None:  # noqa: FBT001  # as assert
    """Fails the demo unless the condition holds."""
    if not condition:
        raise DemoFailed(what)


def default_parent() -> str:
    """Returns where the temporary directory goes: shared memory where there is room, else the disk."""
    shared = Path("/dev/shm")
    with contextlib.suppress(OSError):
        if os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > MEMORY_NEEDED:
            return str(shared)
    return tempfile.gettempdir()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--small", action="store_true", help="a model of 40 MB instead of 460 MB")
    parser.add_argument("--directory", help="where the temporary directory goes; default: memory, if there is room")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")  # of torch and transformers; this is no test of theirs
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(143))
    with tempfile.TemporaryDirectory(
        prefix="tonnage-demo-", dir=arguments.directory or default_parent(), ignore_cleanup_errors=True
    ) as work:
        try:
            run_demo(Path(work), StepPrinter(), small=arguments.small)
        except DemoFailed as error:
            print(f"\nThe demo failed: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\nInterrupted; everything is removed.", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
