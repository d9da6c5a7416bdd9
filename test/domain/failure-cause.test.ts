/**
 * The causes of an engine's end, told apart by what a real llama-server (0.7.0, build 11669) wrote when it was
 * started with a missing, foreign, truncated and empty model file, wrong flags, a taken socket and too little
 * memory. The lines are copied from those runs; only the paths are shortened. What it says of graphics cards is copied from
 * reports to its project, each named where it stands.
 */
import { describe, expect, test } from "bun:test";
import {
  classifyExit,
  type ExitFacts,
  isHopeless,
  plainLogLine,
  waitsForChange,
} from "../../src/domain/failure-cause.ts";

const subject = {
  id: "chat",
  modelRef: "file:m.gguf",
  modelPath: "/models/m.gguf",
  engineBin: "/opt/llama-server",
  rpc: ["gpu-box:50052"],
};

const json = (level: string, msg: string): string => JSON.stringify({ type: "log", time: 29442, level, msg });
const error = (msg: string): string => json("error", `${msg}\n`);
const info = (msg: string): string => json("info", `${msg}\n`);

const loadFailureEnd = [
  error("srv    load_model: failed to load model, '/models/m.gguf'"),
  info("srv    operator(): operator(): cleaning up before exit..."),
  error("srv  llama_server: exiting due to model loading error"),
];
const loaderFailed =
  "llama_model_load: error loading model: llama_model_loader: failed to load model from m.gguf";

const missing = [
  info("srv    load_model: loading model '/models/m.gguf'"),
  error("gguf_init_from_file: failed to open GGUF file '/models/m.gguf' (No such file or directory)"),
  error(loaderFailed),
  error("llama_model_load_from_file_impl: failed to load model"),
  ...loadFailureEnd,
];
const forbidden = [
  error("gguf_init_from_file: failed to open GGUF file '/models/m.gguf' (Permission denied)"),
  error(loaderFailed),
  ...loadFailureEnd,
];
const foreign = [
  error("gguf_init_from_reader: invalid magic characters: 'hell', expected 'GGUF'"),
  error(loaderFailed),
  ...loadFailureEnd,
];
const empty = [error("gguf_init_from_reader: failed to read magic"), error(loaderFailed), ...loadFailureEnd];
const truncated = [
  error(
    "llama_model_load: error loading model: tensor 'blk.1.ffn_up.weight' data is not within the file bounds, model is corrupted or incomplete",
  ),
  error("llama_model_load_from_file_impl: failed to load model"),
  error(
    "common_fit_params: encountered an error while trying to fit params to free device memory: failed to load model",
  ),
  ...loadFailureEnd,
];
const unknownArchitecture = [
  error("llama_model_load: error loading model: unknown model architecture: 'frobnicator'"),
  ...loadFailureEnd,
];
const badFlag = ["error: invalid argument: --frobnicate"];
const badValue = [
  'error while handling argument "-c": stoi',
  "",
  "usage:",
  "-c,    --ctx-size N                     size of the prompt context (default: 0, 0 = loaded from model)",
  "to show complete usage, run with -h",
];
const kvTooBig = [
  error("ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 2560000000"),
  error("llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache"),
  error("srv    load_model: failed to create_context with model '/models/m.gguf'"),
  error("srv  llama_server: exiting due to model loading error"),
];
const badAlloc = [
  error("llama_init_from_model: failed to initialize the context: std::bad_alloc"),
  error("srv    load_model: failed to create_context with model '/models/m.gguf'"),
  error("srv  llama_server: exiting due to model loading error"),
];
const tooNew = [
  error(
    "gguf_init_from_reader: this GGUF file is version 99 but this software only supports up to version 3",
  ),
  error("gguf_init_from_reader: failed to read header"),
  error(loaderFailed),
  ...loadFailureEnd,
];
const cutHeader = [
  error("gguf_init_from_reader: failed to read key-value pairs"),
  error(loaderFailed),
  ...loadFailureEnd,
];
const noProjector = [
  error("gguf_init_from_file: failed to open GGUF file '/models/eye.gguf' (No such file or directory)"),
  error("clip_init: failed to load model '/models/eye.gguf': clip_model_loader: failed to load CLIP model"),
  error("srv    load_model: failed to load multimodal model, '/models/eye.gguf'"),
  error("srv  llama_server: exiting due to model loading error"),
];
const noAdapter = [
  error("llama_adapter_lora_init: failed to open '/models/style.gguf': No such file or directory"),
  error("cmn  common_init_: failed to load lora adapter '/models/style.gguf'"),
  error("srv    load_model: failed to create_context with model '/models/m.gguf'"),
];
const flagsTogether = [
  error("llama_init_from_model: quantized V cache requires flash_attn to be enabled"),
  error("common_fit_params: encountered an error while trying to fit params to free device memory"),
  error("srv    load_model: failed to create_context with model '/models/m.gguf'"),
];
/** `ulimit -v 100000`. */
const mmapFailed = [
  error("llama_model_load: error loading model: mmap failed: Cannot allocate memory"),
  ...loadFailureEnd,
];
/** `ulimit -v 150000`. */
const computeFailed = [
  error("ggml_aligned_malloc: insufficient memory (attempted to allocate  19.73 MB)"),
  error("graph_reserve: failed to allocate compute buffers"),
  error("llama_init_from_model: failed to initialize the context: failed to allocate compute pp buffers"),
  error("srv    load_model: failed to create_context with model '/models/m.gguf'"),
];
/** `ulimit -v 200000`: it aborts. */
const assertFailed = [
  error("ggml_aligned_malloc: insufficient memory (attempted to allocate  19.73 MB)"),
  "./src/ggml.c:1655: GGML_ASSERT(ctx->mem_buffer != NULL) failed",
];
/** `ulimit -v 40000`. */
const noThread = [
  "terminate called after throwing an instance of 'std::system_error'",
  "  what():  Resource temporarily unavailable",
];
/** Two rpc-servers that were asked for 114 GiB. */
const rpcFull = [
  json(
    "warn",
    "[ggml_backend_rpc_buffer_type_alloc_buffer] endpoint: 127.0.0.1:9250, device: 0, size: 114.44 GiB -> failed",
  ),
  error(
    "ggml_backend_buft_alloc_buffer_n_default: failed to allocate RPC0[127.0.0.1:9250] buffer of size 122880000000",
  ),
  error("llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache"),
];
const rpcGone = ["./src/ggml-rpc/ggml-rpc.cpp:650: Failed to connect to 127.0.0.1:1"];
/** ggml-org/llama.cpp issue 20431. */
const cudaModel = [
  error(
    "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 144817.04 MiB on device 0: cudaMalloc failed: out of memory",
  ),
  error("alloc_tensor_range: failed to allocate CUDA0 buffer of size 151851674624"),
  error("llama_model_load: error loading model: unable to allocate CUDA0 buffer"),
];
/** ggml-org/llama.cpp issue 16725: ROCm, by the source that it shares with CUDA. */
const rocm = [
  error(
    "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 14136.04 MiB on device 0: cudaMalloc failed: out of memory",
  ),
  error("ggml_gallocr_reserve_n: failed to allocate ROCm0 buffer of size 14822711296"),
  error("graph_reserve: failed to allocate compute buffers"),
  error("llama_init_from_model: failed to initialize the context: failed to allocate compute pp buffers"),
  error("srv    load_model: failed to load model, '/models/m.gguf'"),
];
/** ggml-org/llama.cpp issues 29270 and 5441. */
const vulkan = [
  "ggml_vulkan: Device memory allocation of size 369827840 failed.",
  "ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
  "llama_model_load: error loading model: vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
];
/** ggml-org/llama.cpp pull request 26297: it went on without pipeline parallelism, and something else ended it. */
const recovered = [
  error(
    "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 51748.72 MiB on device 1: cudaMalloc failed: out of memory",
  ),
  json("warn", "sched_reserve: compute buffer allocation failed, retrying without pipeline parallelism"),
];
const cuda = [
  "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 24000.00 MiB on device 0: cudaMalloc failed: out of memory",
  "llama_model_load: error loading model: unable to allocate CUDA0 buffer",
  "llama_model_load_from_file_impl: failed to load model",
];
const taken = [
  error("srv         start: couldn't bind HTTP server socket, hostname: /run/x/chat-0.sock, port: 9931"),
  info("srv    operator(): operator(): cleaning up before exit..."),
  error("srv  llama_server: exiting due to HTTP server error"),
];
const loaded = [
  info("srv  llama_server: model loaded"),
  info("srv  llama_server: listening on unix:///run/x/chat-0.sock"),
];

const exit = (more: Partial<ExitFacts>): ExitFacts => ({
  code: 1,
  signal: null,
  logTail: [],
  phase: "load",
  reason: null,
  atMs: 5,
  ...more,
});

describe("while it loads", () => {
  const cases: [string, readonly string[], string, RegExp, boolean][] = [
    [
      "a missing file",
      missing,
      "model_missing",
      /m\.gguf does not exist: correct "model" of pool chat/,
      true,
    ],
    ["an unreadable file", forbidden, "model_missing", /cannot be opened \(Permission denied\)/, true],
    [
      "a foreign file",
      foreign,
      "model_corrupt",
      /no complete GGUF file.*invalid magic.*fetch it again/,
      true,
    ],
    ["an empty file", empty, "model_corrupt", /failed to read magic/, true],
    ["a truncated file", truncated, "model_corrupt", /not within the file bounds/, true],
    ["an unknown architecture", unknownArchitecture, "model_corrupt", /unknown model architecture/, true],
    ["an unknown flag", badFlag, "bad_flag", /flag --frobnicate: correct "args" of pool chat/, true],
    ["a wrong value", badValue, "bad_flag", /value of -c \(stoi\).*correct "args"/, true],
    [
      "a build without RPC",
      ['error while handling argument "--rpc": RPC not supported in this build'],
      "bad_flag",
      /RPC not supported in this build\): correct "rpc" of pool chat/,
      true,
    ],
    ["a file of a later format", tooNew, "model_corrupt", /too new \(.*version 99.*take a newer build/, true],
    [
      "a file cut in its header",
      cutHeader,
      "model_corrupt",
      /failed to read key-value pairs.*fetch it/,
      true,
    ],
    [
      "a missing projector",
      noProjector,
      "model_missing",
      /the file \/models\/eye\.gguf does not exist: correct "args" of pool chat/,
      true,
    ],
    [
      "a missing adapter",
      noAdapter,
      "model_missing",
      /file \/models\/style\.gguf does not exist.*"args"/,
      true,
    ],
    [
      "flags that exclude each other",
      flagsTogether,
      "bad_flag",
      /quantized V cache requires.*correct "args"/,
      true,
    ],
    [
      "a device that it has not",
      ['error while handling argument "--device": invalid device: CUDA0'],
      "device_failed",
      /no device CUDA0: correct "devices".*\/opt\/llama-server --list-devices/,
      false,
    ],
    [
      "a card that its driver does not run",
      // ggml-org/llama.cpp issues, with a card that the build has no code for.
      ["ROCm error: invalid device function", "  current device: 0, in function ggml_cuda_compute_forward"],
      "device_failed",
      /ROCm error: invalid device function\): see to the card and its driver/,
      false,
    ],
    [
      "a missing file, with a build for cards on a machine without one",
      ["ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected", ...missing],
      "model_missing",
      /m\.gguf does not exist/,
      true,
    ],
    ["a cache too big", kvTooBig, "out_of_host_memory", /the machine ran.*lower "ctx" or "slots"/, false],
    ["bad_alloc", badAlloc, "out_of_host_memory", /std::bad_alloc/, false],
    ["a file that cannot be mapped", mmapFailed, "out_of_host_memory", /mmap failed: Cannot allocate/, false],
    ["compute buffers too big", computeFailed, "out_of_host_memory", /quantized model, or raise/, false],
    ["no thread to be had", noThread, "crashed", /could not start a thread.*ulimit -u/, false],
    ["a full GPU", cuda, "out_of_gpu_memory", /unable to allocate CUDA0 buffer/, false],
    [
      "a model too big for CUDA",
      cudaModel,
      "out_of_gpu_memory",
      /a graphics card ran.*-ngl.*smaller model/,
      false,
    ],
    ["a model too big for ROCm", rocm, "out_of_gpu_memory", /fewer bits \(args.*-ctk/, false],
    ["a model too big for Vulkan", vulkan, "out_of_gpu_memory", /ErrorOutOfDeviceMemory/, false],
    ["a model too big for rpc-servers", rpcFull, "out_of_gpu_memory", /RPC0\[127\.0\.0\.1:9250\]/, false],
    [
      "an rpc-server that is not there",
      rpcGone,
      "unreachable",
      /rpc-server 127\.0\.0\.1:1 .*correct "rpc"/,
      false,
    ],
    [
      "a pinned buffer that it did without",
      [
        error("ggml_cuda_host_malloc: failed to allocate 1900.00 MiB of pinned memory: out of memory"),
        ...taken,
      ],
      "bind_failed",
      /cannot listen/,
      false,
    ],
    [
      "pages that it could not lock",
      [
        "warning: failed to mlock 4294967296-byte buffer (after previously locking 0 bytes): Cannot allocate memory",
        ...unknownArchitecture,
      ],
      "model_corrupt",
      /unknown model architecture/,
      true,
    ],
    ["a shortage that it got over", [...recovered, ...taken], "bind_failed", /cannot listen/, false],
    [
      "a disk that does not read",
      [error("gguf_init_from_file: failed to open GGUF file '/models/m.gguf' (Input/output error)")],
      "crashed",
      /Input\/output error\): see to the disk/,
      false,
    ],
    [
      "a library that is not there",
      [
        "/opt/llama-server: error while loading shared libraries: libcudart.so.12: cannot open shared object file",
      ],
      "spawn_failed",
      /libcudart\.so\.12.*install what it needs/,
      true,
    ],
    ["a taken socket", taken, "bind_failed", /cannot listen on \/run\/x\/chat-0\.sock/, false],
    ["no known text", [info("something odd")], "crashed", /exit code 1 .*last line: something odd/, false],
    ["silence", [], "crashed", /exit code 1 before it was ready; it logged nothing/, false],
  ];
  for (const [name, logTail, cause, message, hopeless] of cases) {
    test(`${name} is ${cause}`, () => {
      const failure = classifyExit(exit({ logTail }), subject);
      expect(failure.cause).toBe(cause as typeof failure.cause);
      expect(failure.message).toMatch(message);
      expect(isHopeless(failure)).toBe(hopeless);
      expect(failure).toMatchObject({ exitCode: 1, signal: null, atMs: 5 });
    });
  }

  test("plain lines tell the same as JSON lines", () => {
    for (const lines of [missing, foreign, truncated, kvTooBig, taken]) {
      const plain = classifyExit(
        exit({ logTail: lines.map((line) => `0.00.029 E ${plainLogLine(line)}`) }),
        subject,
      );
      expect(plain.cause).toBe(classifyExit(exit({ logTail: lines }), subject).cause);
    }
  });

  test("a program that is not there", () => {
    const logTail = ["setpriv: failed to execute /opt/llama-server: No such file or directory"];
    const failure = classifyExit(exit({ code: 127, logTail }), subject);
    expect(failure.cause).toBe("spawn_failed");
    expect(failure.message).toContain("correct --engine-bin");
    expect(isHopeless(failure)).toBe(true);
  });

  test("a start that the kernel refused for now is tried again", () => {
    expect(isHopeless({ cause: "spawn_failed", message: "cannot start x: EAGAIN (EAGAIN)" })).toBe(false);
  });
});

describe("while it serves", () => {
  const cases: [string, Partial<ExitFacts>, string, RegExp][] = [
    ["a kill from outside", { code: null, signal: "SIGKILL" }, "crashed", /memory runs out \(see dmesg\)/],
    [
      "a segmentation fault",
      { code: null, signal: "SIGSEGV" },
      "crashed",
      /ended by SIGSEGV while it was serving \(a fault of its own/,
    ],
    ["a polite signal from outside", { code: null, signal: "SIGTERM" }, "exited", /ended by SIGTERM/],
    ["its own decision", { code: 0 }, "exited", /ended by itself/],
    [
      "an abort for memory of the card",
      { code: null, signal: "SIGABRT", logTail: cuda },
      "out_of_gpu_memory",
      /out of memory/,
    ],
    [
      "an abort in the middle of a decode",
      {
        code: null,
        signal: "SIGABRT",
        // ggml-cuda's ggml_cuda_error, as issues quote it.
        logTail: [
          "CUDA error: out of memory",
          "  current device: 0, in function alloc at ggml/src/ggml-cuda/ggml-cuda.cu:434",
          "  cuMemCreate(&handle, reserve_size, &prop, 0)",
        ],
      },
      "out_of_gpu_memory",
      /CUDA error: out of memory/,
    ],
    [
      "an abort for the machine's memory",
      { code: null, signal: "SIGABRT", logTail: assertFailed },
      "out_of_host_memory",
      /insufficient memory/,
    ],
    [
      "a kill by the kernel for memory",
      { code: null, signal: "SIGKILL", memoryKill: true },
      "out_of_host_memory",
      /the kernel ended the engine.*lower "ctx"/,
    ],
    [
      "a kill that the kernel did not do",
      { code: null, signal: "SIGKILL", memoryKill: false },
      "crashed",
      /not by the kernel.*systemd-oomd/,
    ],
    [
      "an instruction that the processor lacks",
      { code: null, signal: "SIGILL" },
      "crashed",
      /take another build/,
    ],
    [
      "an rpc-server that died",
      {
        code: null,
        signal: "SIGABRT",
        logTail: [
          "./src/ggml-rpc/ggml-rpc.cpp:685: Remote RPC server crashed or returned malformed response",
        ],
      },
      "unreachable",
      /rpc-server of pool chat \(gpu-box:50052\) went away/,
    ],
    ["a page that is gone", { code: null, signal: "SIGBUS" }, "crashed", /the model file is whole/],
  ];
  for (const [name, facts, cause, message] of cases) {
    test(`${name} is ${cause}`, () => {
      const failure = classifyExit(exit({ phase: "serve", logTail: loaded, ...facts }), subject);
      expect(failure.cause).toBe(cause as typeof failure.cause);
      expect(failure.message).toMatch(message);
    });
  }

  test("an old line about memory does not explain a later crash", () => {
    const logTail = [...kvTooBig, ...Array.from({ length: 40 }, (_, at) => info(`slot ${at} released`))];
    const facts = exit({ phase: "serve", code: null, signal: "SIGSEGV", logTail });
    expect(classifyExit(facts, subject).cause).toBe("crashed");
  });

  test("an engine inside the daemon tells its own reason", () => {
    const facts = exit({ phase: "serve", code: null, reason: "scripted crash" });
    expect(classifyExit(facts, subject)).toMatchObject({
      cause: "crashed",
      message: "the engine ended: scripted crash",
    });
  });

  test("a server elsewhere tells its cause as well; only a refusal is there for somebody to mend", () => {
    for (const [cause, hopeless] of [
      ["refused", true],
      ["unreachable", false],
    ] as const) {
      const reason = { cause, message: "the server of pool chat does not" };
      const failure = classifyExit(exit({ phase: "load", code: null, reason }), subject);
      expect(failure).toMatchObject(reason);
      expect(isHopeless(failure)).toBe(hopeless);
      // A server elsewhere has to be asked: nothing here shows that it would take us now.
      expect(waitsForChange(failure)).toBe(false);
    }
  });
});

test("what waits for a change is what a change of files, program or flags can mend", () => {
  for (const cause of ["model_missing", "model_corrupt", "bad_flag"] as const)
    expect(waitsForChange({ cause, message: "" })).toBe(true);
  for (const cause of [
    "out_of_gpu_memory",
    "out_of_host_memory",
    "device_failed",
    "crashed",
    "wedged",
  ] as const)
    expect(waitsForChange({ cause, message: "" })).toBe(false);
  expect(waitsForChange({ cause: "spawn_failed", message: "cannot start x: ENOENT (ENOENT)" })).toBe(true);
  expect(waitsForChange({ cause: "spawn_failed", message: "cannot start x: EAGAIN (EAGAIN)" })).toBe(false);
});

test("the kept lines are few, plain and the last ones", () => {
  const logTail = Array.from({ length: 500 }, (_, at) => info(`line ${at}`));
  const failure = classifyExit(exit({ logTail }), subject);
  expect(failure.logTail.length).toBeLessThanOrEqual(20);
  expect(failure.logTail.at(-1)).toBe("line 499");
});

test("a line cut in the middle of its JSON is shown as it is", () => {
  expect(plainLogLine('{"type":"log","msg":"half')).toBe('{"type":"log","msg":"half');
  expect(plainLogLine('{"type":"fit_memory_breakdown","data":{}}')).toBe(
    '{"type":"fit_memory_breakdown","data":{}}',
  );
});
