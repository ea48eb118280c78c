/** A tar-split played to a tar sink through the tar decoder, held against the TOC entry by entry. */
import { displayBytes } from "../../bytes/index.ts";
import type { FormatError } from "../../errors/index.ts";
import { TarDecoder, type TarEntry, type TarSink } from "../tar/index.ts";
import { differenceOf } from "./compare.ts";
import type { TocEntry } from "./entry.ts";
import { tocError } from "./failure.ts";
import type { TocPayload } from "./layer-toc.ts";
import type { TarSplitItem } from "./tar-split.ts";

/** See LayerToc.replay. */
export async function* replayTarSplit(
  items: AsyncIterable<TarSplitItem>,
  toc: AsyncGenerator<TocEntry, void, undefined>,
  sink: TarSink,
): AsyncGenerator<TocPayload, void, undefined> {
  /** The entry whose header went by and whose content item has not come. */
  let open: TarEntry | undefined;
  let offset = 0;
  const fail = (field: string, problem: string): FormatError => {
    const of = open === undefined ? "" : ` of "${displayBytes(open.path.slice(0, 300))}"`;
    return tocError("tar-split", `${field}${of}`, problem, { offset });
  };
  const decoder = new TarDecoder({
    raw: (bytes) => sink.raw(bytes),
    entry(entry) {
      if (open !== undefined) throw fail("content", "has no item of its own");
      open = entry;
      sink.entry(entry);
    },
    payload() {
      // it would be in no digest of the TOC
      throw fail("content", "stands among the headers");
    },
    endEntry: () => sink.endEntry(),
  });
  try {
    for await (const item of items) {
      offset = item.offset;
      if (item.kind === "bytes") {
        if (decoder.pending.payload) throw fail("content", "is followed by bytes, before its item");
        decoder.write(item.bytes);
        continue;
      }
      if (open === undefined)
        throw fail(`item of "${displayBytes(item.name.slice(0, 300))}"`, "has no header before it");
      if (item.name !== open.path) throw fail("item", `is named "${displayBytes(item.name.slice(0, 300))}"`);
      if (open.segments !== undefined) throw sparse(open, offset);
      const due = decoder.pending.payload ? decoder.pending.length : 0;
      if (open.type === "file" && item.size !== due)
        throw fail("item", `has ${item.size} bytes, the header says ${due}`);
      const next = await toc.next();
      if (next.done === true) throw fail("entry", "is missing in the TOC");
      const { header, digest, chunks } = next.value;
      const difference = differenceOf(header, open);
      if (difference !== undefined) throw fail("entry", `differs from the TOC: ${difference}`);
      if (due > 0) {
        yield { entry: open, digest, chunks };
        decoder.skipPayload(due);
      }
      open = undefined;
    }
    if (open !== undefined) throw fail("content", "has no item of its own");
    decoder.end();
    const surplus = await toc.next();
    if (surplus.done !== true) {
      const name = displayBytes(surplus.value.header.path.slice(0, 300));
      throw tocError("TOC", `entry of "${name}"`, "is not in the tar-split", { offset: surplus.value.tocOffset });
    }
  } finally {
    await toc.return();
  }
}

function sparse({ path }: TarEntry, offset: number): FormatError {
  const problem = "is sparse in the tar, which a TOC can't tell";
  return tocError("tar-split", `content of "${displayBytes(path.slice(0, 300))}"`, problem, {
    offset,
    code: "UNIMPLEMENTED",
    hint: "The layer can be pulled whole",
  });
}
