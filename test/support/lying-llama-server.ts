/**
 * A stand-in for llama-server that lies on demand, for tests of the supervisor and of the client's failure
 * paths. Run as `bun test/support/lying-llama-server.ts <llama-server arguments>`; `writeLyingServer` makes an
 * executable of it, to be a pool's engineBin. The lies are a comma-separated list in LYING_LLAMA:
 *
 *   exit=N                 prints an error and exits with N at once
 *   model-missing, bad-flag, corrupt-model, out-of-memory, bind-failed    the real one's last lines, then exit 1
 *   die-while-loading      exits by SIGABRT while it loads
 *   loading=MS             loads for so long
 *   never-ready            loads for ever
 *   late-health=MS         answers /health only after so long
 *   ignore-sigterm         goes on at SIGTERM and SIGINT
 *   fork                   starts a grandchild (sleep) in its own process group
 *   flood-logs             writes 20,000 log lines at its start and one a millisecond
 *   wedge                  /health answers, everything else hangs
 *   wedge-after=N          the same after N completions
 *   open-slots             answers without its key
 *   says-slots=N, says-ctx=N    what it says of itself
 *   ctx-of-FILE=N          the same of a model whose file is called so
 *   keep-open              does not close a connection after a complete completion
 *   wrong-status=N         completions answer N with a page that is no JSON
 *   error-frame            an error frame after two tokens
 *   torn-frame             the connection ends inside a frame
 *   drop-mid-stream        the connection ends after two tokens
 *   early-end              a clean end of the stream without the final frame
 *   garbage                a frame that is no JSON
 *   endless-frame          one frame that never ends
 *   not-http               answers completions with something that is no HTTP
 *   hang-completion        accepts a completion and has read its prompt, then nothing
 *   hang-at-once           accepts a completion, and nothing is heard of it
 *   crash-mid-stream       SIGABRT after two tokens
 *   silent-logs            no lines about slots
 *   keep-slots             a slot stays busy when its client is gone, until `/slots` was asked twice
 *
 * It speaks HTTP on a raw socket, because several of the lies are no HTTP.
 */
import { chmodSync, existsSync, readFileSync, unlinkSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import type { Socket } from "bun";

/** Writes an executable into `folder` that runs this script with these lies; returns its path. */
export function writeLyingServer(folder: string, lies = ""): string {
  const path = join(folder, "llama-server");
  const quote = (text: string) => `'${text.replaceAll("'", `'\\''`)}'`;
  const script = resolve(import.meta.dir, "lying-llama-server.ts");
  // LYING_LLAMA of the pool's own environment wins, so one executable serves several pools.
  writeFileSync(
    path,
    `#!/bin/sh\nLYING_LLAMA="\${LYING_LLAMA-${lies}}" exec ${quote(process.execPath)} ${quote(script)} "$@"\n`,
  );
  chmodSync(path, 0o755);
  return path;
}

interface Slot {
  busy: boolean;
  task: number;
  askedWhileGone: number;
}

class LyingServer {
  readonly #lies: ReadonlyMap<string, string>;
  readonly #args: readonly string[];
  readonly #key: string | null;
  readonly #slots: Slot[];
  readonly #ctx: number;
  readonly #startedMs = performance.now();
  #loaded = false;
  #completions = 0;
  #tasks = 0;

  constructor(args: readonly string[], lies: ReadonlyMap<string, string>) {
    this.#args = args;
    this.#lies = lies;
    const keyFile = this.#arg("--api-key-file");
    this.#key = keyFile === null ? null : readFileSync(keyFile, "utf8").trim();
    const slots = Number(this.#arg("-np") ?? 1);
    this.#slots = Array.from({ length: slots }, () => ({ busy: false, task: -1, askedWhileGone: 0 }));
    this.#ctx = Math.floor(Number(this.#arg("-c") ?? 4096) / slots);
  }

  run(): void {
    const fatal = this.#fatalLines();
    if (fatal !== null) {
      for (const line of fatal) this.log("error", line);
      process.exit(Number(this.#lie("exit") ?? 1));
    }
    for (const signal of ["SIGTERM", "SIGINT"] as const) {
      process.on(signal, () => {
        if (this.#lie("ignore-sigterm") === null) process.exit(0);
        this.log("warn", `srv  ${signal} ignored`);
      });
    }
    if (this.#lie("fork") !== null) {
      const grandchild = Bun.spawn(["sleep", "1000"], {
        stdin: "ignore",
        stdout: "ignore",
        stderr: "ignore",
      });
      this.log("info", `srv  forked ${grandchild.pid}`);
    }
    if (this.#lie("flood-logs") !== null) this.#flood();
    this.log("info", `srv    load_model: loading model '${this.#arg("-m") ?? ""}'`);
    this.#listen();
    if (this.#lie("die-while-loading") !== null) process.kill(process.pid, "SIGABRT");
    if (this.#lie("never-ready") !== null) return;
    setTimeout(
      () => {
        this.#loaded = true;
        this.log("info", "srv  llama_server: model loaded");
      },
      Number(this.#lie("loading") ?? 0),
    );
  }

  log(level: string, msg: string): void {
    const time = Math.round((performance.now() - this.#startedMs) * 1000);
    process.stdout.write(`${JSON.stringify({ type: "log", time, level, msg: `${msg}\n` })}\n`);
  }

  #lie(name: string): string | null {
    return this.#lies.get(name) ?? null;
  }

  #arg(name: string): string | null {
    const at = this.#args.lastIndexOf(name);
    return at < 0 ? null : (this.#args[at + 1] ?? null);
  }

  /** What the real engine prints last before it exits with 1. */
  #fatalLines(): string[] | null {
    const model = this.#arg("-m") ?? "";
    const ends = ["srv  llama_server: exiting due to model loading error"];
    const known: Record<string, string[]> = {
      exit: ["something went wrong"],
      "model-missing": [
        `gguf_init_from_file: failed to open GGUF file '${model}' (No such file or directory)`,
        ...ends,
      ],
      "corrupt-model": [
        "tensor 'blk.0.attn_q.weight' data is not within the file bounds, model is corrupted or incomplete",
        ...ends,
      ],
      "bad-flag": ["error: invalid argument: --bogus"],
      "out-of-memory": ["failed to allocate buffer for kv cache", ...ends],
      "bind-failed": ["couldn't bind HTTP server socket", "exiting due to HTTP server error"],
    };
    for (const [lie, lines] of Object.entries(known)) if (this.#lie(lie) !== null) return lines;
    const host = this.#arg("--host");
    // As the real one: a stale socket file blocks the bind.
    if (host?.endsWith(".sock") === true && existsSync(host)) return known["bind-failed"] ?? null;
    return null;
  }

  #flood(): void {
    const line = "x".repeat(120);
    for (let i = 0; i < 20_000; i++) this.log("info", `flood ${i} ${line}`);
    setInterval(() => this.log("info", `flood ${line}`), 1);
  }

  #listen(): void {
    const host = this.#arg("--host") ?? "127.0.0.1";
    const socket = {
      open: (opened: Socket<Connection>) => {
        opened.data = new Connection();
      },
      data: (from: Socket<Connection>, bytes: Buffer) => {
        from.data.received += bytes.toString("utf8");
        const request = from.data.take();
        if (request !== null) void this.#serve(from, request);
      },
      close: (closed: Socket<Connection>) => closed.data.onClose(),
      error: () => undefined,
    };
    if (host.endsWith(".sock")) {
      Bun.listen<Connection>({ unix: host, socket });
      process.on("exit", () => {
        // The real one leaves its file behind; so does this one when it is killed.
        if (this.#lie("tidy") !== null) unlinkSync(host);
      });
      this.log("info", `srv  llama_server: listening on unix://${host}`);
      return;
    }
    const listener = Bun.listen<Connection>({
      hostname: host,
      port: Number(this.#arg("--port") ?? 8080),
      socket,
    });
    this.log("info", `srv  llama_server: listening on http://${host}:${listener.port}`);
  }

  async #serve(socket: Socket<Connection>, request: ParsedRequest): Promise<void> {
    const { path } = request;
    const isHealth = path === "/health";
    if (isHealth && this.#lie("late-health") !== null) await Bun.sleep(Number(this.#lie("late-health")));
    if (!isHealth && this.#wedged()) return;
    if (!isHealth && this.#key !== null && request.key !== this.#key && this.#lie("open-slots") === null) {
      answer(socket, 401, error(401, "Invalid API Key", "authentication_error"));
    } else if (!this.#loaded) answer(socket, 503, error(503, "Loading model", "unavailable_error"));
    else if (path === "/completion") this.#complete(socket, request.body);
    else {
      const body = this.#plain(path, request.body);
      answer(socket, body === null ? 404 : 200, body ?? error(404, "File Not Found", "not_found_error"));
    }
  }

  #wedged(): boolean {
    const after = this.#lie("wedge-after");
    return this.#lie("wedge") !== null || (after !== null && this.#completions >= Number(after));
  }

  #plain(path: string, body: Record<string, unknown>): unknown {
    switch (path) {
      case "/health":
        return { status: "ok" };
      case "/props":
        return {
          default_generation_settings: { n_ctx: this.#saidCtx() },
          total_slots: Number(this.#lie("says-slots") ?? this.#slots.length),
          model_path: this.#arg("-m"),
          chat_template: "{{ messages }}",
          build_info: "b0-lying",
        };
      case "/v1/models":
        return { data: [{ meta: { n_params: 1000, size: 4000, n_ctx_train: this.#ctx } }] };
      case "/slots":
        return this.#slots.map((slot, id) => ({ id, n_ctx: this.#ctx, is_processing: this.#ask(slot) }));
      case "/tokenize":
        return { tokens: [1, ...Buffer.from(String(body.content))] };
      case "/apply-template":
        return { prompt: JSON.stringify(body.messages) };
      default:
        return null;
    }
  }

  #saidCtx(): number {
    const file = (this.#arg("-m") ?? "").split("/").at(-1);
    return Number(this.#lie(`ctx-of-${file}`) ?? this.#lie("says-ctx") ?? this.#ctx);
  }

  #ask(slot: Slot): boolean {
    if (!slot.busy || this.#lie("keep-slots") === null) return slot.busy;
    slot.askedWhileGone += 1;
    if (slot.askedWhileGone >= 2) slot.busy = false;
    return slot.busy;
  }

  #complete(socket: Socket<Connection>, body: Record<string, unknown>): void {
    const warmUp = body.ignore_eos === true;
    const status = this.#lie("wrong-status");
    if (!warmUp) this.#completions += 1;
    if (!warmUp && this.#lie("not-http") !== null) {
      socket.end("SSH-2.0-OpenSSH_9.9\r\n\r\n\r\n");
      return;
    }
    if (!warmUp && status !== null) {
      answer(socket, Number(status), "<html>proxy error</html>");
      return;
    }
    const id = Math.max(0, Number(body.id_slot ?? 0)) % this.#slots.length;
    const slot = this.#slots[id];
    if (slot === undefined) return;
    this.#tasks += 1;
    slot.task = this.#tasks;
    slot.busy = true;
    slot.askedWhileGone = 0;
    this.#slotLog(`slot launch_slot_: id  ${id} | task ${slot.task} | processing task, is_child = 0`);
    const release = () => {
      if (!slot.busy || this.#lie("keep-slots") !== null) return;
      slot.busy = false;
      this.#slotLog(
        `slot      release: id  ${id} | task ${slot.task} | stop processing: n_tokens = 9, truncated = 0`,
      );
    };
    socket.data.onClose = release;
    socket.write("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
    new Completion(socket, body, warmUp ? new Map() : this.#lies).speak(release);
  }

  #slotLog(line: string): void {
    if (this.#lie("silent-logs") === null) this.log("info", line);
  }
}

/** One stream: two tokens, then the lie or the rest. */
class Completion {
  readonly #socket: Socket<Connection>;
  readonly #tokens: number;
  readonly #lies: ReadonlyMap<string, string>;

  constructor(socket: Socket<Connection>, body: Record<string, unknown>, lies: ReadonlyMap<string, string>) {
    this.#socket = socket;
    this.#tokens = Math.max(1, Number(body.n_predict ?? 16));
    this.#lies = lies;
  }

  speak(release: () => void): void {
    if (this.#lies.has("hang-at-once")) return;
    const progress = { total: 5, cache: 0, processed: 5, time_ms: 0 };
    this.#frame({ index: 0, content: "", tokens: [0], stop: false, prompt_progress: progress });
    if (this.#lies.has("hang-completion")) return;
    for (let i = 1; i <= Math.min(2, this.#tokens); i++) this.#token(i);
    if (this.#lieMidStream()) return;
    for (let i = 3; i <= this.#tokens; i++) this.#token(i);
    this.#frame({
      content: "",
      tokens: [],
      stop: true,
      stop_type: "limit",
      truncated: false,
      tokens_predicted: this.#tokens,
      tokens_evaluated: 5,
      timings: { cache_n: 0, prompt_n: 5, prompt_ms: 1, predicted_n: this.#tokens, predicted_ms: 1 },
    });
    if (!this.#lies.has("keep-open")) {
      this.#chunk("");
      this.#socket.end();
    }
    release();
  }

  #lieMidStream(): boolean {
    const socket = this.#socket;
    if (this.#lies.has("error-frame")) {
      this.#frame(error(500, "Context size has been exceeded.", "server_error"));
      this.#chunk("");
      socket.end();
    } else if (this.#lies.has("torn-frame")) {
      this.#chunk('data: {"index":0,"content":" torn');
      this.#chunk("");
      socket.end();
    } else if (this.#lies.has("drop-mid-stream")) {
      socket.flush();
      socket.end();
    } else if (this.#lies.has("early-end")) {
      this.#chunk("");
      socket.end();
    } else if (this.#lies.has("garbage")) this.#chunk('data: {"index":0,"content":}\n\n');
    else if (this.#lies.has("endless-frame")) this.#endless(1024);
    else if (this.#lies.has("crash-mid-stream")) process.kill(process.pid, "SIGABRT");
    else return false;
    return true;
  }

  /** Megabyte after megabyte, as fast as the reader takes them, until it closes. */
  #endless(left: number): void {
    if (left === 0 || this.#socket.readyState <= 0) return;
    this.#chunk(`${left === 1024 ? "data: " : ""}${"x".repeat(1024 * 1024)}`);
    setTimeout(() => this.#endless(left - 1), 1);
  }

  #token(n: number): void {
    this.#frame({
      index: 0,
      content: ` word${n}`,
      tokens: [n],
      stop: false,
      id_slot: -1,
      tokens_predicted: n,
      tokens_evaluated: 5,
    });
  }

  #frame(frame: unknown): void {
    this.#chunk(`data: ${JSON.stringify(frame)}\n\n`);
  }

  #chunk(text: string): void {
    this.#socket.write(`${Buffer.byteLength(text).toString(16)}\r\n${text}\r\n`);
  }
}

interface ParsedRequest {
  readonly path: string;
  readonly key: string | null;
  readonly body: Record<string, unknown>;
}

class Connection {
  received = "";
  onClose: () => void = () => undefined;

  /** The request, once it is there as a whole. */
  take(): ParsedRequest | null {
    const blank = this.received.indexOf("\r\n\r\n");
    if (blank < 0) return null;
    const head = this.received.slice(0, blank);
    const body = this.received.slice(blank + 4);
    const length = Number(/^content-length: *(\d+)/im.exec(head)?.[1] ?? 0);
    if (Buffer.byteLength(body) < length) return null;
    this.received = "";
    return {
      path: head.split(" ")[1] ?? "/",
      key: /^authorization: *Bearer (.+)$/im.exec(head)?.[1]?.trim() ?? null,
      body: length === 0 ? {} : JSON.parse(body),
    };
  }
}

const error = (code: number, message: string, type: string) => ({ error: { code, message, type } });

function answer(socket: Socket<Connection>, status: number, body: unknown): void {
  const text = typeof body === "string" ? body : JSON.stringify(body);
  socket.end(
    `HTTP/1.1 ${status} Whatever\r\nContent-Type: application/json\r\nContent-Length: ${Buffer.byteLength(text)}\r\n\r\n${text}`,
  );
}

function parseLies(text: string): ReadonlyMap<string, string> {
  const named = text.split(",").filter((lie) => lie !== "");
  return new Map(named.map((lie) => [lie.split("=")[0] ?? lie, lie.split("=")[1] ?? ""]));
}

if (import.meta.main) {
  new LyingServer(process.argv.slice(2), parseLies(process.env.LYING_LLAMA ?? "")).run();
}
