"""vLLM's offline `LLM.chat` as a child process: a JSON request a line in, its figures a line out.

Takes vLLM's own engine arguments.

Request: {"messages": [[message]], "seeds": [int], "n", "temperature", "top_p", "max_tokens"}.
Answer: {"seconds", "tokens"}. The first line out is {"ready": true}.
"""

import json
import os
import sys
import time


def main() -> None:
    # vLLM and its processes print, from its import on; the answers must not be among it.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from vllm import LLM, EngineArgs, SamplingParams  # noqa: PLC0415
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415

    parser = FlexibleArgumentParser(description=__doc__)
    args = EngineArgs.add_cli_args(parser).parse_args()
    llm = LLM.from_engine_args(EngineArgs.from_cli_args(args))
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
