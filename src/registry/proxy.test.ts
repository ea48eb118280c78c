import assert from "node:assert/strict";
import { test } from "node:test";
import { findProxy } from "./proxy.ts";

test("findProxy() chooses as Go's httpproxy does", () => {
  const env = { HTTPS_PROXY: "http://secure:3128", http_proxy: "plain:3128", HTTP_PROXY: "http://ignored:1" };
  const cases: readonly (readonly [string, string, string | undefined])[] = [
    ["https://quay.io/", "", "secure:3128"],
    ["http://quay.io/", "", "plain:3128"],
    ["https://localhost:5000/", "", undefined],
    ["https://127.0.0.2/", "", undefined],
    ["https://[::1]/", "", undefined],
    ["https://quay.io/", "*", undefined],
    ["https://quay.io/", "a.io, quay.io", undefined],
    ["https://cdn.quay.io/", "quay.io", undefined],
    ["https://quay.io/", ".quay.io", "secure:3128"],
    ["https://cdn.quay.io/", "*.quay.io", undefined],
    ["https://evilquay.io/", "quay.io", "secure:3128"],
    ["https://quay.io/", "quay.io:443", undefined],
    ["https://quay.io:8443/", "quay.io:443", "secure:3128"],
    ["https://10.1.2.3/", "10.0.0.0/8", undefined],
    ["https://11.1.2.3/", "10.0.0.0/8", "secure:3128"],
    ["https://10.1.2.3/", "10.1.2.3", undefined],
    ["https://10.1.2.3/", "2.3", "secure:3128"],
    ["https://[2001:db8::5]/", "2001:db8::/32", undefined],
    ["https://[2001:db8::5]/", "2001:db8::5", undefined],
    ["https://[2001:db8::5]:1/", "[2001:db8::5]:2", "secure:3128"],
    ["https://quay.io/", "10.0.0.0/99,/8,:,[", "secure:3128"],
  ];
  for (const [url, exceptions, expected] of cases) {
    assert.equal(
      findProxy(new URL(url), { ...env, NO_PROXY: exceptions })?.host,
      expected,
      `${url} except ${exceptions}`,
    );
  }
  assert.equal(findProxy(new URL("https://quay.io"), {}), undefined);
  assert.equal(findProxy(new URL("https://quay.io"), { HTTPS_PROXY: "socks5://x:1" }), undefined);
});
