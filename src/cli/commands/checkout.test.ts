import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { CheckoutResult } from "../../checkout/index.ts";
import { formatCheckout } from "./checkout.ts";

const RESULT: CheckoutResult = {
  path: "/srv/tree",
  layers: [],
  ...{ directories: 3, files: 12_345, symlinks: 1, others: 0, bytes: 2_000_000 },
  ...{
    linked: 0,
    linkedBytes: 0,
    reflinked: 0,
    reflinkedBytes: 0,
    copied: 12_345,
    copiedBytes: 2_000_000,
    published: 0,
    replaced: 0,
  },
  losses: { owner: 0, "set-id bit": 0, xattr: 0, device: 0, symlink: 0 },
  lost: [],
  fallbacks: [],
  leftOver: undefined,
  sharesInodes: false,
  userXattrs: false,
};

describe("formatCheckout()", () => {
  test("says what was written and how", () => {
    assert.equal(
      formatCheckout(RESULT, 1234),
      "/srv/tree: 12,345 files, 3 directories, 1 symlink, 2.00 MB in 1.2 s\n2.00 MB copied\n",
    );
  });

  test("warns of shared inodes, and tells that some had been written to", () => {
    const text = formatCheckout(
      { ...RESULT, linked: 12_345, linkedBytes: 2_000_000, copied: 0, sharesInodes: true, replaced: 2 },
      5,
    );
    assert.match(text, /\n2\.00 MB shared with other checkouts\n/);
    assert.match(text, /do not write to them in place, a write to one is a write to all/);
    assert.match(text, /mount --bind -o ro \/srv\/tree \/srv\/tree/);
    assert.match(text, /\n2 shared files had been written to and were made anew/);
  });

  test("counts what was lost, and names what fell back", () => {
    const losses = { ...RESULT.losses, owner: 7, device: 1 };
    const text = formatCheckout({ ...RESULT, losses, fallbacks: ["hardlink: EXDEV"] }, 5);
    assert.match(
      text,
      /\nfell back: hardlink: EXDEV\nlost: 7 files belong to you, .*\nlost: 1 devices were not made\n\(--json lists them\)\n$/,
    );
  });

  test("gives the command that mounts layers, the highest first", () => {
    const layers = ["/l/0", "/l/1"];
    assert.match(
      formatCheckout({ ...RESULT, layers }, 5),
      /\n {2}mount -t overlay overlay -o lowerdir=\/l\/1:\/l\/0 \/mnt\n$/,
    );
    assert.match(
      formatCheckout({ ...RESULT, layers, userXattrs: true }, 5),
      /lowerdir=\/l\/1:\/l\/0,userxattr \/mnt\n$/,
    );
  });

  test("shows no control characters of a path", () => {
    assert.doesNotMatch(formatCheckout({ ...RESULT, path: "/srv/a\nb", sharesInodes: true }, 5), /a\nb/);
  });
});
