/**
 * Elysia decides by NODE_ENV, when it is loaded, how much it tells of an invalid request: outside production it
 * builds an example value and prints the whole body for every validation error, which is slow and throws on
 * values such as {"toString": 1}. bootstrap.ts imports this before anything that imports Elysia.
 */
process.env.NODE_ENV = "production";
