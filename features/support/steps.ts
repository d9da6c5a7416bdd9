/** The one library that all step files define into, with the parameter types of this project's language. */
import { StepLibrary } from "./gherkin.ts";
import { people, type World } from "./world.ts";

export const library = new StepLibrary<World>();

library.parameter("who", people);
library.parameter("state", ["queued", "running", "done", "failed", "canceled"]);
library.parameter("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"]);
library.parameter("fault", ["crashes", "stalls", "tears characters apart"]);
library.parameter("priority", ["interactive", "batch"]);

export const step = library.define.bind(library) as typeof library.define;
