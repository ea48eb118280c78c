/**
 * Pulls as the kubelet makes them: CRI's image service, through shale's proxy, with and without annotations. There is no
 * crictl in Debian, so a small client of the API asks containerd's CRI plugin.
 */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { before, test } from "node:test";
import { startFakeApi } from "../../src/kubernetes/testing/api-server.ts";
import { loadService, type Method, RpcClient } from "../../src/rpc/index.ts";
import { PATIENT } from "../../src/rpc/testing/patient.ts";
import { assertEmpty } from "./testing/empty.ts";
import { pushChain } from "./testing/images.ts";
import { type Generation, Machine, PASSWORD, USER, ensureTools, needsRoot } from "./testing/machine.ts";
import { until } from "./testing/processes.ts";

before(ensureTools);

interface PullRequest {
  readonly image: { readonly image: string };
  readonly auth: { readonly username: string; readonly password: string } | null;
}
const { PullImage } = loadService<{ PullImage: Method<PullRequest, { readonly imageRef: string }, "none"> }>(
  [new URL("../../src/cri-proxy/image-service.proto", import.meta.url)],
  "runtime.v1.ImageService",
  { PullImage: "none" },
);
const AUTH = { username: USER, password: PASSWORD };
const GENERATIONS: readonly Generation[] = ["1.6", "2.1"];

for (const generation of GENERATIONS) {
  for (const annotations of [true, false]) {
    const how = annotations ? "on: shale fetches with the pull's credentials" : "off: containerd fetches";
    test(`CRI of containerd ${generation}, annotations ${how}`, needsRoot, async () => {
      const way = annotations ? "remote" : "plain";
      const config = '[log]\nlevel = "debug"';
      // CRI keeps its images in this namespace.
      await using machine = await Machine.start({ generation, way, guarded: true, config, namespace: "k8s.io" });
      const [, , changed] = await pushChain(machine);
      using client = new RpcClient(machine.proxySocket, PATIENT);
      const image = { image: machine.reference(changed.name) };

      // Nobody is let in without credentials, nor with wrong ones.
      await assert.rejects(client.unary(PullImage, { image }), /authorization failed|401|no basic auth/i);
      await assert.rejects(
        client.unary(PullImage, { image, auth: { ...AUTH, password: "wrong" } }),
        /401|unauthorized/i,
      );
      const { imageRef } = await client.unary(PullImage, { image, auth: AUTH });
      assert.match(imageRef, /^sha256:|@sha256:/);

      const content = await machine.mustCtr("content", "ls", "-q");
      for (const { digest } of changed.image.layers) assert.equal(content.includes(digest), !annotations, digest);
      const log = () => readFileSync(machine.daemon.log, "utf8");
      assert.equal(/Fetched a layer/.test(log()), annotations);
      await machine.runContainer(changed.name, "one", ["sh", "-ec", "[ $(cat /kinds/opaque/new) = above ]"]);

      for (const secret of [PASSWORD, Buffer.from(`${USER}:${PASSWORD}`).toString("base64")]) {
        assert.ok(!log().includes(secret), "a secret is in the log");
      }
      await machine.removeEverything();
      await machine.stopDaemon();
      assertEmpty(machine);
    });
  }
}

test(
  "pull secrets of a cluster: shale fetches with them, and leaves a layer to containerd while there is none",
  needsRoot,
  async () => {
    await using api = await startFakeApi();
    const kubeconfig = api.kubeconfig({ "client-certificate": "client.pem", "client-key": "client.key" });
    const config = `[log]\nlevel = "debug"\n[remote]\nkubeconfig = "${kubeconfig}"`;
    await using machine = await Machine.start({ generation: "2.1", way: "remote", guarded: true, config });
    const [base, app] = await pushChain(machine);
    const log = () => readFileSync(machine.daemon.log, "utf8");

    await machine.pull(base.name);
    assert.doesNotMatch(log(), /Fetched a layer/);
    await machine.runContainer(base.name, "one", ["true"]);

    const host = machine.registry.host;
    const entry = (password: string) => ({ auth: Buffer.from(`${USER}:${password}`).toString("base64") });
    api.put("another-team", { auths: { [host]: entry("of-another-team") } });
    api.put("ours", { auths: { [`${host}/test`]: entry(PASSWORD) } });
    // The watch brings them when it does: until then layers are left to containerd, and the pull works all the same.
    await until(async () => {
      await machine.pull(app.name);
      await machine.runContainer(app.name, "two", ["ls", "/kinds/dirs"]);
      if (/Fetched a layer/.test(log())) return true;
      await machine.mustCtr("images", "rm", "--sync", machine.reference(app.name));
      return false;
    }, 500);
    for (const secret of [PASSWORD, entry(PASSWORD).auth, "of-another-team"]) {
      assert.ok(!log().includes(secret), "a secret is in the log");
    }
  },
);
