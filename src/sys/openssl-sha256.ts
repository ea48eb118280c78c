/**
 * SHA-256 of many blocks by the OpenSSL that Node itself is linked with: the same code as behind node:crypto, without the 0.3 us that
 * each of its calls costs, which is an eighth of the time of a 4 KiB block.
 *
 * Guarantees: {@link loadBlockDigests} gives a way only after it has given, on this machine, the digests that node:crypto gives.
 * It is undefined where Node keeps these functions to itself (a build without them, or with FIPS rules, which these do not follow).
 *
 * Facts: openssl/sha.h, struct SHA256state_st: 28 words of 32 bits, without pointers, so that a copy of one that has taken the prefix
 * is one that has taken the prefix. Deprecated since OpenSSL 3.0 and still there; hence the self-test.
 */
import { getFips, hash } from "node:crypto";
import { createRequire } from "node:module";
import type { BlockDigests } from "../formats/verity/index.ts";

const STATE_SIZE = 112;
/** Room for a version whose state is larger: the self-test finds that out without writing over anything else. */
const STATE_ROOM = 4 * STATE_SIZE;
const GUARD = 0xa5;
const DIGEST_SIZE = 32;

type Koffi = typeof import("koffi").default;

let koffi: Koffi;

interface Library {
  readonly init: (state: number) => number;
  readonly update: (state: number, data: number, size: number) => number;
  readonly final: (digest: number, state: number) => number;
}

let loaded: { readonly digests: BlockDigests | undefined } | undefined;

/** The fastest way that is known to work here, or undefined: node:crypto does it then. Looked for once in each thread. */
export function loadBlockDigests(): BlockDigests | undefined {
  loaded ??= { digests: load() };
  return loaded.digests;
}

function load(): BlockDigests | undefined {
  if (getFips() !== 0) return undefined;
  const library = openLibrary();
  if (library === undefined || !stateFits(library)) return undefined;
  const digests = digestsOf(library);
  return passesSelfTest(digests) ? digests : undefined;
}

/** Undefined when the program does not export one of the functions, which is ordinary. koffi takes 16 ms: loaded here, not by the import. */
function openLibrary(): Library | undefined {
  koffi = createRequire(import.meta.url)("koffi") as Koffi;
  try {
    const program = koffi.load(null);
    // Addresses as numbers: converting a view costs as much as hashing 200 bytes.
    return {
      init: program.func("SHA256_Init", "int", ["uintptr_t"]),
      update: program.func("SHA256_Update", "int", ["uintptr_t", "uintptr_t", "size_t"]),
      final: program.func("SHA256_Final", "int", ["uintptr_t", "uintptr_t"]),
    };
  } catch {
    return undefined;
  }
}

function digestsOf({ init, update, final }: Library): BlockDigests {
  return {
    open(blockSize, prefix) {
      // Memory outside of V8's heap, which stays where it is as long as these are referred to.
      const prefixed = Buffer.allocUnsafeSlow(STATE_SIZE);
      const state = Buffer.allocUnsafeSlow(STATE_SIZE);
      const given = Buffer.allocUnsafeSlow(prefix.length + 1);
      given.set(prefix);
      init(addressOf(prefixed));
      update(addressOf(prefixed), addressOf(given), prefix.length);
      const stateAddress = addressOf(state);
      return (data, offset, count, target, at) => {
        const inside = offset >= 0 && count >= 0 && offset + count * blockSize <= data.length;
        if (!inside || at < 0 || at + count * DIGEST_SIZE > target.length)
          throw new RangeError("blocks outside of memory");
        let from = addressOf(data) + offset;
        let to = addressOf(target) + at;
        for (let block = 0; block < count; block++, from += blockSize, to += DIGEST_SIZE) {
          state.set(prefixed);
          update(stateAddress, from, blockSize);
          final(to, stateAddress);
        }
      };
    },
  };
}

function addressOf(bytes: Uint8Array): number {
  return Number(koffi.address(bytes));
}

/** Whether the library keeps within STATE_SIZE. */
function stateFits({ init, update, final }: Library): boolean {
  const state = Buffer.alloc(STATE_ROOM, GUARD);
  const data = Buffer.alloc(200, 1);
  const digest = Buffer.alloc(STATE_ROOM, GUARD);
  if (init(addressOf(state)) !== 1 || update(addressOf(state), addressOf(data), data.length) !== 1) return false;
  if (final(addressOf(digest), addressOf(state)) !== 1) return false;
  return state.subarray(STATE_SIZE).every(isGuard) && digest.subarray(DIGEST_SIZE).every(isGuard);
}

const isGuard = (byte: number) => byte === GUARD;

/** Prefixes and blocks that end inside, at and beyond the 64 bytes that SHA-256 takes at a time. */
function passesSelfTest(digests: BlockDigests): boolean {
  const data = Buffer.from(Uint8Array.from({ length: 2048 }, (_, i) => (i * 193) >> 3));
  for (const prefixSize of [0, 1, 32, 55, 64, 256]) {
    const prefix = data.subarray(100, 100 + prefixSize);
    for (const blockSize of [1, 64, 512, 1000]) {
      const target = Buffer.alloc(1 + 2 * DIGEST_SIZE);
      digests.open(blockSize, prefix)(data, 7, 2, target, 1);
      const digestOf = (start: number) =>
        hash("sha256", Buffer.concat([prefix, data.subarray(start, start + blockSize)]), "buffer");
      if (!target.subarray(1).equals(Buffer.concat([digestOf(7), digestOf(7 + blockSize)]))) return false;
    }
  }
  return true;
}
