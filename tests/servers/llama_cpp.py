"""The real llama.cpp: its converters, from the source package of llama-cpp-python, and its server, from xllamacpp.

All of it runs in children that `serve_requests` forks from one process, which has done the slow imports: some inputs
make llama.cpp abort.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import runpy
import subprocess
import sys
import tarfile
import tempfile
import traceback
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoConfig

from commands import LineProcess
from packages import CACHE, NotAvailableError, downloaded

VERSION = "0.3.36"
SOURCES = f"llama_cpp_python-{VERSION}"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
_ENOUGH_FOR_ANY = 1000.0
"""A logit bias that decides which token is sampled; the reported probabilities are those without it."""


_FAMILIES = ("llama", "qwen", "mistral", "gemma", "phi", "gpt2")
_MODEL_TYPES = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "mixtral", "qwen3_moe", "gpt2")
_SLOW_IMPORTS = ("gguf", "xllamacpp", *(f"conversion.{family}" for family in _FAMILIES))


def converters() -> Path:
    """The folder of `convert_hf_to_gguf.py`; downloaded once into $DELTARANK_TEST_CACHE.

    Raises:
        NotAvailableError: there is no network, or xllamacpp is not installed.
    """
    if find_spec("xllamacpp") is None:
        raise NotAvailableError("xllamacpp is not installed (the extra `servers`)")
    folder = CACHE / SOURCES / "vendor" / "llama.cpp"
    if not folder.is_dir():
        package = "llama-cpp-python"
        _unpack(downloaded(f"{package}=={VERSION}", f"{SOURCES}.tar.gz", SHA256, "--no-binary", package))
    return folder


def _unpack(archive: Path) -> None:
    """Only what the converters need."""
    with tempfile.TemporaryDirectory(dir=CACHE) as staging, tarfile.open(archive) as file:
        wanted = ("/convert_", "/conversion/", "/gguf-py/")
        members = [each for each in file if any(f"/vendor/llama.cpp{part}" in each.name for part in wanted)]
        file.extractall(staging, members, filter="data")
        try:
            (Path(staging) / SOURCES).rename(CACHE / SOURCES)
        except OSError:
            if not (CACHE / SOURCES).is_dir():
                raise


@dataclass(frozen=True)
class Answer:
    """What became of a request: its value; or the last lines of its log, with `aborted` if the process died."""

    value: Any
    log: str
    failed: bool
    aborted: bool


class LlamaCpp:
    """One process with llama.cpp, for many models and adapters."""

    def __init__(self, folder: Path) -> None:
        program = f"import llama_cpp; llama_cpp.serve_requests({str(converters())!r}, {str(folder)!r})"
        here = Path(__file__).parent
        path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self._process = LineProcess(program, environment, stderr=subprocess.DEVNULL)

    def __enter__(self) -> Self:
        self._process.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._process.__exit__(*error)

    def run_converter(self, script: str, words: Sequence[str], folder: Path) -> Answer:
        """One of the converters, with the words of a command that is given in `folder`."""
        return self._ask("convert", [str(folder), script, *words])

    def convert_model(self, model: Path, to: Path) -> Answer:
        """A GGUF file in float32."""
        words = ("--outtype", "f32", "--outfile", str(to), str(model))
        return self.run_converter("convert_hf_to_gguf.py", words, to.parent)

    def convert_adapter(self, adapter: Path, base: Path, to: Path) -> Answer:
        words = ("--base", str(base), "--outfile", str(to), str(adapter))
        return self.run_converter("convert_lora_to_gguf.py", words, to.parent)

    def run_server(self, words: Sequence[str], folder: Path, prompts: Sequence[list[int]], vocabulary: int) -> Answer:
        """`llama-server` with the words of a command that is given in `folder`: -m, and perhaps --lora."""
        parser = argparse.ArgumentParser(exit_on_error=False)
        parser.add_argument("-m", required=True)
        parser.add_argument("--lora")
        given = parser.parse_args(words)
        adapter = folder / given.lora if given.lora else None
        return self.log_probabilities(folder / given.m, prompts, vocabulary, adapter)

    def log_probabilities(
        self, model: Path, prompts: Sequence[list[int]], vocabulary: int, adapter: Path | None = None
    ) -> Answer:
        """The value is (prompts, tokens), of a GGUF model with a GGUF adapter."""
        answer = self._ask("predict", [str(model), list(prompts), vocabulary, str(adapter) if adapter else None])
        if answer.failed:
            return answer
        return Answer(torch.tensor(answer.value, dtype=torch.float64), "", False, False)

    def _ask(self, what: str, words: list[Any]) -> Answer:
        return Answer(**self._process.request([what, words]))


def differ_by(one: Tensor, other: Tensor) -> float:
    """The largest difference of two sets of log-probabilities."""
    return float((one - other).abs().max())


def serve_requests(sources: str, folder: str) -> None:
    """Answers lines of JSON, each in a child of its own, until there are no more."""
    sys.path[:0] = [sources, f"{sources}/gguf-py"]
    for module in _SLOW_IMPORTS:
        importlib.import_module(module)
    conversion = importlib.import_module("conversion")
    for config in map(AutoConfig.for_model, _MODEL_TYPES):
        assert config.model_type  # transformers imports a family when it is first asked for
    meta = torch.empty(2, 2, device="meta", dtype=torch.float32)
    torch.stack([meta + 1, meta])  # and torch imports what it needs for tensors without data
    torch.set_num_threads(1)
    _accept_any_tokenizer(conversion)
    tasks: dict[str, Callable[..., Any]] = {"convert": lambda *words: _convert(sources, *words), "predict": _predict}
    for line in sys.stdin:
        what, words = json.loads(line)
        print(
            "@" + json.dumps(_in_a_child(lambda what=what, words=words: tasks[what](*words), Path(folder))), flush=True
        )


def _accept_any_tokenizer(conversion: Any) -> None:
    """The converter knows tokenizers by a hash. Those of the tests are byte-level BPE, as GPT-2's is."""
    original, known = conversion.get_model_class, conversion.base.TextModel.get_vocab_base_pre

    def known_or_plain(self: Any, tokens: Any) -> Any:
        try:
            return known(self, tokens)
        except NotImplementedError:
            return "gpt-2"

    conversion.base.TextModel.get_vocab_base_pre = known_or_plain

    def with_simple_vocabulary(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        methods = {"model_arch": found.model_arch, "set_vocab": lambda self: self._set_vocab_gpt2()}
        return type(found.__name__, (found,), methods)

    conversion.get_model_class = with_simple_vocabulary


def _in_a_child(task: Callable[[], Any], folder: Path) -> dict[str, Any]:
    result, log = folder / "result.json", folder / "log.txt"
    result.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        _run_and_exit(task, result, log)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = log.read_text(errors="replace")
    value = json.loads(result.read_text()) if code == 0 else None
    return {"value": value, "log": text[-4000:], "failed": code != 0, "aborted": code < 0}


def _run_and_exit(task: Callable[[], Any], result: Path, log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code = 1
    try:
        result.write_text(json.dumps(task()))
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _convert(sources: str, folder: str, script: str, *words: str) -> None:
    """Runs one of the converters as a command would."""
    os.chdir(folder)
    sys.argv = [f"{sources}/{script}", *words]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _predict(model: str, prompts: list[list[int]], vocabulary: int, adapter: str | None) -> list[list[float]]:
    """Starts the server on a free port and asks for the next token of each prompt."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = model
    settings.n_ctx, settings.n_parallel, settings.n_gpu_layers = 256, 1, 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.warmup = settings.fit_params = False
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.hostnames, settings.port = ["127.0.0.1"], _free_port()
    if adapter:
        settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
    server = xllamacpp.Server(settings)
    return [_ask_server(server.listening_address, prompt, vocabulary) for prompt in prompts]


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ask_server(address: str, prompt: list[int], vocabulary: int) -> list[float]:
    # Without an ASCII token forced, the answer has no probabilities where the sampled token is no whole UTF-8.
    body = {"prompt": prompt, "n_predict": 1, "n_probs": vocabulary, "temperature": 0, "cache_prompt": False}
    body["logit_bias"] = [[36, _ENOUGH_FOR_ANY]]
    request = urllib.request.Request(
        f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found = json.loads(answer.read())["completion_probabilities"][0]["top_logprobs"]
    values = [math.nan] * vocabulary
    for token in found:
        values[token["id"]] = math.nan if token["logprob"] is None else token["logprob"]
    return values
