/**
 * Puts the application on a port. Called by bootstrap.ts and by tests (port 0).
 *
 * Always: the port is ours alone or it is an error; no development pages; what escapes the application's error
 * handling is answered with the envelope too.
 */
import type { AnyElysia } from "elysia";
import { OrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import type { Entropy } from "../ports/clock.ts";
import type { Log } from "../ports/telemetry.ts";
import { correlationHeader } from "./middleware/correlation.ts";
import { internalError } from "./middleware/errors.ts";
import { addressError } from "./start-error.ts";

export interface ListenOptions {
  readonly host: string;
  /** 0: any free one. */
  readonly port: number;
  /** Paths of PEM files; null: plain HTTP. */
  readonly tls: { readonly certPath: string; readonly keyPath: string } | null;
  readonly log: Log;
  readonly entropy: Entropy;
}

export interface Listening {
  readonly host: string;
  readonly port: number;
  /** http://host:port or https://host:port, without a slash at the end. */
  readonly url: string;
  /** Refuses new connections and resolves when the open ones have ended; `closeOpen` ends those at once. */
  stop(closeOpen: boolean): Promise<void>;
}

/** @throws StartError "address" */
export function listen(app: AnyElysia, options: ListenOptions): Listening {
  const { host, port, tls, log, entropy } = options;
  // Elysia adds a listener that stops the server at exit and never takes it away: stop() does.
  const exitListeners = process.listeners("beforeExit");
  try {
    app.listen({
      hostname: host,
      port,
      // Elysia's default shares the port between processes.
      reusePort: false,
      development: false,
      // limits.ts counts, and answers with our envelope; Bun's own 413 could not.
      maxRequestBodySize: Number.MAX_SAFE_INTEGER,
      idleTimeout: limits.idleTimeoutSeconds,
      ...(tls === null ? {} : { tls: { cert: Bun.file(tls.certPath), key: Bun.file(tls.keyPath) } }),
      error: (error: Error) => {
        const correlationId = entropy.uuid();
        log.error(
          "request_escaped",
          { correlation_id: correlationId, human: "An error escaped the error handler." },
          error,
        );
        const { status, headers, body } = internalError(correlationId);
        return new Response(body, { status, headers: { ...headers, [correlationHeader]: correlationId } });
      },
    });
  } catch (cause) {
    throw addressError(cause, { host, port }) ?? cause;
  }
  const added = process.listeners("beforeExit").filter((listener) => !exitListeners.includes(listener));
  const server = app.server;
  if (server === null) throw new OrchestratorError("INTERNAL", "the server did not start");
  const boundPort = server.port ?? port;
  return {
    host,
    port: boundPort,
    url: `${tls === null ? "http" : "https"}://${host.includes(":") ? `[${host}]` : host}:${boundPort}`,
    stop: async (closeOpen) => {
      for (const listener of added) process.removeListener("beforeExit", listener);
      await server.stop(closeOpen);
    },
  };
}
