"""vLLM's offline `LLM.chat` as a child process: a JSON request a line in, its figures a line out.

Request: {"messages": [[message]], "seeds": [int], "n", "temperature", "top_p", "max_tokens"}.
Answer: {"seconds", "tokens"}. The first line out is {"ready": true}.
"""

import argparse
import json
import os
import sys
import time

from vllm import LLM, SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--max-model-len", type=int, required=True)
    parser.add_argument("--max-num-seqs", type=int, required=True)
    parser.add_argument("--eager", action="store_true")
    args = parser.parse_args()
    # vLLM and its processes print; the answers must not be among it.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    llm = LLM(
        args.model,
        max_model_len=args.max_model_len,
        max_num_seqs=args.max_num_seqs,
        enforce_eager=args.eager,
        generation_config="vllm",
    )
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        shared = {key: request[key] for key in ("n", "temperature", "top_p", "max_tokens")}
        params = [SamplingParams(seed=seed, **shared) for seed in request["seeds"]]
        started = time.perf_counter()
        outputs = llm.chat(request["messages"], params, use_tqdm=False)
        seconds = time.perf_counter() - started
        tokens = sum(len(choice.token_ids) for output in outputs for choice in output.outputs)
        print(json.dumps({"seconds": seconds, "tokens": tokens}), file=out, flush=True)


if __name__ == "__main__":
    main()
