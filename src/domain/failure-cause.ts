/**
 * Why an engine process ended, from what is left of it: exit code, signal, the last log lines and how far it
 * had come. Pure; the replica machine calls it. Every message says what to do next.
 *
 * The texts are those of llama-server 0.7.0 (build 11669), seen with a missing, foreign and truncated model
 * file, a wrong flag, a taken socket and too little memory; each of them ends with exit code 1, so only the
 * text tells them apart. Its log comes as JSON lines (`--log-jsonl`) or as plain text.
 */
import type { PoolSpec, ReplicaFailure } from "./pool.ts";

export type FailureCause = ReplicaFailure["cause"];

/** What a message needs to name the thing to correct. */
export type FailureSubject = Pick<PoolSpec, "id" | "modelRef" | "modelPath" | "engineBin">;

export interface ExitFacts {
  readonly code: number | null;
  readonly signal: string | null;
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
    return outOfMemory(lines, subject, facts) ?? endOf(facts, lines, "while it was serving");
  }
  const lines = facts.logTail.map(plainLogLine);
  return (
    notStarted(facts, lines, subject) ??
    badFlag(lines, subject) ??
    modelUnreadable(lines, model, setting) ??
    modelDamaged(lines, model, setting) ??
    outOfMemory(lines, subject, facts) ??
    bindFailed(lines) ??
    modelRefused(lines, model, setting) ??
    endOf(facts, lines, "before it was ready")
  );
}

/** `setpriv`, `env` and shells answer 127 or 126 for a program that is not there or not executable. */
function notStarted(facts: ExitFacts, lines: readonly string[], subject: FailureSubject): Verdict | null {
  const said = lastMatch(
    lines,
    /(?:failed to execute|not found|No such file or directory|Permission denied)/,
  );
  if ((facts.code !== 127 && facts.code !== 126) || said === null) return null;
  return [
    "spawn_failed",
    `the engine program ${subject.engineBin ?? "of the pool"} cannot be started (${said.input}): install it or correct --engine-bin`,
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
  return null;
}

function modelUnreadable(lines: readonly string[], model: string, setting: string): Verdict | null {
  const open = lastMatch(lines, /failed to open GGUF file '.*' \((.+)\)/);
  if (open === null) return null;
  if (open[1] === "No such file or directory") {
    return [
      "model_missing",
      `the model file ${model} does not exist: correct ${setting} or put the file there`,
    ];
  }
  return [
    "model_missing",
    `the model file ${model} cannot be opened (${open[1]}): correct its permissions or ${setting}`,
  ];
}

const damaged =
  /invalid magic characters|failed to read magic|not within the file bounds|corrupted or incomplete|failed to read (?:key-value pairs|tensor info)|wrong number of tensors|bad_array_new_length/;

function modelDamaged(lines: readonly string[], model: string, setting: string): Verdict | null {
  const found = lastMatch(lines, damaged);
  if (found === null) return null;
  return [
    "model_corrupt",
    `the model file ${model} is no complete GGUF file (${found.input}): fetch it again or correct ${setting}`,
  ];
}

const noMemory =
  /failed to allocate|unable to allocate|bad_alloc|out of memory|cudaMalloc failed|Cannot allocate memory|OutOfDeviceMemory/i;

function outOfMemory(lines: readonly string[], subject: FailureSubject, facts: ExitFacts): Verdict | null {
  const found = lastMatch(lines, noMemory);
  // A serving engine survives a failed allocation of one request: it explains only an exit that was no clean one.
  if (found === null || (facts.code === 0 && facts.signal === null)) return null;
  return [
    "out_of_memory",
    `the engine ran out of memory (${found.input}): lower "ctx" or "slots" of pool ${subject.id}, or take a smaller model`,
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
  if (found === null) return null;
  return [
    "model_corrupt",
    `the engine cannot load the model file ${model} (${found[1]}): take another build of the engine or correct ${setting}`,
  ];
}

const politeSignals = new Set(["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"]);

function endOf(facts: ExitFacts, lines: readonly string[], when: string): Verdict {
  const last = lines.findLast((line) => line !== "" && !/cleaning up before exit|exiting due to/.test(line));
  const said = last === undefined ? "it logged nothing" : `its last line: ${last}`;
  if (facts.signal === "SIGKILL") {
    return [
      "crashed",
      `the engine was killed from outside by SIGKILL ${when}, as the kernel does when memory runs out (see dmesg); ${said}`,
    ];
  }
  if (facts.signal !== null) {
    const cause = politeSignals.has(facts.signal) ? "exited" : "crashed";
    return [cause, `the engine ended by ${facts.signal} ${when}; ${said}`];
  }
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
