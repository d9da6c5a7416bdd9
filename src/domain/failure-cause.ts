/**
 * Why an engine process ended, from what is left of it: exit code, signal, the last log lines and how far it
 * had come. Pure; the replica machine calls it. Every message says what to do next.
 *
 * The texts are those of llama-server 0.7.0 (build 11669), seen with a missing, foreign and truncated model
 * file, a wrong flag, a taken socket and too little memory; each of them ends with exit code 1, so only the
 * text tells them apart. Its log comes as JSON lines (`--log-jsonl`) or as plain text. What it says of graphics
 * cards is taken from its sources and from reports.
 */
import { memoryAdvice, memoryFailure } from "./failure-memory.ts";
import type { PoolSpec, ReplicaFailure } from "./pool.ts";

export type FailureCause = ReplicaFailure["cause"];

/** What a message needs to name the thing to correct. */
export type FailureSubject = Pick<PoolSpec, "id" | "modelRef" | "modelPath" | "engineBin" | "rpc">;

export interface ExitFacts {
  readonly code: number | null;
  readonly signal: string | null;
  /** Whether the kernel ended it because memory ran out; null or absent: nobody can tell. */
  readonly memoryKill?: boolean | null;
  /** The last lines as the engine wrote them. */
  readonly logTail: readonly string[];
  /** load: it never became ready; serve: it was ready. */
  readonly phase: "load" | "serve";
  /** What an engine without a process of its own said of its end, with the cause where it told; null for a process. */
  readonly reason: string | Pick<ReplicaFailure, "cause" | "message"> | null;
  readonly atMs: number;
}

/** Lines kept in a failure: enough to see the cause, small enough for an API answer. */
const failureLogLines = 20;
/** A line this far from the end no longer explains the exit of an engine that was serving. */
const serveTailLines = 30;

/** The text of one log line without its JSON wrapping. */
export function plainLogLine(line: string): string {
  if (!line.startsWith("{")) return line.trimEnd();
  try {
    const parsed: unknown = JSON.parse(line);
    if (typeof parsed === "object" && parsed !== null && "msg" in parsed && typeof parsed.msg === "string") {
      return parsed.msg.trimEnd();
    }
  } catch (error) {
    // Cut at limits.engineLogLineCharsMax, or a plain line that happens to start with a brace: shown as it is.
    if (!(error instanceof SyntaxError)) throw error;
  }
  return line;
}

/** A cause that the same start would meet again: waiting a little does not help, somebody has to act. */
export function isHopeless(failure: Pick<ReplicaFailure, "cause" | "message">): boolean {
  switch (failure.cause) {
    case "model_missing":
    case "model_corrupt":
    case "bad_flag":
    case "refused":
      return true;
    case "spawn_failed":
      return !/\b(EAGAIN|ENOMEM|EMFILE|ENFILE|ETXTBSY)\b/.test(failure.message);
    default:
      return false;
  }
}

/**
 * Hopeless, and what has to change lies here, where it is seen: a file, the engine's program, what the catalog says. What
 * a server elsewhere refuses, only asking again can tell.
 */
export function waitsForChange(failure: Pick<ReplicaFailure, "cause" | "message">): boolean {
  return failure.cause !== "refused" && isHopeless(failure);
}

export function failureOf(
  cause: FailureCause,
  message: string,
  atMs: number,
  more: { code?: number | null; signal?: string | null; logTail?: readonly string[] } = {},
): ReplicaFailure {
  return {
    cause,
    message,
    exitCode: more.code ?? null,
    signal: more.signal ?? null,
    logTail: (more.logTail ?? []).slice(-failureLogLines).map(plainLogLine),
    atMs,
  };
}

/** Of an engine that a watchdog found; `why`: what the watchdog saw. */
export function wedgedMessage(why: string, { id }: FailureSubject): string {
  return (
    `the engine was alive and did nothing, and was killed (${why}): where it is only slow, raise "timeouts.first_token_ms" ` +
    `and "timeouts.inter_token_ms" of pool ${id}; where it hangs again, take another build or fewer of its options`
  );
}

export function classifyExit(facts: ExitFacts, subject: FailureSubject): ReplicaFailure {
  const [cause, message] = causeOf(facts, subject);
  return failureOf(cause, message, facts.atMs, facts);
}

type Verdict = readonly [FailureCause, string];

function causeOf(facts: ExitFacts, subject: FailureSubject): Verdict {
  const model = subject.modelPath ?? subject.modelRef;
  const setting = `"model" of pool ${subject.id}`;
  if (typeof facts.reason === "object" && facts.reason !== null)
    return [facts.reason.cause, facts.reason.message];
  if (facts.reason !== null) return ["crashed", `the engine ended: ${facts.reason}`];
  if (facts.phase === "serve") {
    const lines = facts.logTail.slice(-serveTailLines).map(plainLogLine);
    return (
      outOfMemory(lines, subject, facts) ??
      serversGone(lines, subject) ??
      endOf(facts, lines, "while it was serving")
    );
  }
  const lines = facts.logTail.map(plainLogLine);
  return (
    notStarted(facts, lines, subject) ??
    deviceUnknown(lines, subject) ??
    badFlag(lines, subject) ??
    bindFailed(lines) ??
    fileUnreadable(lines, model, setting) ??
    fileDamaged(lines, model, setting) ??
    outOfMemory(lines, subject, facts) ??
    serversGone(lines, subject) ??
    modelRefused(lines, model, setting) ??
    driverFailed(lines, subject) ??
    endOf(facts, lines, "before it was ready")
  );
}

/** `setpriv`, `env` and shells answer 127 or 126 for a program that is not there; the loader tells of libraries. */
function notStarted(facts: ExitFacts, lines: readonly string[], subject: FailureSubject): Verdict | null {
  const program = subject.engineBin ?? "of the pool";
  const library = lastMatch(lines, /error while loading shared libraries: .+|version `[^']+' not found.*/);
  if (library !== null) {
    return [
      "spawn_failed",
      `the engine program ${program} cannot be started (${library[0]}): install what it needs or take another build`,
    ];
  }
  const said = lastMatch(
    lines,
    /(?:failed to execute|not found|No such file or directory|Permission denied)/,
  );
  if ((facts.code !== 127 && facts.code !== 126) || said === null) return null;
  return [
    "spawn_failed",
    `the engine program ${program} cannot be started (${said.input}): install it or correct --engine-bin`,
  ];
}

/** A card that is not there now may come with its driver: this is tried again. */
function deviceUnknown(lines: readonly string[], subject: FailureSubject): Verdict | null {
  const unknown = lastMatch(lines, /^error while handling argument "[^"]+": invalid device: (.+)$/);
  if (unknown === null) return null;
  return [
    "device_failed",
    `the engine has no device ${unknown[1]}: correct "devices" or "args" of pool ${subject.id} by what ${subject.engineBin ?? "the engine"} --list-devices shows, or see to the card's driver`,
  ];
}

/**
 * What ends an engine. That it found no card at all is none of these: a build for cards says so on every machine without
 * one, and goes on with the processor.
 */
function driverFailed(lines: readonly string[], subject: FailureSubject): Verdict | null {
  const driver = lastMatch(
    lines,
    /(?:CUDA|ROCm|MUSA) error: (?!out of memory).+|ErrorDeviceLost|ErrorInitializationFailed|ErrorIncompatibleDriver/,
  );
  if (driver === null) return null;
  return [
    "device_failed",
    `the engine cannot use its graphics card (${driver.input}): see to the card and its driver, or correct "devices" of pool ${subject.id}`,
  ];
}

function badFlag(lines: readonly string[], subject: FailureSubject): Verdict | null {
  const unknown = lastMatch(lines, /^error: (?:invalid|unknown) argument: (.+)$/);
  if (unknown !== null) {
    return [
      "bad_flag",
      `the engine does not know the flag ${unknown[1]}: correct "args" of pool ${subject.id}`,
    ];
  }
  const value = lastMatch(lines, /^error while handling argument "([^"]+)": (.*)$/);
  if (value !== null) {
    // The one of our own flags that depends on how the engine was built.
    const setting = value[1] === "--rpc" ? "rpc" : "args";
    return [
      "bad_flag",
      `the engine refuses the value of ${value[1]} (${value[2]}): correct "${setting}" of pool ${subject.id}`,
    ];
  }
  // Flags that are fine one by one and not together.
  const together = lastMatch(
    lines,
    /llama_init_from_model: (?!failed to initialize)(.*\b(?:requires?|not supported|cannot|must)\b.*)$/,
  );
  if (together === null) return null;
  return ["bad_flag", `the engine refuses its flags (${together[1]}): correct "args" of pool ${subject.id}`];
}

/** Files beside the model that "args" name: a projector, adapters, a draft model. */
const besideModel = /failed to load (?:multimodal model|lora adapter|control vector|draft model),? '([^']+)'/;

/** The file and the setting that names it: the model's own, unless the engine says that it was another one. */
function guilty(lines: readonly string[], opened: string | undefined, model: string, setting: string) {
  const beside = lastMatch(lines, besideModel)?.[1];
  if (beside !== undefined) return { file: `file ${beside}`, setting: setting.replace("model", "args") };
  return { file: `model file ${opened ?? model}`, setting };
}

function fileUnreadable(lines: readonly string[], model: string, setting: string): Verdict | null {
  const open =
    lastMatch(lines, /failed to open GGUF file '(.*)' \((.+)\)/) ??
    lastMatch(lines, /llama_adapter_lora_init: failed to open '(.*)': (.+)/);
  if (open === null) return null;
  const { file, setting: named } = guilty(lines, open[1], model, setting);
  switch (open[2]) {
    case "No such file or directory":
      return ["model_missing", `the ${file} does not exist: correct ${named} or put the file there`];
    case "Permission denied":
    case "Not a directory":
    case "Too many levels of symbolic links":
      return [
        "model_missing",
        `the ${file} cannot be opened (${open[2]}): correct its permissions or ${named}`,
      ];
    default:
      // The system's trouble, not the file's: another try may do.
      return [
        "crashed",
        `the ${file} cannot be opened (${open[2]}): see to the disk and to the limits of the daemon`,
      ];
  }
}

const damaged =
  /invalid magic characters|failed to read magic|not within the file bounds|corrupted or incomplete|failed to read (?:key-value pairs|tensor info|header|tensor data)|wrong number of tensors|bad_array_new_length|unexpectedly reached end of file|(?:invalid|illegal|missing) split/;
const tooNew = /this GGUF file is version \d+ but this software only supports up to version \d+/;

function fileDamaged(lines: readonly string[], model: string, setting: string): Verdict | null {
  const newer = lastMatch(lines, tooNew);
  const found = newer ?? lastMatch(lines, damaged);
  if (found === null) return null;
  const { file, setting: named } = guilty(lines, undefined, model, setting);
  if (newer !== null)
    return [
      "model_corrupt",
      `the ${file} is too new (${newer[0]}): take a newer build of the engine or correct ${named}`,
    ];
  return [
    "model_corrupt",
    `the ${file} is no complete GGUF file (${found.input}): fetch it again or correct ${named}`,
  ];
}

function outOfMemory(lines: readonly string[], subject: FailureSubject, facts: ExitFacts): Verdict | null {
  if (facts.memoryKill === true) {
    return [
      "out_of_host_memory",
      `the kernel ended the engine because the machine, or the daemon's share of it, ran out of memory: ${memoryAdvice("machine", subject.id)}`,
    ];
  }
  const found = memoryFailure(lines);
  // A serving engine survives a failed allocation of one request: it explains only an exit that was no clean one.
  if (found === null || (facts.code === 0 && facts.signal === null)) return null;
  const card = found.whose === "card";
  return [
    card ? "out_of_gpu_memory" : "out_of_host_memory",
    `${card ? "a graphics card" : "the machine"} ran out of memory (${found.line}): ${memoryAdvice(found.whose, subject.id)}`,
  ];
}

function serversGone(lines: readonly string[], subject: FailureSubject): Verdict | null {
  const lost = lastMatch(lines, /Remote RPC server crashed or returned malformed response/);
  if (lost !== null) {
    const servers = subject.rpc.join(", ");
    return [
      "unreachable",
      `an rpc-server of pool ${subject.id} (${servers}) went away or does not speak this engine's protocol: see to it, and that both are of one build`,
    ];
  }
  const found = lastMatch(lines, /ggml-rpc.*Failed to connect to (\S+)/);
  if (found === null) return null;
  return [
    "unreachable",
    `the rpc-server ${found[1]} does not answer: start it, or correct "rpc" of pool ${subject.id}`,
  ];
}

function bindFailed(lines: readonly string[]): Verdict | null {
  const found = lastMatch(lines, /couldn't bind HTTP server socket(?:, hostname: ([^,]+))?/);
  if (found === null) return null;
  return [
    "bind_failed",
    `the engine cannot listen on ${found[1] ?? "its address"}: something else holds it, or its folder is gone or not writable`,
  ];
}

/** Whatever else the loader says of the file, e.g. an architecture that this build does not know. */
function modelRefused(lines: readonly string[], model: string, setting: string): Verdict | null {
  const found = lastMatch(lines, /error loading model: (.+)$/);
  // What the disk or a driver says is no word on the file.
  if (found === null || /vk::|Input\/output error|Stale file handle/.test(found[0])) return null;
  return [
    "model_corrupt",
    `the engine cannot load the model file ${model} (${found[1]}): take another build of the engine or correct ${setting}`,
  ];
}

const politeSignals = new Set(["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"]);

/** What a signal of the processor or of the engine itself asks for. */
const adviceBySignal: Readonly<Record<string, string>> = {
  SIGILL: "it uses instructions that this processor lacks: take another build of it",
  SIGBUS: "a page of a file could not be read: see whether the model file is whole and its disk sound",
  SIGSEGV: "a fault of its own: take another build of it, or fewer of its options",
  SIGABRT: "it gave up: see the log lines before, or take another build of it",
  SIGFPE: "a fault of its own: take another build of it, or fewer of its options",
  SIGSYS: "the service's filter of system calls forbids what it needs",
};

function endOf(facts: ExitFacts, lines: readonly string[], when: string): Verdict {
  const last = lines.findLast((line) => line !== "" && !/cleaning up before exit|exiting due to/.test(line));
  const said = last === undefined ? "it logged nothing" : `its last line: ${last}`;
  if (facts.signal === "SIGKILL") {
    const who =
      facts.memoryKill === false
        ? "not by the kernel for want of memory: somebody, or a service such as systemd-oomd or earlyoom, did (see the system's log)"
        : "as the kernel does when memory runs out (see dmesg)";
    return ["crashed", `the engine was killed from outside by SIGKILL ${when}, ${who}; ${said}`];
  }
  if (facts.signal !== null) {
    const cause = politeSignals.has(facts.signal) ? "exited" : "crashed";
    const advice = adviceBySignal[facts.signal];
    return [
      cause,
      `the engine ended by ${facts.signal} ${when}${advice === undefined ? "" : ` (${advice})`}; ${said}`,
    ];
  }
  if (lines.some((line) => line.includes("what():  Resource temporarily unavailable")))
    return [
      "crashed",
      `the engine could not start a thread ${when}: raise the limit of processes and threads (TasksMax, ulimit -u) or of memory`,
    ];
  if (facts.code === 0) return ["exited", `the engine ended by itself ${when}; ${said}`];
  return ["crashed", `the engine ended with exit code ${facts.code} ${when}; ${said}`];
}

function lastMatch(lines: readonly string[], pattern: RegExp): RegExpMatchArray | null {
  for (let at = lines.length - 1; at >= 0; at -= 1) {
    const found = lines[at]?.match(pattern) ?? null;
    if (found !== null) return found;
  }
  return null;
}
