import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { ShaleError } from "../../errors/index.ts";
import { unquoteGo } from "./go-string.ts";
import { compileFilters, type Filterable } from "./index.ts";
import { compileRegExp } from "./regexp.ts";

const REF = "containerd.io/snapshot.ref";
const one: Filterable = {
  name: "default/7/sha256:ab",
  parent: "",
  kind: "committed",
  labels: { [REF]: "sha256:ab", "a.b": "x,y z", plain: "1", empty: "" },
};
const matches = (...filters: string[]) => compileFilters(filters, REF).matches(one);
const refused = (run: () => unknown) =>
  assert.throws(
    run,
    (error) => ShaleError.is(error, "INVALID_ARGUMENT") && error.message.endsWith(": invalid argument"),
  );

describe("compileFilters()", () => {
  const CASES: readonly (readonly [filters: readonly string[], expected: boolean])[] = [
    [[], true],
    [[""], true],
    [["kind==committed"], true],
    [["kind==active"], false],
    [["kind==active", "kind==committed"], true],
    [["kind==committed,name==x"], false],
    [["kind==committed , parent!=x"], true],
    [['parent==""'], true],
    [['name=="default/7/sha256:ab"'], true],
    [["name==default/7/sha256:ab"], true],
    [[`labels."${REF}"==sha256:ab,parent==""`], true],
    [['"labels".plain==1'], true],
    [["labels.a.b"], true],
    [['labels."a.b"=="x,y z"'], true],
    [['labels."a.b"==x'], false],
    [["labels.none"], false],
    [["labels.none==1"], false],
    [["labels.none!=1"], true],
    [["labels.empty"], true],
    [["labels.toString"], false],
    [["nonsense==1"], false],
    [["nonsense!=1"], true],
    [["nonsense"], false],
    [["name~=sha"], true],
    [["name~=/^default.*ab$/"], true],
    [["name~=|^default/.*ab$|"], true],
    [["name~=/default\\/7/"], true],
    [['name~="^default/[0-9]+/"'], true],
    [["name~=^sha"], false],
    [["parent"], true],
  ];
  for (const [filters, expected] of CASES) {
    test(`${JSON.stringify(filters)} is ${expected}`, () => assert.equal(matches(...filters), expected));
  }

  for (const bad of [
    "=",
    "name=",
    "name=x",
    "name==",
    "name==x y",
    "name==x,",
    ",",
    ".name==x",
    "name.==x",
    "name<x",
    'name=="x',
    'name=="\\q"',
    "name==a b",
    "name~=(",
    "name~=/(/",
    "9x==1",
    `name==${"x".repeat(20_000)}`,
    Array(200).fill("name==x").join(","),
  ]) {
    test(`refuses ${JSON.stringify(bad.slice(0, 40))}`, () => refused(() => matches(bad)));
  }

  test("says for a quick look-up what each alternative insists on", () => {
    const { alternatives } = compileFilters([`labels."${REF}"==r,parent==p`, "name==n,kind==view", "kind==view"], REF);
    assert.deepEqual(alternatives, [{ ref: "r", parent: "p" }, { name: "n" }, {}]);
    assert.deepEqual(compileFilters([], REF).alternatives, [{}]);
  });

  test("finds what was quoted, whatever it is", () => {
    fc.assert(
      fc.property(fc.string({ unit: "grapheme" }), (value) => {
        const filter = compileFilters([`name==${JSON.stringify(value)}`], REF);
        assert.ok(filter.matches({ ...one, name: value }));
      }),
    );
  });

  test("answers or refuses, whatever comes", () => {
    const piece = fc.oneof(
      fc.constantFrom("name", "labels", "==", "!=", "~=", ".", ",", '"', "/", "|", "\\", " "),
      fc.string(),
    );
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 12 }), (pieces) => {
        try {
          matches(pieces.join(""));
        } catch (error) {
          if (!ShaleError.is(error, "INVALID_ARGUMENT")) throw error;
        }
      }),
    );
  });
});

test("unquoteGo() reads Go's escapes", () => {
  assert.equal(unquoteGo('"a\\n\\t\\"\\\\\\x41\\101\\u00e9\\U0001F600"'), 'a\n\t"\\AA\u00e9\u{1F600}');
  assert.equal(unquoteGo('"\\xc3\\xa9"'), "é");
  for (const bad of ['"', "x", '"\\"', '"\\z"', '"\\ud800"', '"\\400"', '"a"b"'])
    assert.equal(unquoteGo(bad), undefined);
});

describe("compileRegExp()", () => {
  const CASES: readonly (readonly [pattern: string, yes: readonly string[], no: readonly string[]])[] = [
    ["", ["", "x"], []],
    ["a|b|", ["", "z"], []],
    ["^a.c$", ["abc", "a\u{1F600}c"], ["a\nc", "abcd"]],
    ["(?s)^a.c$", ["a\nc"], []],
    ["(?m)^b$", ["a\nb\nc"], ["ab"]],
    ["(?i)HeLLo", ["hello", "HELLO"], ["hell"]],
    ["a(?i)B(?-i)c", ["aBc", "abc"], ["abC", "Abc"]],
    ["a(?i:B)c", ["aBc", "abc"], ["abC"]],
    ["^(ab)*$", ["", "abab"], ["aba"]],
    ["^a{2,3}?$", ["aa", "aaa"], ["a", "aaaa"]],
    ["^a{2,}$", ["aa", "aaaaaa"], ["a"]],
    ["^a{2$", ["a{2"], ["aa"]],
    ["^[^a-c]+$", ["xyz"], ["xaz", ""]],
    ["^[]a-]+$", ["]a-"], ["b"]],
    ["^[\\d\\-x]+$", ["1-x"], ["y"]],
    ["^[[:alpha:][:^word:]]+$", ["a-b"], ["a1"]],
    ["^\\Qa.b\\E$", ["a.b"], ["axb"]],
    ["\\bfoo\\b", ["a foo b", "foo"], ["afoo"]],
    ["\\Bfoo", ["afoo"], ["foo"]],
    ["^\\x41\\x{1F600}\\101$", ["A\u{1F600}A"], []],
    ["^\\p{Greek}\\pL\\PL$", ["αb1"], ["ab1"]],
    ["^\\p{^Lu}$", ["a"], ["A"]],
    ["(?P<name>a)(?:b)", ["ab"], ["a"]],
    ["\\Aa\\z", ["a"], ["a\n"]],
    ["(a*)*b", ["aaab"], ["aaaa"]],
    ["^(|a)+$", ["", "aaa"], ["b"]],
  ];
  for (const [pattern, yes, no] of CASES) {
    test(`${JSON.stringify(pattern)}`, () => {
      const { matches: found } = compileRegExp(pattern);
      for (const text of yes) assert.ok(found(text), text);
      for (const text of no) assert.ok(!found(text), text);
    });
  }

  for (const bad of [
    ...["(", ")", "a)", "*", "a**", "a++", "[", "[a", "[b-a]", "[a-\\d]", "\\", "\\1", "\\y", "(?<", "(?=a)", "(?!a)"],
    ...["a{2,1}", "a{1001}", "\\p{Nope}", "\\x{110000}", "[[:nope:]]", "(?z)a", "((a{100}){100}){100}"],
    ...["((((){1000}){1000}){1000}){1000}", "(".repeat(500), "x".repeat(2000)],
  ]) {
    test(`refuses ${JSON.stringify(bad.slice(0, 40))}`, () => refused(() => compileRegExp(bad)));
  }

  test("takes time in proportion where backtracking would take for ever", () => {
    const text = "a".repeat(2000);
    for (const pattern of ["(a+)+$b", "^(a|a|aa)*b", "(.*)*.*.*=c", "(x+x+)+y"]) {
      assert.equal(compileRegExp(pattern).matches(text), false);
    }
  });

  test("agrees with JavaScript's engine on what both have", () => {
    const leaf = fc.constantFrom("a", "b", ".", "[ab]", "[^a]", "\\w", "\\d", "\\b", "^", "$", "-", "\\.", "\\s");
    const { node } = fc.letrec<{ node: string }>((tie) => ({
      node: fc.oneof(
        { maxDepth: 4, withCrossShrink: true },
        leaf,
        fc.tuple(tie("node"), tie("node")).map(([a, b]) => `${a}${b}`),
        fc.tuple(tie("node"), tie("node")).map(([a, b]) => `(${a}|${b})`),
        fc.tuple(tie("node"), fc.constantFrom("*", "+", "?", "{1,2}", "*?")).map(([a, q]) => `(?:${a})${q}`),
      ),
    }));
    const text = fc.string({ unit: fc.constantFrom("a", "b", "1", "-", ".", " "), maxLength: 8 });
    fc.assert(
      fc.property(node, text, (pattern, value) => {
        assert.equal(compileRegExp(pattern).matches(value), new RegExp(pattern, "u").test(value), pattern);
      }),
      { numRuns: 500 },
    );
  });
});
