import assert from "node:assert/strict";
import { test } from "node:test";
import { isUppermost } from "./labels.ts";

test("isUppermost() goes by the layers that are still to come, and knows nothing without them", () => {
  const label = (layers: string) => ({ "containerd.io/snapshot/cri.image-layers": layers });
  assert.equal(isUppermost(label("sha256:b")), true);
  assert.equal(isUppermost(label("sha256:a,sha256:b")), false);
  assert.equal(isUppermost({}), undefined);
});
