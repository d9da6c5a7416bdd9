/**
 * What is known of a request besides its input: correlation id, whose key it carries, when it came. The
 * middleware (app/middleware/) writes it before routing; the handlers of api/ read it by the request.
 *
 * One instance is made at start-up and handed to both sides: no process-wide map. The entries go with their
 * requests.
 */
import { assert } from "../domain/assert.ts";

export interface RequestContext {
  readonly correlationId: string;
  /** Milliseconds since the epoch. */
  readonly receivedMs: number;
  /** The key that asks; `null` until it was checked and on routes that need none. */
  readonly keyId: string | null;
  readonly admin: boolean;
}

export class RequestContexts {
  readonly #byRequest = new WeakMap<Request, RequestContext>();

  set(request: Request, context: RequestContext): void {
    this.#byRequest.set(request, context);
  }

  /** The context of a request that passed the middleware. */
  of(request: Request): RequestContext {
    const context = this.#byRequest.get(request);
    assert(context, "every request passes the middleware first");
    return context;
  }

  /** The same where the middleware itself may have failed. */
  find(request: Request): RequestContext | undefined {
    return this.#byRequest.get(request);
  }

  /** Who asks, on a route that needs a key. */
  caller(request: Request): RequestContext & { readonly keyId: string } {
    const context = this.of(request);
    const { keyId } = context;
    assert(keyId !== null, "the middleware lets nobody through to this route without a key");
    return { ...context, keyId };
  }
}
