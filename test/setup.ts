/** Preloaded by bunfig.toml before any test: tests must not depend on the shell that runs them. */
for (const name of Object.keys(process.env))
  if (name.startsWith("ORCHD_") && name !== "ORCHD_LLAMA_SERVER") delete process.env[name];
