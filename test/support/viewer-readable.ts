/**
 * A viewer as a common ReadableStream that takes nothing ahead: the sink is full until the reader asks again,
 * like a socket whose client reads slowly. For tests that read events without HTTP.
 */
import type { ViewerStream } from "../../src/services/streams.ts";

export function readableOf(viewer: ViewerStream): ReadableStream<Uint8Array> {
  let pumping = false;
  let room: (() => void) | null = null;
  let handed: () => void = () => undefined;
  return new ReadableStream<Uint8Array>(
    {
      pull: (controller) =>
        new Promise<void>((resolve) => {
          handed = resolve;
          room?.();
          if (pumping) return;
          pumping = true;
          void viewer.pump({
            write: (bytes) => {
              controller.enqueue(bytes);
              handed();
              return new Promise((again) => {
                room = () => again(bytes.length);
              });
            },
            flush: () => undefined,
            close: () => {
              controller.close();
              handed();
            },
          });
        }),
      cancel: () => viewer.leave(),
    },
    { highWaterMark: 0 },
  );
}
