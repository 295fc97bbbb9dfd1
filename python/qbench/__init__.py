"""qbench from Python: what a quantisation scheme costs a language model (docs/api.md).

    import qbench
    model = qbench.Model("model.bin")
    record = qbench.evaluate(model, "coarse", text="...")
    print(record["quality"]["penalty"])
    logits = qbench.logits(model, [[1, 2, 3]], scheme="coarse")      # (B, T, V)

A thin layer over libqbench by ctypes; the numbers are the program's. The library is the one in this
package, else $QBENCH_LIBRARY's, else the system's. Standard library only; with numpy logits are an array."""
import ctypes
import json
import os
import pathlib
import threading

try:
    import numpy
except ImportError:
    numpy = None

API_VERSION = 1


class Error(RuntimeError):
    """The program's message; status is its exit code (2 usage, 3 bad input, 4 device or memory)."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


def _load():
    own = pathlib.Path(__file__).with_name("libqbench.so.0")
    lib = ctypes.CDLL(os.environ.get("QBENCH_LIBRARY") or (str(own) if own.exists() else own.name))
    text, size, pointer = ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p
    words, ids = ctypes.POINTER(text), ctypes.POINTER(ctypes.c_int32)
    out = ctypes.POINTER(pointer)
    for name, result, *arguments in (
            ("api_version", ctypes.c_int), ("version", text), ("error", text),
            ("scheme_name", text, size), ("model_open", ctypes.c_int, text, out),
            ("model_close", None, pointer), ("model_name", text, pointer),
            ("model_vocab", size, pointer), ("model_context", size, pointer),
            ("tokenize", ctypes.c_int, pointer, text, size, ctypes.POINTER(ids),
             ctypes.POINTER(size)),
            ("evaluate_text", ctypes.c_int, pointer, text, text, size, words, out),
            ("evaluate_tokens", ctypes.c_int, pointer, text, ids, size, words, out),
            ("logits", ctypes.c_int, pointer, text, ids, size, size, words,
             ctypes.POINTER(ctypes.c_float)),
            ("interrupt", None, ctypes.c_int), ("free", None, pointer)):
        function = getattr(lib, "qbench_" + name)
        function.restype, function.argtypes = result, arguments
    if lib.qbench_api_version() != API_VERSION:
        raise ImportError(f"libqbench: found interface {lib.qbench_api_version()}, "
                          f"expected {API_VERSION}")
    return lib


_lib = _load()
__version__ = _lib.qbench_version().decode().split()[0]


def _call(function, *arguments):
    """On a thread of its own, so that Ctrl-C ends it: the call knows nothing of Python's signals."""
    result, ended = [], threading.Event()  # Thread.join gives up for good when interrupted

    def work():
        status = function(*arguments)
        result.extend((status, _lib.qbench_error().decode("utf-8", "replace")))
        ended.set()

    threading.Thread(target=work, daemon=True).start()
    try:
        ended.wait()
    except BaseException:
        _lib.qbench_interrupt(1)
        ended.wait()
        _lib.qbench_interrupt(0)
        raise
    status, message = result
    if status:
        raise Error(status, message)


def _words(options):
    """max_tokens=99, quantize_head=True -> --max-tokens 99 --quantize-head, as a NULL-ended array."""
    words = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        words.append(b"--" + name.replace("_", "-").encode())
        if value is not True:
            words.append(str(value).encode())
    return (ctypes.c_char_p * (len(words) + 1))(*words, None)


def _ids(tokens):
    """int32 ids as ctypes has them; they live as long as the result."""
    if numpy is not None:
        array = numpy.ascontiguousarray(tokens, dtype=numpy.int32).reshape(-1)
        return (ctypes.c_int32 * array.size).from_buffer_copy(array) if array.size else \
            (ctypes.c_int32 * 0)()
    flat = list(tokens)
    if flat and hasattr(flat[0], "__iter__"):
        flat = [token for row in flat for token in row]
    return (ctypes.c_int32 * len(flat))(*flat)


class Model:
    """model.bin, GGUF, safetensors, a Hugging Face folder or llm.c .bin; close() or `with` frees it."""

    def __init__(self, path):
        self._handle = ctypes.c_void_p()
        _call(_lib.qbench_model_open, os.fsencode(path), ctypes.byref(self._handle))

    def _use(self):
        if not self._handle:
            raise ValueError("the model is closed")
        return self._handle

    def close(self):
        if self._handle:
            _lib.qbench_model_close(self._handle)
            self._handle = ctypes.c_void_p()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __del__(self):
        if getattr(self, "_handle", None):
            self.close()

    @property
    def name(self):
        return _lib.qbench_model_name(self._use()).decode("utf-8", "replace")

    @property
    def vocab(self):
        return _lib.qbench_model_vocab(self._use())

    @property
    def context(self):
        return _lib.qbench_model_context(self._use())

    def tokenize(self, text):
        data = text.encode() if isinstance(text, str) else text
        ids, n = ctypes.POINTER(ctypes.c_int32)(), ctypes.c_size_t()
        _call(_lib.qbench_tokenize, self._use(), data, len(data), ctypes.byref(ids),
              ctypes.byref(n))
        try:
            return ids[:n.value]
        finally:
            _lib.qbench_free(ids)


def schemes():
    """Names that evaluate and logits take."""
    names, i = [], 0
    while (name := _lib.qbench_scheme_name(i)) is not None:
        names.append(name.decode())
        i += 1
    return names


def evaluate(model, scheme="coarse", tokens=None, text=None, speed=False, **options):
    """The record of `qbench run --json` (docs/result.schema.json) as a dict; of several schemes
    ("fine,coarse", "all", a list) a list of them. On tokens (a flat list of ids), a text (str or
    bytes), or the built-in text. Options are those of the program: max_tokens=4096,
    no_fake=True, device="cpu"."""
    if tokens is not None and text is not None:
        raise TypeError("tokens and text: found both, expected one at most")
    if not speed:
        options = {"no_speed": True, **options}
    names = scheme if isinstance(scheme, str) else ",".join(scheme)
    document = ctypes.c_void_p()
    rest = (_words(options), ctypes.byref(document))
    if tokens is not None:
        ids = _ids(tokens)
        _call(_lib.qbench_evaluate_tokens, model._use(), names.encode(), ids, len(ids), *rest)
    else:
        data = text.encode() if isinstance(text, str) else text
        _call(_lib.qbench_evaluate_text, model._use(), names.encode(), data, len(data or b""),
              *rest)
    try:
        records = json.loads(ctypes.string_at(document))["results"]
    finally:
        _lib.qbench_free(document)
    several = not isinstance(scheme, str) or "," in scheme or scheme == "all"
    return records if several else records[0]


def logits(model, tokens, scheme=None, **options):
    """(B, T, V) float32 of tokens (B, T), all of it one batch: a numpy array, or without numpy a
    memoryview of that shape. A flat list of ids is one row. Options as `qbench logits` has them."""
    batch = tokens.tolist() if hasattr(tokens, "tolist") else [*tokens]
    if batch and not hasattr(batch[0], "__len__"):
        batch = [batch]
    if not batch or len({len(row) for row in batch}) != 1:
        raise ValueError("tokens: expected (B, T), rows of equal length")
    shape = [len(batch), len(batch[0]), model.vocab]
    out = (ctypes.c_float * (shape[0] * shape[1] * shape[2]))()
    _call(_lib.qbench_logits, model._use(), scheme.encode() if scheme else None, _ids(batch),
          shape[0], shape[1], _words(options), out)
    if numpy is not None:
        return numpy.frombuffer(out, dtype=numpy.float32).reshape(shape)
    return memoryview(out).cast("B").cast("f", shape)
