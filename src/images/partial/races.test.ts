/** R3 for pulls in parts: another process removes the source's image and collects garbage, at every step of the pull. */
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { parts } from "../../registry/testing/parts.ts";
import { type Step, startScriptedServer } from "../../registry/testing/scripted-server.ts";
import { isTocIdentity } from "../../store/index.ts";
import { assertSound, assertTars, collect, type Files, noise, tar, withStore } from "../../store/testing/fixtures.ts";
import { storeProcess } from "../../store/testing/processes.ts";
import { withTemporaryDirectory } from "../../sys/testing/filesystems.ts";
import { chunkedLayer, estargzLayer, layerIndexOf, publish, pullFrom } from "./testing/images.ts";

const large = noise(700_000, "large");
/** Most of both, so that parts are worth it also where a file is one chunk. */
const shared = { shared: noise(1_200_000, "shared") };
const SOURCE: Files = { "./": "", ...shared, large, whole: noise(200_000, "whole"), small: noise(900, "small") };
const PULLED: Files = {
  "./": "",
  ...shared,
  changed: Buffer.concat([large.subarray(0, 300_000), noise(4000, "new"), large.subarray(300_000)]),
  whole: noise(200_000, "whole"),
  small: noise(900, "small"),
  "small-too": noise(1500, "small too"),
  fresh: noise(60_000, "fresh"),
};

/** Calls of the store before which the pulling process stops, in their order. */
const CALLS = ["indexChunks", "assemble", "commitLayers", "commitImage", "indexLayers"];
/** Requests to the registry for the layer's blob, answered only when the other process is ready. */
const REQUESTS = ["TOC", "parts", "the rest of the parts"];

/** The pulling process: says where it is before each step, and goes on when it is told to. */
const PULL = `
  const { existsSync } = await import("node:fs");
  const { StoreOperation } = await import(args.store);
  const { pullFrom } = await import(args.images);
  const original = StoreOperation.prototype[args.stop];
  let stopped = false;
  if (original !== undefined) StoreOperation.prototype[args.stop] = function (...values) {
    if (!stopped) {
      stopped = true;
      say("at " + args.stop);
      const idle = new Int32Array(new SharedArrayBuffer(4));
      while (!existsSync(args.go)) Atomics.wait(idle, 0, 0, 5);
    }
    return original.apply(this, values);
  };
  const store = Store.open(args.root);
  const { layers } = await pullFrom(store, { host: args.host }, "pulled");
  await store.close();
  say(layers[0].parts === undefined ? "whole" : "in parts");
`;

/** What differs between the two is how a layer is verified and committed; where they wait for the registry, they are one. */
const ESTARGZ_STEPS = ["assemble", "commitLayers", "commitImage", "parts"];

describe("a pull in parts while its source is removed and collected", () => {
  const cases = [
    ...[...CALLS, ...REQUESTS].map((step) => ({ step, format: "zstd:chunked", make: chunkedLayer })),
    ...ESTARGZ_STEPS.map((step) => ({ step, format: "eStargz", make: estargzLayer })),
  ];
  for (const { step, format, make } of cases) {
    test(`before ${step} (${format})`, () =>
      withTemporaryDirectory(async (directory) => {
        const root = join(directory, "store");
        await using server = await startScriptedServer();
        const [source, pulled] = await Promise.all([make(tar(SOURCE)), make(tar(PULLED))]);
        publish(server, "source", [source]);
        await withStore(root, (store) => pullFrom(store, server, "source"));

        const held = Promise.withResolvers<() => void>();
        publish(server, "pulled", [pulled], { steps: stepsOf(step, pulled.blob, held.resolve) });
        await using child = storeProcess(PULL, {
          root,
          host: server.host,
          stop: step,
          go: join(directory, "go"),
          store: new URL("../../store/index.ts", import.meta.url).href,
          images: new URL("./testing/images.ts", import.meta.url).href,
        });
        let go: () => void;
        if (CALLS.includes(step)) {
          assert.equal(await child.line(), `at ${step}`);
          go = () => writeFileSync(join(directory, "go"), "");
        } else go = await held.promise;
        await withStore(root, async (store) => {
          store.removeImage("source");
          collect(store);
          go();
          // Bytes that were found stay until the pull has ended; those that it had not asked for yet are gone.
          const how = await child.line();
          assert.equal(how, ["indexChunks", "TOC", "assemble"].includes(step) ? "whole" : "in parts");
          collect(store);
          if (format === "zstd:chunked" || how === "whole") assertTars(store, "pulled");
          else assert.ok(isTocIdentity(store.manifestsOf("pulled")[0]!.layers[0]!.diffId));
          await assertSound(store);
          const found = layerIndexOf(store, "pulled");
          publish(server, "pulled", [pulled]);
          await withStore(join(directory, "other"), async (other) => {
            await pullFrom(other, server, "pulled");
            assert.deepEqual(found, layerIndexOf(other, "pulled"));
          });
        });
      }));
  }
});

function stepsOf(step: string, blob: Buffer, hold: (go: () => void) => void): readonly Step[] {
  const right = parts(blob);
  const waiting: Step = (request, response) => hold(() => right(request, response));
  switch (step) {
    case "TOC":
      return [waiting, right];
    case "parts":
      return [right, waiting, right];
    case "the rest of the parts":
      return [
        right,
        (request, response) => {
          const halves = new Proxy(response, {
            get(target, key) {
              const value = Reflect.get(target, key) as unknown;
              if (key !== "end") return typeof value === "function" ? value.bind(target) : value;
              return (body: Uint8Array) => {
                target.write(body.subarray(0, body.length / 2), () =>
                  hold(() => target.end(body.subarray(body.length / 2))),
                );
              };
            },
          });
          right(request, halves);
        },
        right,
      ];
    default:
      return [right];
  }
}
