import assert from "node:assert/strict";
import { test } from "node:test";
import type { ImageRecord } from "../store/index.ts";
import { Repositories } from "./repositories.ts";

const DIGEST = `sha256:${"a".repeat(64)}`;
const image = (name: string) => ({ name }) as ImageRecord;

const CASES: readonly {
  readonly name: string;
  readonly images: readonly string[];
  readonly listed: readonly string[];
  /** Repository -> names of its images, or undefined when it must not be found. */
  readonly found: Readonly<Record<string, readonly string[] | undefined>>;
}[] = [
  {
    name: "an image of Docker Hub by its short and its full name",
    images: ["docker.io/library/app:1", "docker.io/library/app:2"],
    listed: ["library/app"],
    found: {
      "library/app": ["docker.io/library/app:1", "docker.io/library/app:2"],
      "docker.io/library/app": ["docker.io/library/app:1", "docker.io/library/app:2"],
      app: undefined,
    },
  },
  {
    name: "an image of a host with a port by its short name",
    images: ["localhost:5000/team/app:1"],
    listed: ["team/app"],
    found: { "team/app": ["localhost:5000/team/app:1"] },
  },
  {
    name: "the one of Docker Hub where several hosts have a repository",
    images: ["a.example/library/app:1", "docker.io/library/app:1"],
    listed: ["a.example/library/app", "library/app"],
    found: { "library/app": ["docker.io/library/app:1"], "a.example/library/app": ["a.example/library/app:1"] },
  },
  {
    name: "no short name that two other hosts share",
    images: ["a.example/app:1", "b.example/app:1", "c.example:5000/app:1"],
    listed: ["a.example/app", "b.example/app"],
    found: { app: undefined, "a.example/app": ["a.example/app:1"], "b.example/app": ["b.example/app:1"] },
  },
  {
    name: "an image that is named by its digest alone, without a tag",
    images: [`docker.io/library/app@${DIGEST}`],
    listed: ["library/app"],
    found: { "library/app": [`docker.io/library/app@${DIGEST}`] },
  },
  {
    name: "nothing of what has no reference for a name",
    images: ["oci:/dir:v1", "oci-archive:/file.tar:v1", DIGEST],
    listed: [],
    found: { "library/sha256": undefined, oci: undefined, "library/oci": undefined },
  },
];

for (const { name, images, listed, found } of CASES) {
  test(`Repositories finds ${name}`, () => {
    const repositories = new Repositories(images.map(image));
    assert.deepEqual([...repositories.names()].sort(), listed);
    for (const [repository, expected] of Object.entries(found)) {
      assert.deepEqual(
        repositories.find(repository)?.images.map((one) => one.name),
        expected,
        repository,
      );
    }
  });
}

test("Repositories takes a plain tag before the same tag with a digest", () => {
  const plain = "docker.io/library/app:1";
  for (const names of [
    [plain, `${plain}@${DIGEST}`],
    [`${plain}@${DIGEST}`, plain],
  ]) {
    assert.equal(new Repositories(names.map(image)).find("library/app")?.tags.get("1")?.name, plain);
  }
});
