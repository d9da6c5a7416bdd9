/**
 * The Log port on pino: JSON lines on stdout with ISO time, level names, `event` and the fields as given.
 * app/bootstrap.ts makes the one instance.
 *
 * Always: a line is written before the call returns unless the reader stalls; secrets, prompts and generated
 * text do not pass (redact.ts); a vanished reader does not end the daemon (stdout-lines.ts). No transports:
 * they run in worker threads that a compiled binary cannot load.
 */
import { type Logger, pino } from "pino";
import { limits } from "../../domain/limits.ts";
import type { Clock } from "../../ports/clock.ts";
import type { Log, LogFields, LogLevel } from "../../ports/telemetry.ts";
import { redactValue, scrub } from "./redact.ts";
import { StdoutLines } from "./stdout-lines.ts";

export interface PinoLogOptions {
  readonly level: LogLevel;
  readonly clock: Clock;
  /** Where lines go; stdout when left out. */
  readonly destination?: { write(line: string): void };
}

/** Names that the line itself uses; a field of that name gets an underscore instead of overwriting it. */
const ownNames = new Set(["level", "time", "event", "err"]);

export class PinoLog implements Log {
  private readonly logger: Logger;

  constructor(options: PinoLogOptions) {
    const { clock, level } = options;
    this.logger = pino(
      {
        level,
        base: null,
        timestamp: () => `,"time":"${isoTime(clock)}"`,
        formatters: { level: (label) => ({ level: label }) },
        // The description below is ready to write: under its usual key pino would take it for an error,
        // serialize it once more and repeat its message.
        errorKey: "unused",
        serializers: { err: (description) => description },
      },
      options.destination ?? stdout(clock),
    );
  }

  /** From now on. */
  setLevel(level: LogLevel): void {
    this.logger.level = level;
  }

  debug(event: string, fields: LogFields): void {
    // Records are built only for levels that are on: a debug call costs a comparison otherwise.
    if (this.logger.isLevelEnabled("debug")) this.logger.debug(record(event, fields));
  }

  info(event: string, fields: LogFields): void {
    if (this.logger.isLevelEnabled("info")) this.logger.info(record(event, fields));
  }

  warn(event: string, fields: LogFields): void {
    if (this.logger.isLevelEnabled("warn")) this.logger.warn(record(event, fields));
  }

  error(event: string, fields: LogFields, cause?: unknown): void {
    const line = record(event, fields);
    if (cause !== undefined) line.err = describe(cause, limits.logCausesMax);
    this.logger.error(line);
  }
}

function record(event: string, fields: LogFields): Record<string, unknown> {
  const line: Record<string, unknown> = { event };
  // for-in: three lines a task are made here, and Object.entries would make an array for each field.
  for (const name in fields) {
    const value = fields[name];
    if (value !== undefined) line[ownNames.has(name) ? `${name}_` : name] = redactValue(name, value);
  }
  return line;
}

function describe(cause: unknown, causesLeft: number): Record<string, unknown> {
  // A thrown value that is no error may be anything, a request with its key too: only text is shown.
  if (!(cause instanceof Error))
    return { message: typeof cause === "string" ? scrub(cause) : `a ${typeof cause} was thrown` };
  const { code } = cause as { code?: unknown };
  return {
    type: cause.name,
    message: scrub(cause.message),
    ...(typeof code === "string" ? { code } : {}),
    stack: scrub((cause.stack ?? "").slice(0, limits.logStackCharsMax)),
    ...(cause.cause === undefined || causesLeft === 0
      ? {}
      : { cause: describe(cause.cause, causesLeft - 1) }),
  };
}

const isoTime = (clock: Clock): string => {
  const ms = Math.floor(clock.nowMs());
  if (ms !== lastTime.ms) {
    lastTime.ms = ms;
    lastTime.text = new Date(ms).toISOString();
  }
  return lastTime.text;
};
/** Lines of one millisecond have one text. */
const lastTime = { ms: Number.NaN, text: "" };

function stdout(clock: Clock): StdoutLines {
  return new StdoutLines({
    clock,
    droppedLine: (count) =>
      `${JSON.stringify({
        level: "warn",
        time: isoTime(clock),
        event: "log_lines_dropped",
        count,
        human: "The reader of the log stalled; lines that did not fit in memory are missing.",
      })}\n`,
  });
}
