/**
 * The log: what a line looks like, that secrets never pass, and that neither process.exit nor a stalled or
 * vanished reader costs more than it must. The last part runs a real process on real pipes.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { PinoLog } from "../../src/infra/telemetry/pino-log.ts";
import { isSecretName, redacted, scrub } from "../../src/infra/telemetry/redact.ts";
import { StdoutLines } from "../../src/infra/telemetry/stdout-lines.ts";
import type { LogLevel } from "../../src/ports/telemetry.ts";
import { VirtualClock } from "../support/virtual-clock.ts";

const noonMs = Date.UTC(2026, 0, 2, 12, 0, 0, 5);

function logTo(level: LogLevel = "debug") {
  const lines: string[] = [];
  const log = new PinoLog({
    level,
    clock: new VirtualClock(noonMs),
    destination: { write: (line) => void lines.push(line) },
  });
  return { log, lines, records: () => lines.map((line) => JSON.parse(line)) };
}

describe("a line", () => {
  test("is JSON with ISO time, the level's name, the event and the fields as given", () => {
    const { log, lines } = logTo();
    log.info("task_admitted", { task_id: "t1", queue_position: 0, session_id: null, left_out: undefined });
    expect(lines).toEqual([
      '{"level":"info","time":"2026-01-02T12:00:00.005Z","event":"task_admitted","task_id":"t1","queue_position":0,"session_id":null}\n',
    ]);
  });

  test("stays one line, whatever a field holds", () => {
    const { log, lines, records } = logTo();
    log.warn("engine_said", { human: 'a\nb\u2028"c"\u0000', tail: ["x\ny"] });
    expect(lines.join("").split("\n")).toHaveLength(2);
    expect(records()[0]).toMatchObject({ human: 'a\nb\u2028"c"\u0000', tail: ["x\ny"] });
  });

  test("does not let a field take the place of its own names", () => {
    const { log, records } = logTo();
    log.info("real", { event: "forged", level: "debug", time: "never" });
    expect(records()[0]).toMatchObject({ level: "info", event: "real", event_: "forged", level_: "debug" });
  });

  test("is written from the configured level on", () => {
    for (const [level, events] of [
      ["debug", ["d", "i", "w", "e"]],
      ["info", ["i", "w", "e"]],
      ["warn", ["w", "e"]],
      ["error", ["e"]],
    ] as const) {
      const { log, records } = logTo(level);
      log.debug("d", {});
      log.info("i", {});
      log.warn("w", {});
      log.error("e", {});
      expect(records().map((r) => r.event)).toEqual([...events]);
    }
  });

  test("of an error carries the stack and the causes", () => {
    const { log, records } = logTo();
    const root = Object.assign(new TypeError("refused"), { code: "ECONNREFUSED" });
    log.error("attempt_failed", { task_id: "t1" }, new Error("engine is gone", { cause: root }));
    const { err, ...line } = records()[0];
    expect(Object.keys(line)).toEqual(["level", "time", "event", "task_id"]);
    expect(err).toMatchObject({ type: "Error", message: "engine is gone" });
    expect(err.stack).toContain("pino-log.test.ts");
    expect(err.cause).toMatchObject({ type: "TypeError", message: "refused", code: "ECONNREFUSED" });
  });

  test("of something thrown that is no error shows text only", () => {
    const { log, records } = logTo();
    log.error("odd", {}, "just text");
    log.error("odd", {}, { headers: { authorization: "s3cret-value" } });
    expect(records().map((r) => r.err)).toEqual([
      { message: "just text" },
      { message: "a object was thrown" },
    ]);
  });

  test("of an error whose causes go in a circle ends", () => {
    const { log, lines } = logTo();
    const error = new Error("again");
    error.cause = error;
    log.error("circle", {}, error);
    expect(lines).toHaveLength(1);
  });
});

describe("secrets never pass", () => {
  const secret = "s3cr3t-Value-0123456789";
  const names = [
    "api_key",
    "apiKey",
    "API-KEY",
    "key",
    "authorization",
    "Authorization",
    "proxy_authorization",
    "x-api-key",
    "X_API_KEY",
    "cookie",
    "password",
    "secret",
    "client_secret",
    "token",
    "hf_token",
    "access_token",
    "prompt",
    "rendered_prompt",
    "messages",
    "content",
    "inputs",
    "query",
    "text",
    "transcript",
  ];
  for (const name of names)
    test(`under the name ${name}`, () => {
      const { log, lines, records } = logTo();
      log.info("seen", { [name]: secret });
      log.error("seen", { [name]: [secret, secret] });
      log.warn("seen", { [name]: 4711 });
      expect(lines.join("")).not.toContain(secret);
      expect(records().map((r) => r[name])).toEqual([redacted, redacted, redacted]);
    });

  test("while what only sounds like one does", () => {
    const harmless = {
      key_id: "laptop",
      tokens_in: 3,
      tokens_out: 4,
      tokens_per_second: 1.5,
      auth: "required",
    };
    const { log, records } = logTo();
    log.info("task_done", harmless);
    expect(records()[0]).toMatchObject(harmless);
    for (const name of ["key_id", "tokens_in", "token_ms", "first_token_ms", "monkey", "prompt_tokens"])
      expect([name, isSecretName(name)]).toEqual([name, false]);
  });

  const quoted = [
    `upstream said: Authorization: Bearer ${secret}`,
    `authorization=Basic ${secret}`,
    `Bearer ${secret} was refused`,
    `GET /x?api_key=${secret}&y=1`,
    `{"api_key":"${secret}","a":1}`,
    `llama-server --api-key ${secret} --port 1`,
    `password: ${secret}`,
  ];
  for (const text of quoted)
    test(`quoted in text: ${text.replace(secret, "…")}`, () => {
      const { log, lines } = logTo();
      log.info("seen", { human: text, tail: [text] });
      log.error("seen", {}, new Error(text, { cause: new Error(text) }));
      log.error("seen", {}, text);
      expect(lines.join("")).not.toContain(secret);
      expect(lines.join("")).toContain(redacted);
    });

  test("quoted in text, the rest of which stays", () => {
    expect(scrub(`GET /x?api_key=${secret}&y=1 failed`)).toBe(`GET /x?api_key=${redacted}&y=1 failed`);
    for (const plain of ["the password is wrong", "authorization header missing", "no key, no token"])
      expect(scrub(plain)).toBe(plain);
  });

  test("in any spelling of a secret's name", () => {
    const separators = fc.constantFrom("", "_", "-", ".", " ");
    const name = fc
      .tuple(
        fc.constantFrom(
          ["api", "key"],
          ["x", "api", "key"],
          ["authorization"],
          ["access", "token"],
          ["client", "secret"],
          ["system", "prompt"],
        ),
        separators,
        fc.boolean(),
      )
      .map(([words, separator, upper]) =>
        (upper ? words.map((w) => w.toUpperCase()) : words).join(separator),
      );
    fc.assert(fc.property(name, (n) => isSecretName(n)));
  });
});

describe("lines to stdout", () => {
  const failing = (code: string) => Object.assign(new Error(code), { code });
  const droppedLine = (count: number) => `dropped ${count}\n`;

  /** A pipe that takes `room` bytes. */
  function pipe() {
    const state = { room: Number.POSITIVE_INFINITY, out: "", error: "EAGAIN", calls: 0 };
    const write = (_: number, bytes: Uint8Array): number => {
      state.calls++;
      if (state.room === 0) throw failing(state.error);
      const taken = bytes.subarray(0, state.room);
      state.room -= taken.length;
      state.out += Buffer.from(taken).toString("latin1");
      return taken.length;
    };
    return { state, write };
  }

  test("go out together, a moment later, in one call", async () => {
    const clock = new VirtualClock();
    const { state, write } = pipe();
    const lines = new StdoutLines({ clock, droppedLine, write });
    lines.write("a\n");
    lines.write("b\n");
    expect(state.out).toBe("");
    await clock.advance(1);
    expect(state.out).toBe("a\nb\n");
    expect(state.calls).toBe(1);
  });

  test("wait for a full pipe without holding anybody up, keep their order and lose no byte", async () => {
    const clock = new VirtualClock();
    const { state, write } = pipe();
    const lines = new StdoutLines({ clock, droppedLine, write });
    state.room = 3;
    for (const line of ["one\n", "two\n", "three\n"]) {
      lines.write(line);
      await clock.advance(1);
    }
    expect(state.out).toBe("one");
    // The pipe was asked when it was found full and not for every line after that.
    expect(state.calls).toBe(2);
    state.room = 4;
    await clock.advance(50);
    expect(state.out).toBe("one\ntwo");
    state.room = 100;
    await clock.advance(50);
    expect(state.out).toBe("one\ntwo\nthree\n");
    expect(clock.pendingTimers).toBe(0);
  });

  test("are dropped beyond the bound, counted, and the count is told", async () => {
    const clock = new VirtualClock();
    const { state, write } = pipe();
    const lines = new StdoutLines({ clock, droppedLine, write, pendingBytesMax: 10 });
    state.room = 0;
    for (let i = 0; i < 9; i++) lines.write(`l${i}\n`);
    state.room = 100;
    await clock.advance(50);
    await clock.advance(1);
    expect(state.out).toBe("l0\nl1\nl2\ndropped 6\n");
    lines.write("next\n");
    await clock.advance(1);
    expect(state.out).toEndWith("next\n");
  });

  test("end with the reader: EPIPE is no error of ours", async () => {
    const clock = new VirtualClock();
    const { state, write } = pipe();
    const lines = new StdoutLines({ clock, droppedLine, write });
    Object.assign(state, { room: 0, error: "EPIPE" });
    for (let i = 0; i < 3; i++) lines.write("into the void\n");
    await clock.advance(1);
    lines.write("and nobody asks again\n");
    await clock.advance(1);
    expect(state.calls).toBe(1);
    expect(clock.pendingTimers).toBe(0);
    lines.flush();
  });

  test("survive a full disk", async () => {
    const clock = new VirtualClock();
    const { state, write } = pipe();
    const lines = new StdoutLines({ clock, droppedLine, write });
    Object.assign(state, { room: 0, error: "ENOSPC" });
    lines.write("kept\n");
    state.room = 100;
    await clock.advance(50);
    expect(state.out).toBe("kept\n");
  });

  test("get a last chance at the end", () => {
    const { state, write } = pipe();
    let calls = 0;
    const lines = new StdoutLines({
      clock: new VirtualClock(),
      droppedLine,
      write: (fd, bytes) => {
        if (++calls === 3) state.room = 100;
        return write(fd, bytes);
      },
    });
    state.room = 0;
    lines.write("last words\n");
    lines.flush();
    lines.write("one more\n");
    lines.flush();
    expect(state.out).toBe("last words\none more\n");
  });

  test("listen for the exit only while something waits", async () => {
    const clock = new VirtualClock();
    const { state, write } = pipe();
    const before = process.listenerCount("exit");
    const lines = new StdoutLines({ clock, droppedLine, write });
    state.room = 0;
    lines.write("a\n");
    lines.write("b\n");
    await clock.advance(500);
    expect(process.listenerCount("exit")).toBe(before + 1);
    state.room = 100;
    await clock.advance(50);
    expect(process.listenerCount("exit")).toBe(before);
    expect(state.out).toBe("a\nb\n");
  });
});

describe("a real process on a real pipe", () => {
  const dir = mkdtempSync(join(tmpdir(), "log-test-"));
  afterAll(() => rmSync(dir, { recursive: true, force: true }));
  const writer = join(import.meta.dir, "fixtures", "log-writer.ts");

  /** $0 is bun, $1 the writer, $2 a folder. */
  async function shell(script: string) {
    const child = Bun.spawn(["sh", "-c", script, process.execPath, writer, dir], {
      stdout: "pipe",
      stderr: "pipe",
    });
    const [out, err] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
    ]);
    await child.exited;
    return { out, err };
  }
  const numbers = (out: string) =>
    out
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line).n);
  const upTo = (n: number) => Array.from({ length: n }, (_, i) => i);

  test("process.exit loses no line, though the pipe holds a fraction of them", async () => {
    const { out } = await shell('"$0" "$1" 5000 exit | cat');
    expect(numbers(out)).toEqual(upTo(5000));
  });

  test("a vanished reader does not end it", async () => {
    const { out, err } = await shell('{ "$0" "$1" 5000 live; echo "exit $?" >&2; } | head -n 1');
    expect(numbers(out)).toEqual([0]);
    expect(err).toBe("the turn went on\nexit 0\n");
  });

  test("a reader who does not read stops nothing, and has every line once he does", async () => {
    // The reader waits for the writer's own word that its turn went on: a blocking write would deadlock here.
    const { out } = await shell(
      'mkfifo "$2/gate" && "$0" "$1" 5000 live 2>"$2/gate" | { read -r word <"$2/gate"; cat; }',
    );
    expect(numbers(out)).toEqual(upTo(5000));
  });

  test("a file gets the lines where it ends", async () => {
    const { out } = await shell('echo \'{"n":-1}\' >"$2/log"; "$0" "$1" 3 exit >>"$2/log"; cat "$2/log"');
    expect(numbers(out)).toEqual([-1, 0, 1, 2]);
  });
});
