/** Images of the store to Debian's docker-registry, and back into another store. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { parseReference } from "../oci/index.ts";
import { type DockerRegistry, startDockerRegistry } from "../registry/testing/docker-registry.ts";
import { testClient } from "../registry/testing/fixtures.ts";
import { contentOf, noise, pull, tar, withStore, writeImage } from "../store/testing/fixtures.ts";
import { openOrigin } from "./origin.ts";
import { pullImage } from "./pull.ts";
import { pushImage } from "./push.ts";

const directory = mkdtempSync(join(tmpdir(), "shale-push-image-"));
const layout = join(directory, "layout");
let registry: DockerRegistry;
before(async () => {
  registry = await startDockerRegistry(join(directory, "registry"));
  const base = tar({ "etc/": "", "etc/conf": "x", "bin/large": noise(3_000_000, 1) });
  writeImage(layout, "app", [base, tar({ "etc/conf": "y", "new/": "", "new/file": noise(50_000, 2) })]);
});
after(async () => {
  await registry.stop();
  rmSync(directory, { recursive: true, force: true });
});

const patient = () => testClient({ stallTimeoutMs: 10_000 });
const refer = (rest: string) => parseReference(`${registry.host}/${rest}`);

describe("pushImage()", () => {
  for (const compression of ["none", "zstd"] as const) {
    test(`${compression}: another store pulls the same image, and a second push sends nothing`, () =>
      withStore(join(directory, `from-${compression}`), async (store) => {
        await pull(store, layout, "app");
        await using one = patient();
        const reference = refer(`app/${compression}:v1`);
        const first = await pushImage(store, "app", one.client, reference, { compression });
        assert.deepEqual(
          first.layers.map(({ how }) => how),
          ["uploaded", "uploaded"],
        );
        const second = await pushImage(store, "app", one.client, reference, { compression });
        assert.deepEqual(
          second.layers.map(({ how }) => how),
          ["present", "present"],
        );
        assert.equal(second.digest, first.digest);
        const mounted = await pushImage(store, "app", one.client, refer(`copy/${compression}:v1`), {
          compression,
          mountFrom: `app/${compression}`,
        });
        assert.deepEqual(
          mounted.layers.map(({ how }) => how),
          ["mounted", "mounted"],
        );
        await withStore(join(directory, `to-${compression}`), async (other) => {
          const origin = await openOrigin({ kind: "registry", reference }, { registry: async () => one.client });
          await pullImage(other, origin, { name: "app" });
          assert.deepEqual(contentOf(other, "app"), contentOf(store, "app"));
          assert.deepEqual(other.manifestsOf("app")[0]?.config, store.manifestsOf("app")[0]?.config);
        });
        const copy = ["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"];
        const name = `${registry.host}/app/${compression}:v1`;
        execFileSync("skopeo", [...copy, `docker://${name}`, `oci:${join(directory, `copy-${compression}`)}:v1`]);
      }));
  }

  test("a damaged layer is DATA_LOSS, and the name stays what it was", () =>
    withStore(join(directory, "damaged"), async (store) => {
      await pull(store, layout, "app");
      const blobs = join(directory, "damaged/blobs");
      for (const name of readdirSync(blobs)) {
        const bytes = readFileSync(join(blobs, name));
        bytes[1000]! ^= 1;
        chmodSync(join(blobs, name), 0o600);
        writeFileSync(join(blobs, name), bytes);
      }
      await using one = patient();
      const reference = refer("damaged:v1");
      await assert.rejects(pushImage(store, "app", one.client, reference), { code: "DATA_LOSS" });
      await assert.rejects(one.client.resolve(reference), { code: "NOT_FOUND" });
      await assert.rejects(pushImage(store, "absent", one.client, reference), { code: "NOT_FOUND" });
    }));
});
