/**
 * The HTTP application: middleware first, then the routes of api/, then the documentation of those routes.
 * Called by bootstrap.ts (and by tests with fake services); listen.ts puts it on a port.
 */
import { type AnyElysia, Elysia } from "elysia";
import { createDocs } from "../api/docs.ts";
import { docsPaths } from "../api/docs-assets.ts";
import { installMiddleware, type MiddlewareDeps } from "./middleware/install.ts";

export interface RouterDeps extends Omit<MiddlewareDeps, "openPaths"> {
  /** The routes of api/, each resource one instance; the documentation reads the same instances. */
  readonly plugins: readonly AnyElysia[];
}

/** What monitoring and a reader of the documentation reach without a key. */
const openPaths: ReadonlySet<string> = new Set(["/metrics", "/healthz", "/readyz", ...docsPaths]);

export function createRouter(deps: RouterDeps): AnyElysia {
  // normalize: false, so that a field that no schema knows is refused and not silently dropped.
  const app: AnyElysia = new Elysia({ normalize: false });
  installMiddleware(app, { ...deps, openPaths });
  for (const plugin of deps.plugins) app.use(plugin);
  app.use(createDocs(deps.plugins));
  return app;
}
