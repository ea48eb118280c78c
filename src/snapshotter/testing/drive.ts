/** Runs driver.ts. For tests only. */
import { spawn } from "node:child_process";
import { join } from "node:path";

const DRIVER = join(import.meta.dirname, "driver.ts");

/** Resolves when it has ended well or by SIGKILL; `env` says at which crash point, or what to record. */
export function drive(
  root: string,
  env: Readonly<Record<string, string>>,
): Promise<{ signal: string | null; stderr: string }> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, ["--disable-warning=ExperimentalWarning", DRIVER, root], {
      env: { ...process.env, ...env },
      stdio: ["ignore", "ignore", "pipe"],
    });
    let stderr = "";
    child.stderr.on("data", (chunk: Buffer) => {
      stderr += chunk;
    });
    child.on("error", reject);
    child.on("close", (code, signal) => {
      if (code !== 0 && signal !== "SIGKILL") reject(new Error(`the driver ended with ${code}: ${stderr}`));
      else resolve({ signal, stderr });
    });
  });
}
