/** Opening files that the database says are there. */
import { errnoOf, ShaleError } from "../errors/index.ts";
import { type FileSource, fileSource } from "../sys/index.ts";

/** Its absence is a loss, not a system error. */
export function openStored(path: string): FileSource {
  try {
    return fileSource(path);
  } catch (error) {
    if (errnoOf(error) !== "ENOENT") throw error;
    throw new ShaleError("DATA_LOSS", `Cannot read ${path}: the file is gone`, {
      cause: error,
      hint: "Run shale check --repair",
    });
  }
}
