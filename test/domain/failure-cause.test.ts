/**
 * The causes of an engine's end, told apart by what a real llama-server (0.7.0, build 11669) wrote when it was
 * started with a missing, foreign, truncated and empty model file, wrong flags, a taken socket and too little
 * memory. The lines are copied from those runs; only the paths are shortened.
 */
import { describe, expect, test } from "bun:test";
import { classifyExit, type ExitFacts, isHopeless, plainLogLine } from "../../src/domain/failure-cause.ts";

const subject = {
  id: "chat",
  modelRef: "file:m.gguf",
  modelPath: "/models/m.gguf",
  engineBin: "/opt/llama-server",
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
    ["a cache too big", kvTooBig, "out_of_memory", /failed to allocate.*lower "ctx" or "slots"/, false],
    ["bad_alloc", badAlloc, "out_of_memory", /std::bad_alloc/, false],
    ["a full GPU", cuda, "out_of_memory", /unable to allocate CUDA0 buffer/, false],
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
      /ended by SIGSEGV while it was serving/,
    ],
    ["a polite signal from outside", { code: null, signal: "SIGTERM" }, "exited", /ended by SIGTERM/],
    ["its own decision", { code: 0 }, "exited", /ended by itself/],
    [
      "an abort for memory",
      { code: null, signal: "SIGABRT", logTail: cuda },
      "out_of_memory",
      /out of memory/,
    ],
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
    }
  });
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
