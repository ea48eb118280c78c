/**
 * For clients of tests: no call of theirs ends by the clock. On a machine with thirty programs in the queue a daemon was seen to
 * take 50 s for an answer, and a test is not about that.
 */
export const PATIENT = { timeoutMs: 900_000 } as const;
